"""Measure how much each group of layers may lose: it is pruned alone, by several
shares, and evaluated on the validation images, right after and with recovery.

reads   FILE, or the newest sparse.safetensors under checkpoints/
writes  beside it: sensitivity-STAGE.json, and a page with a heat map, .html
next    slim-prune, with --keep or --layer_ratios for what costs most
"""

from collections.abc import Sequence
from itertools import chain

from slim.errors import SlimError
from slim.workbench.cli.errors import report_user_errors
from slim.workbench.cli.parser import SettingsParser

EXAMPLES = """
slim-sensitivity                        # the network trained last
slim-sensitivity checkpoints/digits/baseline.safetensors --minutes 5
"""
SHOWN = [
    "prune.score",
    "prune.recover",
    "prune.calibration_images",
    "data.name",
    "data.root",
    "compute.device",
    "name",
    "seed",
    "task",
]


def main(argv: Sequence[str] | None = None) -> None:
    with report_user_errors("slim-sensitivity", argv):
        parser = SettingsParser("slim-sensitivity", __doc__, EXAMPLES, "prune", SHOWN)
        parser.add_file("the trained network (the newest sparse.safetensors)")
        parser.add_argument(
            "--shares", nargs="+", type=numbers, default=[[0.25, 0.5, 0.75]], metavar="X",
            help="shares of a group's channels to remove (0.25 0.5 0.75)",
        )  # fmt: skip
        parser.add_argument(
            "--minutes", type=float, default=0, metavar="X", help="stop then, to go on later (0: never)"
        )
        given = parser.read(argv)
        if given.arguments.minutes < 0:
            raise SlimError(f"--minutes {given.arguments.minutes:g}: expected 0 or more")
        run, source = given.run_after("sparse")
        from slim.workbench.run.sensitivity import sensitivity_stage

        written = sensitivity_stage(run, source, list(chain(*given.arguments.shares)), given.arguments.minutes)
        given.finish(written, "slim-prune")


def numbers(text: str) -> list[float]:
    """Read 0.5, or several with commas."""
    return [float(part) for part in text.split(",") if part]
