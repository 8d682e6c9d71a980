"""What a run has to show: in the terminal, on one page (report.html), in Markdown, and as a model card.

`columns`    what a stage's record says, column by column: the same everywhere
`words`      names and sentences as people read them
`terminal`   live table while it trains, tables of stages
`collect`    what is known of a run, from its files
`figures`    the page's figures, as plotly.js takes them
`rendering`  the templates, each escaping as its medium needs it
`page`       report.html, of one run or several
`markdown`   the same tables for a README or a pull request
`card`       model_card.md, for who gets the exported file
"""

from slim.workbench.report.collect import collect as collect
from slim.workbench.report.columns import headline as headline
from slim.workbench.report.terminal import counted as counted
from slim.workbench.report.terminal import pass_table as pass_table
from slim.workbench.report.terminal import prune_line as prune_line
from slim.workbench.report.terminal import stage_table as stage_table
from slim.workbench.report.terminal import training as training
from slim.workbench.report.words import closing as closing
from slim.workbench.report.words import conditions as conditions
from slim.workbench.report.words import effort as effort
from slim.workbench.report.words import totals as totals
