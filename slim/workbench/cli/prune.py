"""Remove the channels with the smallest |γ| of the whole network, rebuild thinner
layers, and check that the result equals the network with those channels zeroed.
Then win accuracy back from training images, without training (--recover false
leaves that out).

reads   FILE, or the newest sparse.safetensors under checkpoints/
writes  beside it: pruned.safetensors, plan.json, summary.json, config.yaml
next    slim-finetune
"""

from collections.abc import Sequence

from slim.errors import SlimError
from slim.workbench.cli.command import Parser, mistakes_in_one_line


def main(argv: Sequence[str] | None = None) -> None:
    with mistakes_in_one_line("slim-prune"):
        parser = Parser("slim-prune", __doc__, "prune", ["bench"])
        parser.add_file("the trained network (the newest sparse.safetensors)")
        parser.add_argument("--dry-run", action="store_true", help="print the plan, and write nothing")
        parser.add_argument("--arch", metavar="NAME", help="with --dry-run: plan for this untrained network")
        given = parser.read(argv)
        arguments = given.arguments
        if arguments.arch and (arguments.file or not arguments.dry_run):
            raise SlimError(f"--arch {arguments.arch} is untrained: expected --dry-run with it, and no FILE")
        source, settings = (None, given.settings()) if arguments.arch else given.after("sparse")
        from slim.workbench import run as pipeline

        if arguments.dry_run:
            if source is None:
                made = pipeline.plan_architecture(
                    arguments.arch, settings, allow_code=(arguments.arch, *given.allow_code), console=given.console
                )
            else:
                made = pipeline.plan_file(source, settings, allow_code=given.allow_code, console=given.console)
            given.close([], "slim-prune", plan=made.to_dict())
        else:
            assert source is not None  # --arch needs --dry-run
            written = pipeline.prune_stage(source, settings, allow_code=given.allow_code, console=given.console)
            given.close(written, "slim-finetune")
