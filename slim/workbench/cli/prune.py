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
from slim.workbench.cli.errors import report_user_errors
from slim.workbench.cli.parser import SettingsParser


def main(argv: Sequence[str] | None = None) -> None:
    with report_user_errors("slim-prune", argv):
        parser = SettingsParser("slim-prune", __doc__, "prune", ["bench"])
        parser.add_file("the trained network (the newest sparse.safetensors)")
        parser.add_argument("--dry-run", action="store_true", help="print the plan, and write nothing")
        parser.add_argument("--arch", metavar="NAME", help="with --dry-run: plan for this untrained network")
        given = parser.read(argv)
        arch, file, dry_run = given.arguments.arch, given.arguments.file, given.arguments.dry_run
        if arch and (file or not dry_run):
            raise SlimError(f"--arch {arch} is untrained: expected --dry-run with it, and no FILE")
        run, source = (given.run(given.settings()), None) if arch else given.run_after("sparse")
        from slim.workbench.run.pruning import plan_architecture, plan_file, prune_stage

        if source is None:
            made = plan_architecture(run, arch)
            given.finish([], "slim-prune", plan=made.to_dict())
        elif dry_run:
            given.finish([], "slim-prune", plan=plan_file(run, source).to_dict())
        else:
            given.finish(prune_stage(run, source), "slim-finetune")
