"""Do it all: train a baseline, train with a penalty on γ, prune, fine-tune,
export, measure.

reads   the data set (the digits need no download)
writes  checkpoints/NAME/: a checkpoint of each stage, plan.json, model.onnx,
        baseline.onnx, metrics.jsonl, summary.json, config.yaml,
        model_card.md, report.html, evidence.json
next    slim-predict
"""

import shlex
import sys
from argparse import SUPPRESS
from collections.abc import Sequence

from slim.workbench.cli.command import Parser, mistakes_in_one_line


def main(argv: Sequence[str] | None = None) -> None:
    with mistakes_in_one_line("slim-run", argv):
        parser = Parser("slim-run", __doc__, shown=["train", "sparsity", "prune", "finetune"])
        parser.usage = "%(prog)s [CONFIG] [options]"
        parser.add_argument("config", nargs="?", metavar="CONFIG", default=SUPPRESS, help="the same as --config")
        parser.add_resume()
        given = parser.read(argv)
        settings = given.resumed("baseline", "sparse", "finetuned")
        command = shlex.join(["slim-run", *(sys.argv[1:] if argv is None else argv)])
        from slim.workbench import run as pipeline

        resume, code = given.arguments.resume, given.allow_code
        written, _ = pipeline.run(settings, resume=resume, command=command, allow_code=code, console=given.console)
        model = written[0].with_name("model.onnx")
        given.close(written, f"slim-predict {model} IMAGE")
