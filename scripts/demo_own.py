"""The shortest ways from what a user has to a fast network, each from an empty folder: time, metric, speed.

    python scripts/demo_own.py                 # all of them
    python scripts/demo_own.py shell python    # these; the others in the result are from its log

- shell: a ResNet-18 of torchvision with weights from a file, and a folder of images: pruned to half of its latency,
  fine-tuned, exported to INT8, without Python.
- python: the same, without a command.
- segmentation: the config shapes_segmentation.
- yolo: the recipe for Ultralytics (docs/recipes), where that is installed.

The result shows what ran, word for word. The images are scikit-learn's digits as files of 32 × 32 pixels, the weights
come from a short training that isn't counted; YOLO sees rendered shapes of 64 pixels.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from shared import RESULTS, add_row, parser_of, photos, ran_on, read_rows, write

ROOT = Path(__file__).resolve().parent.parent
LOG = RESULTS / "demo_own.jsonl"  # not in git

SHELL = """\
slim-run --name photos --model.arch torchvision:resnet18 --model.weights photos.pt --data.name imagefolder \\
    --data.root photos --data.image_size 32 --data.mean 0,0,0 --data.std 1,1,1 \\
    --prune.latency 0.5 --finetune.epochs 3 --export.int8 true
slim-bench checkpoints/photos/baseline.onnx checkpoints/photos/model.int8.onnx --threads 1
"""
PYTHON = """\
import slim, torch, torchvision
from torchvision.transforms import ToTensor

def loader(split):
    images = torchvision.datasets.ImageFolder(f"photos/{split}", ToTensor())
    return torch.utils.data.DataLoader(images, 64, shuffle=True)

def accuracy(network):
    return sum((network.eval()(x).argmax(1) == y).sum().item() for x, y in test) / len(test.dataset)

train, test, x = loader("train"), loader("test"), torch.rand(1, 3, 32, 32)
model = torchvision.models.resnet18(num_classes=10)
model.load_state_dict(torch.load("photos.pt", weights_only=True))
made = slim.compress(model.eval(), x, slim.Latency(0.5), train, evaluate=accuracy, epochs=3)
slim.export_onnx(model, x, "base.onnx"), slim.export_onnx(made.model, x, "thin.onnx")
print(made, slim.quantize_onnx("thin.onnx", "int8.onnx", train, test))
print(slim.benchmark({"base": "base.onnx", "int8": "int8.onnx"}, threads=1))
"""
SEGMENTATION = "slim-run shapes_segmentation\n"
YOLO = "python ultralytics_yolo.py yolov8n.yaml data.yaml 20 64\n"
DEMOS = {"shell": SHELL, "python": PYTHON, "segmentation": SEGMENTATION, "yolo": YOLO}
WHAT = {
    "shell": "A ResNet-18 with weights and a folder of images, from a shell",
    "python": "The same in Python",
    "segmentation": "Segmentation by a config",
    "yolo": "A YOLO of Ultralytics",
}
SHOWN = 30  # last lines of what is printed
ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
FOLDER = re.compile(re.escape(gettempdir()) + r"/\w+")  # where a demonstration ran


def write_weights(folder: Path, epochs: int = 2) -> None:
    """Weights of a ResNet-18, trained on these images."""
    import torch
    import torchvision
    from torchvision.transforms import ToTensor

    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    images = torchvision.datasets.ImageFolder(str(folder / "photos" / "train"), ToTensor())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(epochs):
        for inputs, labels in torch.utils.data.DataLoader(images, 64, shuffle=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    torch.save(model.state_dict(), folder / "photos.pt")


def given(name: str, folder: Path) -> None:
    """Write what the user has."""
    if name in ("shell", "python"):
        shutil.copytree(photos(), folder / "photos")
        write_weights(folder)
    if name == "yolo":
        sys.path.insert(0, str(ROOT / "tests"))
        from yolo_shapes import detection

        detection(folder, 256, 64, 64)
        recipe = ROOT / "docs" / "recipes" / "ultralytics_yolo.py"
        (folder / recipe.name).write_text(recipe.read_text())


def demonstrated(name: str) -> dict[str, Any]:
    """Run a demonstration in a new folder; return its time and what it printed last."""
    with TemporaryDirectory() as where:
        folder = Path(where)
        given(name, folder)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        own = {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "110", "YOLO_AUTOINSTALL": "false"}
        command = [sys.executable, "-c", PYTHON] if name == "python" else ["bash", "-ec", DEMOS[name]]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=os.environ | own, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return {"name": name, "seconds": seconds, "code": DEMOS[name], "output": done.stdout.splitlines()[-SHOWN:]}


def plain(line: str) -> str:
    """Return a line without colours, and without where it ran."""
    return FOLDER.sub(".", ESCAPE.sub("", line)).rstrip()


def report(rows: list[dict[str, Any]]) -> str:
    text = f"# From what a user has, from an empty folder\n\n{ran_on('torchvision', 'onnxruntime')}\n"
    for row in rows:
        language = "python" if row["name"] == "python" else "sh"
        text += f"\n## {WHAT[row['name']]}: {row['seconds'] / 60:.0f} min\n\n```{language}\n{row['code']}```\n\n"
        lines = [plain(line) for line in row["output"] if "━" not in line]  # bars
        text += "Its last lines:\n\n```\n" + "\n".join(lines) + "\n```\n"
    return text


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("demos", nargs="*", default=[*DEMOS], help=f"some of {', '.join(DEMOS)}")
    args = parser.parse_args()
    for name in args.demos:
        add_row(LOG, demonstrated(name))
    latest = {row["name"]: row for row in read_rows(LOG) if row["code"] == DEMOS[row["name"]]}
    print(write("demo_own", report([latest[name] for name in DEMOS if name in latest])).read_text())


if __name__ == "__main__":
    main()
