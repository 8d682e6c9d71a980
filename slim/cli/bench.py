"""Measure the latency of ONNX files in onnxruntime, side by side and in turn.

reads   each FILE, of which the first is what speed-ups refer to; or the newest
        model.onnx under checkpoints/ and the baseline.onnx beside it
writes  for a run: summary.json; for files named on the command line: nothing
next    slim-predict
"""

from collections.abc import Sequence
from pathlib import Path

from slim.cli.command import Parser, mistakes_in_one_line


def main(argv: Sequence[str] | None = None) -> None:
    with mistakes_in_one_line("slim-bench"):
        parser = Parser("slim-bench", __doc__, "bench")
        parser.usage = "%(prog)s [FILE ...] [options]"
        parser.add_argument("files", nargs="*", metavar="FILE", help="ONNX files (those of the newest run)")
        given = parser.read(argv)
        if given.arguments.files:
            settings = given.settings()
            from slim import pipeline

            made = pipeline.bench_files(
                {file: Path(file) for file in given.arguments.files}, settings, console=given.console
            )
            if given.arguments.json:
                given.close([], "slim-predict", bench=made.to_dict())
        else:
            source, settings = given.after("onnx")
            from slim import pipeline

            written = pipeline.bench_stage(source, settings, console=given.console)
            given.close(written, f"slim-predict {source} IMAGE")
