"""Remove the channels with the smallest |γ| of the whole network, rebuild thinner
layers, and check that the result equals the network with those channels zeroed.
Then win accuracy back from training images, without training (--recover false
leaves that out).

reads   FILE, or the newest sparse.safetensors under checkpoints/; or with
        --arch any network, and images where --data.name and --data.root say
writes  beside it: pruned.safetensors, plan.json, summary.json, config.yaml
next    slim-finetune
"""

from collections.abc import Sequence

from slim.errors import SlimError
from slim.workbench.cli.command import ParsedCommand
from slim.workbench.cli.errors import report_user_errors
from slim.workbench.cli.parser import SettingsParser

EXAMPLES = """
slim-prune --ratio 0.5                  # the network trained last
slim-prune --arch torchvision:resnet18 --weights FILE --flops 0.5 --dry-run
"""
SHOWN = [
    "bench.provider",
    "bench.threads",
    "bench.batch_sizes",
    "data.name",
    "data.root",
    "data.image_size",
    "model.kwargs",
    "compute.device",
    "name",
    "seed",
    "task",
    "tensorboard",
    "tracker",
]


def main(argv: Sequence[str] | None = None) -> None:
    with report_user_errors("slim-prune", argv):
        parser = SettingsParser("slim-prune", __doc__, EXAMPLES, "prune", SHOWN)
        parser.add_file("the trained network (the newest sparse.safetensors)")
        parser.add_argument("--dry-run", action="store_true", help="print the plan, and write nothing")
        parser.add_argument(
            "--arch", metavar="NAME", help="in place of FILE: this network, with --weights or with its own"
        )
        parser.add_argument(
            "--weights", metavar="FILE", help="its trained weights, or a name such as DEFAULT or hf-hub:OWNER/NAME"
        )
        parser.add_argument("--example", metavar="NAME", help="file.py:function that gives an input of several parts")
        parser.add_beginning()
        given = parser.read(argv)
        arguments = given.arguments
        if arguments.weights and not arguments.arch:
            raise SlimError(f"--weights {arguments.weights} of which network? Expected --arch with it")
        if arguments.example and not arguments.arch:
            raise SlimError(f"--example {arguments.example} of which network? Expected --arch, or --model.example")
        if arguments.arch and arguments.file:
            raise SlimError(f"--arch {arguments.arch} and {arguments.file}: expected one of them")
        if arguments.arch:
            _prune_given(given)
            return
        run, source = given.run_after("sparse")
        from slim.workbench.run.pruning import plan_file, prune_stage

        if arguments.dry_run:
            given.finish([], "slim-prune", plan=plan_file(run, source).to_dict())
        else:
            given.finish(prune_stage(run, source), "slim-finetune")


def _prune_given(given: ParsedCommand) -> None:
    """Prune a network that no run has trained."""
    arguments = given.arguments
    run = given.run_of_network(arguments.arch, arguments.weights, arguments.example)
    from slim.workbench.run.pruning import plan_architecture, plan_given, prune_given

    library = arguments.arch.partition(":")[0] in ("slim", "torchvision", "timm")
    if arguments.dry_run:
        planned = plan_architecture if library and not arguments.weights else plan_given
        given.finish([], "slim-prune", plan=planned(run).to_dict())
    elif library and not arguments.weights:
        raise SlimError(f"--arch {arguments.arch} is untrained: expected --weights with it, or --dry-run")
    else:
        given.finish(prune_given(run), "slim-finetune")
