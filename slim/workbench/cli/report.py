"""One page that explains a run, report.html, or one that compares several.

reads   RUN: folders under checkpoints/, by name or path (the newest run)
writes  into the run: report.html, evidence.json; for several:
        comparison.html beside the first of them
next    open the page in a browser; it needs nothing else
"""

from collections.abc import Sequence
from pathlib import Path

from slim.errors import SlimError
from slim.workbench.cli.command import Given, PlainParser, add_allow_code, add_voice, mistakes_in_one_line


def main(argv: Sequence[str] | None = None) -> None:
    with mistakes_in_one_line("slim-report"):
        parser = PlainParser("slim-report", __doc__)
        parser.usage = "%(prog)s [RUN ...] [options]"
        parser.add_argument("runs", nargs="*", metavar="RUN", help="a run's folder (the newest under checkpoints/)")
        parser.add_argument("--markdown", action="store_true", help="print tables in Markdown; measure nothing")
        parser.add_argument("--out", metavar="FILE", help="where the page goes")
        parser.add_argument("--no-measure", action="store_true", help="show only what earlier commands recorded")
        parser.add_argument(
            "--sweep-seconds", type=float, default=None, metavar="X", help="limit of the trade-off sweep (of the run)"
        )
        add_allow_code(parser)
        add_voice(parser)
        given = Given(parser.parse_args(argv), {}, {})
        arguments = given.arguments
        if arguments.sweep_seconds is not None and arguments.sweep_seconds < 0:
            raise SlimError(f"--sweep-seconds {arguments.sweep_seconds:g}: expected 0 or more")
        from slim.workbench.report import collect
        from slim.workbench.report.collect import find

        folders = find(arguments.runs)
        if arguments.markdown:
            from slim.workbench.report import markdown

            print(markdown.of([collect(folder) for folder in folders]), end="")
            return
        from slim.workbench import run as pipeline

        written = pipeline.report_stage(
            folders,
            Path(arguments.out) if arguments.out else None,
            measure=not arguments.no_measure,
            seconds=arguments.sweep_seconds,
            allow_code=given.allow_code,
            console=given.console,
        )
        given.close(written, f"open {written[0]} in a browser")
