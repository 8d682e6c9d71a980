"""Where all weights of a small network go under no penalty, L1, L2, L3, L4 and dead-zone L1.

    python scripts/weight_distribution.py [--epochs 10] [--seeds 0 1 2]

A CNN of two convolutions and two linear layers, trained on MNIST (torchvision's files under --root; else the 10,000
test images of MNIST under $SLIM_DATA, split 4 : 1; else scikit-learn's digits), with the penalty on all weights, not
biases, by proximal steps. The page scripts/results/weight_distribution-DATE.html plays the histogram of all weights
epoch by epoch (slider), with accuracy and the share of near-zero weights beneath; the table compares the model stored
dense with the model stored sparse (torch's CSR, 32-bit indices, each layer in the smaller of both forms).
"""

import gzip
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from plotly.subplots import make_subplots
from shared import bullets, mean_and_spread, parser_of, ran_on, real_data, save, table, write
from torch import Tensor, nn

import slim
from slim.tables import points
from slim.workbench import data
from slim.workbench.config import DataConfig
from slim.workbench.data import Dataset, Split

# A power needs a larger λ the higher it is, as weights are small numbers.
PENALTIES: dict[str, slim.Penalty | None] = {
    "none": None,
    "L1": slim.L1(1e-3),
    "L2": slim.L2(1e-2),
    "L3": slim.Lp(1e-1, p=3),
    "L4": slim.Lp(1.0, p=4),
    "dead-zone L1": slim.DeadZoneL1(1e-3, a=0.02),
}
NEAR = 1e-3  # |w| below this is near zero
PAYS = 0.01  # share of the bytes that must be saved for it to be said
EDGES = np.linspace(-0.3, 0.3, 122)  # of the histogram; the middle bin holds 0


@dataclass
class Trained:
    """One network's course: `histograms[epoch][bin]`, epoch 0 being the start."""

    histograms: list[list[int]] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    near_zero: list[float] = field(default_factory=list)
    zero: float = 0.0
    dense_bytes: int = 0
    sparse_bytes: int = 0


def mnist(root: str) -> tuple[Dataset, str]:
    """The data, and what it is in words."""
    try:
        return data.load(DataConfig(name="mnist", root=root, val_fraction=0), 0), "MNIST"
    except slim.SlimError:
        files = [real_data(f"mnist-t10k-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1")]
    if None in files:
        return data.load(DataConfig(), 0), "UCI digits (MNIST isn't at hand)"
    raw = [np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8) for file in files if file]
    images = torch.from_numpy(raw[0][16:].reshape(-1, 1, 28, 28).copy())
    labels = torch.from_numpy(raw[1][8:].astype(np.int64))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    every = Split(images, labels)
    train, test = every[order[:8000]], every[order[8000:]]
    classes = [str(digit) for digit in range(10)]
    words = "the 10,000 test images of MNIST, 8,000 to train on and 2,000 to test (its training images aren't at hand)"
    return Dataset("mnist-t10k", data.spec_of(train, classes, len(train)), train, train[:0], test), words


def network(size: int) -> nn.Sequential:
    side = size // 4
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * side * side, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def weights(model: nn.Module) -> list[Tensor]:
    return [m.weight.detach() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def stored(model: nn.Module) -> tuple[int, int]:
    """Bytes of all parameters: dense in float32, and with each weight in CSR where that is smaller."""
    dense = sum(p.numel() * p.element_size() for p in model.parameters())
    saved = 0
    for weight in weights(model):
        csr = weight.flatten(1).to_sparse_csr()
        parts = (csr.crow_indices().int(), csr.col_indices().int(), csr.values())
        small = sum(part.numel() * part.element_size() for part in parts)
        saved += max(0, weight.numel() * weight.element_size() - small)
    return dense, dense - saved


def train(dataset: Dataset, penalty: slim.Penalty | None, seed: int, epochs: int, batch_size: int = 64) -> Trained:
    torch.manual_seed(seed)
    model = network(dataset.image_size[0])
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    steps = epochs * data.steps_per_epoch(len(dataset.train), batch_size)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    if penalty is not None:
        slim.sparsify(model, optimizer, penalty, method="proximal", types=["conv", "linear"])
    course = Trained()
    for epoch in range(epochs + 1):
        if epoch:
            for images, labels in data.batches(dataset.train, dataset, batch_size, shuffle_seed=100 * seed + epoch):
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
                decay.step()
        flat = torch.cat([weight.reshape(-1) for weight in weights(model)])
        inside = flat.clamp(EDGES[0] + 1e-6, EDGES[-1] - 1e-6).numpy()
        course.histograms.append(np.histogram(inside, EDGES)[0].tolist())
        course.near_zero.append(float((flat.abs() < NEAR).float().mean()))
        course.accuracy.append(accuracy(model, dataset))
    course.zero = float((flat == 0).float().mean())
    course.dense_bytes, course.sparse_bytes = stored(model)
    return course


@torch.no_grad()
def accuracy(model: nn.Module, dataset: Dataset) -> float:
    right = [(model(i).argmax(1) == y).sum() for i, y in data.batches(dataset.test, dataset, 500)]
    return float(sum(right)) / len(dataset.test)


def draw(courses: dict[str, Trained]) -> go.Figure:
    """Six histograms, and where their epoch lies on two curves."""
    titles = [*courses, "accuracy on the test images", f"share of weights with |w| < {NEAR:g}"]
    layout: Any = [[{}, {}, {}], [{}, {}, {}], [{"colspan": 2}, None, {}]]
    picture = make_subplots(3, 3, subplot_titles=titles, specs=layout, vertical_spacing=0.1)
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    colours = ["#444444", "#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e"]

    curves = {"accuracy": 1, "near_zero": 3}  # columns of the last row

    def traces(epoch: int) -> list[Any]:
        bars: list[Any] = [
            go.Bar(x=middle, y=course.histograms[epoch], name=name, marker_color=colour, showlegend=False)
            for (name, course), colour in zip(courses.items(), colours)
        ]
        for values in curves:
            for (name, course), colour in zip(courses.items(), colours):
                y = [getattr(course, values)[epoch]]
                now = {"mode": "markers", "marker": {"color": colour, "size": 9}, "showlegend": False}
                bars.append(go.Scatter(x=[epoch], y=y, name=name, **now))
        return bars

    epochs = len(next(iter(courses.values())).accuracy)
    places = [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    places += [(3, col) for col in curves.values() for _ in courses]
    for trace, (row, col) in zip(traces(0), places):
        picture.add_trace(trace, row=row, col=col)
    for values, col in curves.items():
        for (name, course), colour in zip(courses.items(), colours):
            line = {"mode": "lines", "line": {"color": colour}, "showlegend": col == 1}
            picture.add_trace(go.Scatter(y=getattr(course, values), name=name, **line), row=3, col=col)
    picture.frames = [go.Frame(name=str(e), data=traces(e), traces=[*range(len(places))]) for e in range(epochs)]
    now = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    steps = [{"label": str(e), "method": "animate", "args": [[str(e)], now]} for e in range(epochs)]
    play = {"frame": {"duration": 500, "redraw": True}, "fromcurrent": True}
    button = {"label": "play", "method": "animate", "args": [None, play]}
    for place in range(6):
        picture.update_yaxes(type="log", range=[0, 5.2], row=1 + place // 3, col=1 + place % 3)
    best = max(max(course.accuracy) for course in courses.values())
    picture.update_yaxes(range=[best - 0.1, min(1, best + 0.01)], row=3, col=1)
    picture.update_yaxes(range=[0, 1], row=3, col=3)
    picture.update_xaxes(title_text="weight", row=2)
    picture.update_xaxes(title_text="epoch", range=[-0.2, epochs - 0.8], row=3)
    picture.update_layout(
        title="All weights, by epoch (counts on a logarithmic axis)",
        height=950,
        margin={"t": 110, "b": 120},
        bargap=0,
        sliders=[{"steps": steps, "currentvalue": {"prefix": "epoch "}, "x": 0.1, "len": 0.9}],
        updatemenus=[{"type": "buttons", "buttons": [button], "y": -0.08, "x": 0.06, "showactive": False}],
    )
    return picture


def seen(courses: dict[str, list[Trained]]) -> str:
    """Return what each penalty did to the weights and their storage, a sentence for each, from the numbers alone."""

    def mean(name: str, value: Callable[[Trained], float]) -> float:
        return sum(map(value, courses[name])) / len(courses[name])

    plain, said = mean("none", lambda run: run.near_zero[-1]), []
    for name in (name for name in courses if name != "none"):
        zero, near = mean(name, lambda run: run.zero), mean(name, lambda run: run.near_zero[-1])
        change = points(*(mean(each, lambda run: run.accuracy[-1]) for each in ("none", name)))
        saved = 1 - mean(name, lambda run: run.sparse_bytes) / mean(name, lambda run: run.dense_bytes)
        pays = f"storing it sparse saves {saved:.0%}" if saved >= PAYS else "storing it sparse gains nothing"
        said.append(
            f"{name} leaves {f'{zero:.1%}' if zero else 'none'} of the weights at exactly zero and {near:.1%} near it "
            f"({plain:.1%} without a penalty), at {change} of accuracy; {pays}."
        )
    return bullets(said)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", default="data", help="where torchvision keeps MNIST")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    dataset, words = mnist(args.root)
    courses: dict[str, list[Trained]] = {name: [] for name in PENALTIES}
    for seed in args.seeds:
        for name, penalty in PENALTIES.items():
            courses[name].append(train(dataset, penalty, seed, args.epochs))
            print(f"seed {seed}, {name}: {courses[name][-1].accuracy[-1]:.4f}", flush=True)
    quick = args.epochs < parser.get_default("epochs") or len(args.seeds) < len(parser.get_default("seeds"))
    picture = draw({name: runs[0] for name, runs in courses.items()})
    see = (
        "Move the slider, or press play: each panel is the histogram of all weights under one penalty, epoch by epoch; "
        f"below are accuracy and the share of weights near zero.\n\nAt the end:\n\n{seen(courses)}"
    )
    html = save("weight_distribution", picture, title="Where the weights go", text=see, quick=quick)

    header = ["penalty", "accuracy %", "zeros %", "near zero %", "largest bin's share %", "dense kB", "sparse kB", "÷"]
    rows = []
    for name, runs in courses.items():
        size = [run.sparse_bytes / 1000 for run in runs]
        rows.append(
            [
                name if PENALTIES[name] is None else f"{name}, λ = {PENALTIES[name].strength:g}",  # type: ignore[union-attr]
                mean_and_spread([100 * run.accuracy[-1] for run in runs]),
                mean_and_spread([100 * run.zero for run in runs]),
                mean_and_spread([100 * run.near_zero[-1] for run in runs]),
                mean_and_spread([100 * max(run.histograms[-1]) / sum(run.histograms[-1]) for run in runs]),
                f"{runs[0].dense_bytes / 1000:.0f}",
                mean_and_spread(size, 0),
                f"{runs[0].dense_bytes / 1000 / (sum(size) / len(size)):.2f}",
            ]
        )
    seeds = ", ".join(map(str, args.seeds))
    count = sum(w.numel() for w in weights(network(dataset.image_size[0])))
    text = (
        f"# Where the weights go\n\n{ran_on('plotly')}\n\n"
        f"{words}; {count:,} weights, {args.epochs} epochs, batch 64, SGD 0.02 with momentum 0.9, cosine; "
        f"seeds {seeds} (mean ± standard deviation). Near zero: |w| < {NEAR:g}.\n\n"
        + table(header, rows)
        + f"\n\nSeen:\n\n{seen(courses)}"
    )
    print(write("weight_distribution", text, quick=quick).read_text())
    print(f"picture: {html}, {html.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
