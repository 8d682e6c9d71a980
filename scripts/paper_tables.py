"""Network Slimming's tables, the paper's numbers beside ours.

    python scripts/paper_tables.py --run vgg19-70              # one row: trains, prunes, fine-tunes, measures
    python scripts/paper_tables.py --run vgg19-70 -- --train.epochs 6 --finetune.epochs 6   # shortened, and says so
    python scripts/paper_tables.py                             # the table of all rows that have been run

A row is a config under configs/paper/; `slim-run configs/paper/ROW.yaml` does the same work, in checkpoints/paper-ROW.
What follows `--` are settings for slim-run, such as --resume, --data.root or --data.download true. Where MNIST's
training set isn't at hand, `--mnist-t10k FOLDER` makes one of its test set: 8,000 images to train and 2,000 to test.
`--cifar10-jpeg IMAGES` takes so many training images, and all test images, of CIFAR-10 as JPEG under $SLIM_DATA:

    SLIM_DATA=… python scripts/paper_tables.py --run vgg19-70 --cifar10-jpeg 5000 -- --train.epochs 6

The paper's numbers: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, tables
1 (CIFAR-10), 3 (MNIST) and 4 (several passes).
"""

import dataclasses
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shared import cifar10_jpeg, parser_of, ran_on, table, write

from slim.workbench import config
from slim.workbench.config import RunConfig

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "paper"


@dataclass
class Printed:
    """What the paper says: errors in %, share of parameters and FLOPs removed in %."""

    baseline: float
    finetuned: float
    params: float
    flops: float | None


PAPER = {
    "vgg19-70": Printed(6.34, 6.20, 88.5, 51.0),
    "densenet40-40": Printed(6.11, 5.19, 35.7, 28.4),
    "densenet40-70": Printed(6.11, 5.65, 65.2, 55.0),
    "resnet164-40": Printed(5.42, 5.08, 14.9, 23.7),
    "resnet164-60": Printed(5.42, 5.27, 35.2, 44.9),
    "mlp-mnist": Printed(1.43, 1.49, 84.4, None),
}
PASSES = [  # of VGG-19: error of the trained and of the fine-tuned network, removed in all
    Printed(6.38, 6.51, 66.7, 38.6),
    Printed(6.23, 6.11, 84.7, 52.7),
    Printed(5.87, 6.10, 91.4, 63.1),
    Printed(6.19, 6.59, 95.6, 77.2),
    Printed(5.96, 7.73, 98.3, 88.7),
    Printed(7.79, 9.70, 99.4, 95.7),
]


def small_mnist(folder: Path) -> Path:
    """A folder as torchvision keeps MNIST, from its 10,000 test images: 8,000 for training, 2,000 for testing."""
    raw = Path(tempfile.gettempdir()) / "slim-data" / "mnist-t10k" / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(10_000)
    for kind, head in (("images-idx3", 16), ("labels-idx1", 8)):
        found = [p for p in folder.glob(f"*t10k-{kind}-ubyte.gz")]
        if not found:
            raise SystemExit(f"no t10k-{kind}-ubyte.gz in {str(folder)!r}")
        content = gzip.decompress(found[0].read_bytes())
        rows = np.frombuffer(content, np.uint8, offset=head).reshape(10_000, -1)[order]
        for part, chosen in (("train", rows[:8000]), ("t10k", rows[8000:])):
            header = content[:4] + len(chosen).to_bytes(4, "big") + content[8:head]
            (raw / f"{part}-{kind}-ubyte").write_bytes(header + chosen.tobytes())
    return raw.parents[1]


def small_cifar(folder: Path, images: int) -> Path:
    """A folder of images with so many of the training images, the first of each class, and all test images."""
    made = Path(tempfile.gettempdir()) / "slim-data" / f"cifar10-jpeg-{images}"
    for source in (folder / "train").iterdir():
        (made / "train" / source.name).mkdir(parents=True, exist_ok=True)
        for image in sorted(source.iterdir())[: images // 10]:
            shutil.copyfile(image, made / "train" / source.name / image.name)
    shutil.copytree(folder / "test", made / "test", dirs_exist_ok=True)
    return made


def row_of(folder: Path, printed: Printed, trained: str, whole: dict[str, Any] | None = None) -> list[str] | None:
    """One line of the table: of the stage `trained` and of the fine-tuned network, against the unpruned one `whole`, by
    default that of the first. None where the run isn't complete."""
    found = summary(folder)
    if "finetuned" not in found:
        return None
    before, after = found.get(trained), found["finetuned"]
    whole = whole or before or found["sparse"]
    removed = {key: f"{100 * (1 - after[key] / whole[key]):.1f}" for key in ("params", "flops")}
    errors = [f"{100 * (1 - stage['accuracy']):.2f}" if stage else "not trained" for stage in (before, after)]
    flops = "" if printed.flops is None else f"{printed.flops:.1f}"
    return [
        *(f"{printed.baseline:.2f}", errors[0], f"{printed.finetuned:.2f}", errors[1]),
        *(f"{printed.params:.1f}", removed["params"], flops, removed["flops"]),
        *(f"{after['params'] / 1e6:.3g} M", f"{after['flops']:.3g}"),
    ]


def rows_of_passes(name: str, folder: Path) -> dict[str, list[str] | None]:
    """A line for each pass, against the network before the first; what the paper calls trained is with sparsity."""
    if not (folder / "config.yaml").exists():
        return {}
    passes = that_count(folder / "config.yaml")["passes"]
    folders = [folder / f"pass-{number}" for number in range(1, passes)] + [folder]
    whole = summary(folder).get("baseline")
    return {
        f"{name}, pass {number}": row_of(inner, printed, "sparse", whole)
        for number, (inner, printed) in enumerate(zip(folders, PASSES), start=1)
    }


def summary(folder: Path) -> dict[str, Any]:
    """What `slim-run` wrote of each stage so far."""
    path = folder / "summary.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def how(name: str, folder: Path) -> str:
    """In what a run departs from its config: what is not the paper's."""
    wanted, used = (that_count(path) for path in (CONFIGS / f"{name}.yaml", folder / "config.yaml"))
    told = [f"{key} {used[key]} instead of {value}" for key, value in wanted.items() if used[key] != value]
    root = Path(config.read(folder / "config.yaml")["data"]["root"]).name
    if root == "mnist-t10k":
        told.append("8,000 of MNIST's test images for training and 2,000 for testing")
    if root.startswith("cifar10-jpeg-"):
        told.append(f"{int(root.rpartition('-')[2]):,} training images instead of 50,000, as JPEG")
    return f"**shortened or changed**: {', '.join(told)}" if told else "the paper's schedule"


def that_count(path: Path) -> dict[str, Any]:
    """The settings of a file, those by default included, on which the numbers of the table depend."""
    given = dataclasses.asdict(config.updated(RunConfig(), config.read(path)))
    flat = {"passes": given["passes"], "precision": given["compute"]["precision"]}
    for section in ("data", "model", "train", "sparsity", "prune", "finetune"):
        flat |= {f"{section}.{key}": value for key, value in given[section].items()}
    return {key: value for key, value in flat.items() if key not in WHERE_IMAGES_LIE}


WHERE_IMAGES_LIE = {f"data.{key}" for key in ("root", "download", "storage", "workers", "cache")}


def main() -> None:
    parser = parser_of(__doc__)
    rows = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    parser.add_argument("--run", nargs="+", choices=rows, default=[], help="rows to run first")
    parser.add_argument("--mnist-t10k", type=Path, metavar="FOLDER", help="make do with MNIST's test set")
    parser.add_argument("--cifar10-jpeg", type=int, metavar="IMAGES", help="make do with so many training images")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, overrides = parser.parse_args(sys.argv[1:cut]), sys.argv[cut + 1 :]
    if args.cifar10_jpeg is not None and (args.cifar10_jpeg < 10 or args.cifar10_jpeg % 10):
        parser.error(f"--cifar10-jpeg {args.cifar10_jpeg}: expected 10, 20, …: as many of each of the ten classes")
    for name in args.run:
        more: list[str] = []
        if args.mnist_t10k and "mnist" in name:
            more = ["--data.root", str(small_mnist(args.mnist_t10k))]
        elif args.cifar10_jpeg and "mnist" not in name:
            source = cifar10_jpeg()
            if source is None:
                parser.error("CIFAR-10 (JPEG) isn't at hand: set SLIM_DATA to the folder that holds cifar10-jpeg")
            root = str(small_cifar(source, args.cifar10_jpeg))
            more = ["--data.name", "imagefolder", "--data.root", root, "--data.augment", "crop+flip"]
        program = "from slim.workbench.cli.run import main; main()"
        command = [sys.executable, "-c", program, str(CONFIGS / f"{name}.yaml"), *more, *overrides]
        if status := subprocess.run(command, check=False).returncode:
            raise SystemExit(status)  # slim-run has said why

    header = ["row", "trained, error %: paper", "ours", "fine-tuned, error %: paper", "ours"]
    header += ["parameters removed %: paper", "ours", "FLOPs removed %: paper", "ours", "parameters left", "FLOPs left"]
    lines, notes = [], []
    for name in rows:
        folder = args.checkpoints / f"paper-{name}"
        found = {name: row_of(folder, PAPER[name], "baseline")} if name in PAPER else rows_of_passes(name, folder)
        done = [[title, *row] for title, row in found.items() if row]
        lines += done
        notes += [f"- {name}: {how(name, folder)}"] if done else []
    if not lines:
        raise SystemExit(f"no finished run under {str(args.checkpoints)!r}: --run one of {', '.join(rows)}")
    text = f"# Network Slimming's tables\n\n{ran_on()}\n\n{table(header, lines)}\n\n"
    print(write("paper_tables", text + "\n".join(notes)).read_text())


if __name__ == "__main__":
    main()
