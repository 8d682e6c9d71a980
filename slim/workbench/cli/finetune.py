"""Train a pruned network on, without a penalty, until its accuracy is back. Where
validation images say that it was better before, it is kept as it was.

reads   FILE, or the newest pruned.safetensors under checkpoints/; the data set
writes  beside it: finetuned.safetensors, metrics.jsonl, summary.json,
        config.yaml
next    slim-export
"""

from collections.abc import Sequence

from slim.workbench.cli.errors import report_user_errors
from slim.workbench.cli.parser import SettingsParser

EXAMPLES = """
slim-finetune                           # the network pruned last
slim-finetune checkpoints/mine/pruned.safetensors --epochs 40 --distill 0.5
"""
SHOWN = [
    "data.root",
    "data.batch_size",
    "data.augment",
    "data.storage",
    "data.workers",
    "data.cache",
    "compute.*",
    "name",
    "save_minutes",
    "keep_states",
    "tensorboard",
    "tracker",
]


def main(argv: Sequence[str] | None = None) -> None:
    with report_user_errors("slim-finetune", argv, resumes=True) as words:
        parser = SettingsParser("slim-finetune", __doc__, EXAMPLES, "finetune", SHOWN)
        parser.add_file("the pruned network (the newest pruned.safetensors)")
        parser.add_resume()
        given = parser.read(argv)
        run, source = given.run_after("pruned")
        if not given.arguments.file:
            words.insert(0, str(source))
        from slim.workbench.run.training import finetune_stage

        given.finish([finetune_stage(run, source)], "slim-export")
