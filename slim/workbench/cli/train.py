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


def main(argv: Sequence[str] | None = None) -> None:
    with report_user_errors("slim-train", argv, resumes=True):
        parser = SettingsParser("slim-train", __doc__, "train", ["sparsity", "data", "model"])
        parser.add_resume()
        given = parser.read(argv)
        run = given.new_run("sparse")
        from slim.workbench.run.training import train_stage

        given.finish([train_stage(run)], "slim-prune")
