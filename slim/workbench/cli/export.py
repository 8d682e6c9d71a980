"""Write a network as an ONNX file, checked against PyTorch before it is kept.

reads   FILE, or the newest finetuned.safetensors under checkpoints/
writes  beside it: model.onnx, baseline.onnx (the unpruned network),
        model.int8.onnx (with --int8), summary.json, config.yaml, model_card.md
next    slim-bench
"""

from collections.abc import Sequence

from slim.workbench.cli.command import Parser, mistakes_in_one_line


def main(argv: Sequence[str] | None = None) -> None:
    with mistakes_in_one_line("slim-export"):
        parser = Parser("slim-export", __doc__, "export")
        parser.add_file("the network (the newest finetuned.safetensors)")
        given = parser.read(argv)
        source, settings = given.after("finetuned")
        from slim.workbench import run as pipeline

        written = pipeline.export_stage(source, settings, allow_code=given.allow_code, console=given.console)
        given.close(written, "slim-bench")
