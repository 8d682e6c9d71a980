"""Train a network with a penalty on every BatchNorm scale γ, so that it shows
which channels it can do without.

reads   the data set (the digits need no download)
writes  checkpoints/NAME/: sparse.safetensors, metrics.jsonl, summary.json,
        config.yaml
next    slim-prune
"""

from collections.abc import Sequence

from slim.workbench.cli.errors import report_user_errors
from slim.workbench.cli.parser import SettingsParser

EXAMPLES = """
slim-train digits                       # handwritten digits, no download
slim-train --model.arch slim:resnet20 --data.name imagefolder --data.root DIR
"""
SHOWN = [
    "sparsity.*",
    "data.*",
    "model.*",
    "compute.*",
    "name",
    "seed",
    "task",
    "save_minutes",
    "keep_states",
    "tensorboard",
    "tracker",
]


def main(argv: Sequence[str] | None = None) -> None:
    with report_user_errors("slim-train", argv, resumes=True) as words:
        parser = SettingsParser("slim-train", __doc__, EXAMPLES, "train", SHOWN)
        parser.add_beginning()
        parser.add_resume()
        given = parser.read(argv)
        run = given.new_run(["sparse"], ["train", "sparsity"], words)
        from slim.workbench.run.training import train_stage

        given.finish([train_stage(run)], "slim-prune")
