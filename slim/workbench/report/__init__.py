"""What a run has to show: in the terminal, on one page (report.html), in Markdown, and as a model card.

`collect` reads a run's files, `columns` says how each value is written, `figures` and `templates` are the
page's, and `terminal`, `page`, `markdown` and `card` write the four.
"""

from slim.workbench.report.collect import collect as collect
from slim.workbench.report.columns import conditions as conditions
from slim.workbench.report.columns import headline as headline
from slim.workbench.report.terminal import pass_table as pass_table
from slim.workbench.report.terminal import stage_table as stage_table
from slim.workbench.report.terminal import training as training
