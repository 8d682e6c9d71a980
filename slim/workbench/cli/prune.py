"""Remove the least important channels of the whole network (see --score), build
thinner layers, and check that the result equals the network with those channels
zeroed. Then win accuracy back from training images, without training (--recover
false leaves that out).

reads   FILE, or the newest sparse.safetensors under checkpoints/; or with
        --arch any network, and images where --data.name and --data.root say;
        or an ONNX file of any maker, with --data.root a folder of images
writes  beside it: pruned.safetensors, plan.json, summary.json, config.yaml;
        of model.onnx, model.thin.onnx and model.thin.json
next    slim-finetune; of ONNX files, slim-bench
"""

from collections.abc import Sequence
from pathlib import Path

from slim.errors import SlimError
from slim.workbench.cli.command import ParsedCommand
from slim.workbench.cli.errors import report_user_errors
from slim.workbench.cli.parser import SettingsParser

EXAMPLES = """
slim-prune --ratio 0.5                  # the network trained last
slim-prune --arch torchvision:resnet18 --weights FILE --flops 0.5 --dry-run
"""
WEIGHTS = (".pt", ".pth", ".bin", ".ckpt")  # which hold no settings
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
        parser.add_argument("--output", type=Path, metavar="FILE", help="of an ONNX file: the thin one")
        for name in ("mean", "std"):
            parser.add_argument(f"--{name}", metavar="X,…", help=f"of an ONNX file: {name} of its images' channels")
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
        if arguments.file and Path(arguments.file).suffix.lower() in WEIGHTS:
            raise SlimError(f"{arguments.file} holds weights alone: expected --arch NETWORK --weights {arguments.file}")
        if arguments.file and arguments.file.lower().endswith(".onnx"):
            _prune_onnx(given, Path(arguments.file))
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


def _prune_onnx(given: ParsedCommand, file: Path) -> None:
    """Prune the network in an ONNX file."""
    arguments = given.arguments
    out = arguments.output or file.with_suffix(".thin.onnx")
    run = given.run(given.settings())
    normalisation = _numbers("mean", arguments.mean), _numbers("std", arguments.std)
    if bool(normalisation[0]) != bool(normalisation[1]) or 0 in normalisation[1]:
        raise SlimError("--mean and --std: expected both, and no 0 in --std")
    from slim.workbench.run.onnx_files import plan_file, prune_file

    chosen = normalisation if normalisation[0] else None
    if arguments.dry_run:
        given.finish([], f"slim-prune {file}", plan=plan_file(run, file, chosen).to_dict())
    else:
        given.finish(prune_file(run, file, out, chosen), f"slim-bench {file} {out}")


def _numbers(name: str, text: str | None) -> list[float]:
    """Read 0.485,0.456,0.406."""
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise SlimError(f"--{name} {text}: expected numbers such as 0.485,0.456,0.406") from None
