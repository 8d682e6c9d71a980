"""Train a pruned network on, without a penalty, until its accuracy is back.

reads   FILE, or the newest pruned.safetensors under checkpoints/; the data set
writes  beside it: finetuned.safetensors, metrics.jsonl, summary.json,
        config.yaml
next    slim-export
"""

from collections.abc import Sequence

from slim.workbench.cli.command import Parser, mistakes_in_one_line


def main(argv: Sequence[str] | None = None) -> None:
    with mistakes_in_one_line("slim-finetune", argv) as resuming:
        parser = Parser("slim-finetune", __doc__, "finetune", ["data"])
        parser.add_file("the pruned network (the newest pruned.safetensors)")
        parser.add_resume()
        given = parser.read(argv)
        source, settings = given.after("pruned")
        if not given.arguments.file:
            resuming.insert(0, str(source))
        from slim.workbench import run as pipeline

        resume, code = given.arguments.resume, given.allow_code
        written = pipeline.finetune_stage(source, settings, resume=resume, allow_code=code, console=given.console)
        given.close(written, "slim-export")
