"""One page that explains a run, report.html, or one that compares several.

reads   RUN: folders under checkpoints/, by name or path (the newest run)
writes  into the run: report.html, evidence.json; for several:
        comparison.html beside the first of them
next    open the page in a browser; it needs nothing else
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from slim.errors import SlimError
from slim.workbench.cli.command import ParsedCommand
from slim.workbench.cli.errors import report_user_errors
from slim.workbench.cli.parser import PlainParser, add_allow_code, add_verbosity
from slim.workbench.config import DataConfig, RunConfig

EXAMPLES = """
slim-report                             # the newest run
slim-report first second --out both.html # two runs, compared
"""


def main(argv: Sequence[str] | None = None) -> None:
    with report_user_errors("slim-report", argv):
        given = ParsedCommand(_parser().parse_args(argv), {}, {})
        arguments = given.arguments
        if arguments.sweep_seconds is not None and arguments.sweep_seconds < 0:
            raise SlimError(f"--sweep-seconds {arguments.sweep_seconds:g}: expected 0 or more")
        from slim.workbench.report.collect import collect
        from slim.workbench.run.stages import find_runs

        folders = find_runs(arguments.runs)
        if arguments.markdown:
            from slim.workbench.report import markdown

            print(markdown.of([collect(folder) for folder in folders]), end="")
            return
        from slim.workbench.run.reporting import report_stage

        settings = replace(RunConfig(), data=DataConfig(root=arguments.data_root))
        written = report_stage(
            given.run(settings, folders[0]),
            folders,
            Path(arguments.out) if arguments.out else None,
            measure=not arguments.no_measure,
            seconds=arguments.sweep_seconds,
        )
        given.finish(written, f"open {written[0]} in a browser")


def _parser() -> PlainParser:
    parser = PlainParser("slim-report", __doc__, EXAMPLES)
    parser.usage = "%(prog)s [RUN ...] [options]"
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run's folder (the newest under checkpoints/)")
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown; measure nothing")
    parser.add_argument("--out", metavar="FILE", help="where the page goes")
    parser.add_argument("--no-measure", action="store_true", help="show only what earlier commands recorded")
    parser.add_argument(
        "--sweep-seconds", type=float, default=None, metavar="X", help="limit of the trade-off sweep (of the run)"
    )
    parser.add_argument(
        "--data-root", default=DataConfig().root, metavar="DIR", help=f"where the data lie ({DataConfig().root})"
    )
    add_allow_code(parser)
    add_verbosity(parser)
    return parser
