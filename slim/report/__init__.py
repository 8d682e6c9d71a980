"""What a run has to show: in the terminal, on one page (report.html), in Markdown, and as a model card.

`terminal`  live table while it trains, tables of plans and stages
`words`     numbers and names as people read them
"""

from slim.report.terminal import (
    FittingTable,
    conditions,
    counted,
    pass_table,
    plan_table,
    render,
    stage_table,
    training,
)
from slim.report.words import closing, count, effort, headline, size, totals

__all__ = [
    "FittingTable",
    "closing",
    "conditions",
    "count",
    "counted",
    "effort",
    "headline",
    "pass_table",
    "plan_table",
    "render",
    "size",
    "stage_table",
    "totals",
    "training",
]
