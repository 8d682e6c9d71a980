"""Train a network with a penalty on every BatchNorm scale γ, so that it shows
which channels it can do without.

reads   the data set (the digits need no download)
writes  checkpoints/NAME/: sparse.safetensors, metrics.jsonl, summary.json,
        config.yaml
next    slim-prune
"""

from collections.abc import Sequence

from slim.workbench.cli.command import Parser, mistakes_in_one_line


def main(argv: Sequence[str] | None = None) -> None:
    with mistakes_in_one_line("slim-train", argv):
        parser = Parser("slim-train", __doc__, "train", ["sparsity", "data", "model"])
        parser.add_resume()
        given = parser.read(argv)
        settings = given.resumed("sparse")
        from slim.workbench import run as pipeline

        resume, code = given.arguments.resume, given.allow_code
        written = pipeline.train_stage(settings, resume=resume, allow_code=code, console=given.console)
        given.close(written, "slim-prune")
