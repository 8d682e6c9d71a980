"""Write a network as an ONNX file, checked against PyTorch before it is kept.

reads   FILE, or the newest finetuned.safetensors under checkpoints/
writes  beside it: model.onnx, baseline.onnx (the unpruned network),
        model.int8.onnx (with --int8), summary.json, config.yaml, model_card.md
next    slim-bench
"""

from collections.abc import Sequence

from slim.workbench.cli.errors import report_user_errors
from slim.workbench.cli.parser import SettingsParser

EXAMPLES = """
slim-export                             # the network fine-tuned last
slim-export --int8 --preprocess         # 8 bits; raw images in
"""
SHOWN = ["data.root", "compute.device", "name"]


def main(argv: Sequence[str] | None = None) -> None:
    with report_user_errors("slim-export", argv):
        parser = SettingsParser("slim-export", __doc__, EXAMPLES, "export", SHOWN)
        parser.add_file("the network (the newest finetuned.safetensors)")
        given = parser.read(argv)
        run, source = given.run_after("finetuned")
        from slim.workbench.run.exporting import export_stage

        given.finish(export_stage(run, source), "slim-bench")
