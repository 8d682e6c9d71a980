"""What a run has to show: in the terminal, on one page (report.html), in Markdown, and as a model card.

`words`     numbers and names as people read them
`terminal`  live table while it trains, tables of plans and stages
`collect`   what is known of a run, from its files
`evidence`  what the page shows beside that, measured
`figures`   the page's figures, as plotly.js takes them
`page`      report.html, of one run or several
`markdown`  the same tables for a README or a pull request
`card`      model_card.md, for who gets the exported file
"""

from slim.report.collect import Run, collect
from slim.report.terminal import (
    FittingTable,
    conditions,
    counted,
    pass_table,
    plan_table,
    prune_line,
    render,
    stage_table,
    training,
)
from slim.report.words import closing, count, effort, headline, size, totals

__all__ = [
    "FittingTable",
    "Run",
    "closing",
    "collect",
    "conditions",
    "count",
    "counted",
    "effort",
    "headline",
    "pass_table",
    "plan_table",
    "prune_line",
    "render",
    "size",
    "stage_table",
    "totals",
    "training",
]
