"""Measure the latency of networks side by side and in turn: ONNX files in
onnxruntime, checkpoints in PyTorch (eager and compiled).

reads   each FILE, of which the first is what speed-ups refer to; or the newest
        model.onnx under checkpoints/ and the baseline.onnx beside it
writes  for a run: summary.json, model_card.md; for files named on the command
        line: what --output and --plot name
next    slim-predict
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slim.errors import SlimError
from slim.workbench.cli.errors import report_user_errors
from slim.workbench.cli.parser import SettingsParser

if TYPE_CHECKING:
    from slim.deploy.bench.result import BenchReport

EXAMPLES = """
slim-bench                              # the network exported last
slim-bench before.onnx after.onnx --batch_sizes 8 --threads 1
"""


def main(argv: Sequence[str] | None = None) -> None:
    with report_user_errors("slim-bench", argv):
        given = _parser().read(argv)
        arguments = given.arguments
        for option, suffix in (("output", ".json"), ("plot", ".html")):
            path = getattr(arguments, option)
            if path and path.suffix != suffix:
                raise SlimError(f"--{option} {path}: expected a name that ends in {suffix}")
        if not arguments.files:
            run, source = given.run_after("onnx")
            from slim.workbench.run.measuring import bench_stage

            written, made = bench_stage(run, source)
            given.finish([*written, *_saved(made, arguments)], f"slim-predict {source} IMAGE")
            return
        run = given.run(given.settings())
        from slim.deploy.bench.benchmark import short_names
        from slim.workbench.run.measuring import bench_files

        made = bench_files(run, short_names(arguments.files))
        facts = {"bench": made.to_dict()} if arguments.json else {}
        given.finish(_saved(made, arguments), "slim-predict MODEL.onnx IMAGE", **facts)


def _parser() -> SettingsParser:
    parser = SettingsParser("slim-bench", __doc__, EXAMPLES, "bench", ["name"])
    parser.usage = "%(prog)s [CONFIG] [FILE ...] [options]"
    parser.add_argument("files", nargs="*", metavar="FILE", help="ONNX files, checkpoints (those of the newest run)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all figures to this JSON file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw all times into this HTML page")
    return parser


def _saved(made: "BenchReport", arguments: Namespace) -> list[Path]:
    written = []
    if arguments.output:
        written.append(made.save(arguments.output))
    if arguments.plot:
        written.append(made.save_figure(arguments.plot))
    return written
