"""What a run has to show: in the terminal, on one page (report.html), in Markdown, and as a model card.

`words`     numbers and names as people read them
`terminal`  live table while it trains, tables of plans and stages
`collect`   what is known of a run, from its files
`figures`   the page's figures, as plotly.js takes them
`page`      report.html, of one run or several
`markdown`  the same tables for a README or a pull request
`card`      model_card.md, for who gets the exported file
"""

from slim.workbench.report.collect import Run, collect
from slim.workbench.report.terminal import (
    conditions,
    counted,
    pass_table,
    prune_line,
    stage_table,
    training,
)
from slim.workbench.report.words import closing, effort, headline, totals

__all__ = [
    "Run",
    "closing",
    "collect",
    "conditions",
    "counted",
    "effort",
    "headline",
    "pass_table",
    "prune_line",
    "stage_table",
    "totals",
    "training",
]
