"""One linear model with a sparse truth: what L1, L2, elastic net, L0, weight decay and dropout do to it.

    python scripts/regularizers.py

400 examples of 30 features, 8 of which matter; y = X·w + noise. Each penalty is minimised through its proximal steps,
and L1, L2 and elastic net are compared with scikit-learn's Lasso, Ridge and ElasticNet on the same objective. The
pictures go to scripts/results/regularizers-DATE.html: the weights that each ends with, and how the weights shrink
step by step when only the regulariser acts (L1: by a constant, L2: by a share).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from shared import bullets, listed, parser_of, ran_on, save, table, write
from sklearn.linear_model import ElasticNet, Lasso, Ridge
from torch import Tensor, nn

import slim

SEED, EXAMPLES, FEATURES, TRUE = 0, 400, 30, 8
STEPS = 4000


@dataclass
class Problem:
    x: Tensor  # float64 [examples, features]
    y: Tensor  # [examples]
    truth: Tensor  # [features]
    test_x: Tensor
    test_y: Tensor

    def loss(self, w: Tensor) -> Tensor:
        """‖y − Xw‖² / (2n), scikit-learn's."""
        return (self.x @ w - self.y).square().mean() / 2

    def r2(self, w: Tensor) -> float:
        """Share of the test examples' variance that w explains."""
        return 1 - float((self.test_x @ w - self.test_y).square().mean() / self.test_y.var(correction=0))


def problem(seed: int = SEED) -> Problem:
    rng = np.random.default_rng(seed)
    truth = np.where(np.arange(FEATURES) < TRUE, rng.choice([-1, 1], FEATURES) * rng.uniform(0.3, 2, FEATURES), 0)
    mixing = np.eye(FEATURES) + 0.4 * rng.normal(size=(FEATURES, FEATURES)) / np.sqrt(FEATURES)
    x = rng.normal(size=(2 * EXAMPLES, FEATURES)) @ mixing
    y = x @ truth + rng.normal(size=2 * EXAMPLES)
    parts = (x[:EXAMPLES], y[:EXAMPLES], truth, x[EXAMPLES:], y[EXAMPLES:])
    return Problem(*(torch.from_numpy(part) for part in parts))


def minimise(given: Problem, penalty: slim.Penalty | None, steps: int = STEPS, lr: float = 0.02) -> Tensor:
    """The weights after full-batch SGD with momentum, the penalty acting by proximal steps."""
    model = nn.Linear(FEATURES, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    if penalty is not None:
        slim.sparsify(model, optimizer, penalty, method="proximal", types="linear")
    for _ in range(steps):
        optimizer.zero_grad()
        given.loss(model.weight[0]).backward()
        optimizer.step()
    return model.weight.detach()[0]


def sklearn_twins(given: Problem, strength: float, l1_ratio: float) -> dict[str, np.ndarray]:
    """The same objectives solved by scikit-learn. Its Ridge minimises ‖y − Xw‖² + α‖w‖²: α = n·λ."""
    x, y = given.x.numpy(), given.y.numpy()
    exact: dict[str, Any] = {"fit_intercept": False, "tol": 1e-12, "max_iter": 1_000_000}
    return {
        "L1": Lasso(alpha=strength, **exact).fit(x, y).coef_,
        "L2": Ridge(alpha=strength * len(y), fit_intercept=False, tol=1e-12).fit(x, y).coef_,
        "elastic net": ElasticNet(alpha=strength, l1_ratio=l1_ratio, **exact).fit(x, y).coef_,
    }


def dropout(given: Problem, share: float, steps: int = STEPS) -> Tensor:
    """Linear regression with dropout on its inputs, averaged over the last half of the steps."""
    generator = torch.Generator().manual_seed(SEED)
    w = torch.zeros(FEATURES, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], 0.01)
    mean = torch.zeros_like(w)
    for step in range(steps):
        kept = (torch.rand(given.x.shape, generator=generator) >= share) / (1 - share)
        optimizer.zero_grad()
        ((given.x * kept @ w - given.y).square().mean() / 2).backward()
        optimizer.step()
        if step >= steps // 2:
            mean += w.detach() / (steps - steps // 2)
    return mean


def dropout_closed_form(given: Problem, share: float) -> Tensor:
    """What dropout on inputs minimises on average: ridge with a strength of its own for each feature,
    ‖y − Xw‖²/(2n) + ½·share/(1 − share)·Σ w_j²·mean(x_j²) (Wager, Wang and Liang, NIPS 2013)."""
    gram = given.x.T @ given.x / EXAMPLES
    return torch.linalg.solve(gram + share / (1 - share) * gram.diag().diag(), given.x.T @ given.y / EXAMPLES)


def decay_against_l2(given: Problem, strength: float, steps: int = 200) -> float:
    """The largest difference between plain SGD with weight_decay=λ and with the L2 penalty's subgradient."""
    ends = []
    for by_penalty in (False, True):
        model = nn.Linear(FEATURES, 1, bias=False).double()
        nn.init.ones_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, weight_decay=0.0 if by_penalty else strength)
        if by_penalty:
            slim.sparsify(model, optimizer, slim.L2(strength), types="linear")
        for _ in range(steps):
            optimizer.zero_grad()
            given.loss(model.weight[0]).backward()
            optimizer.step()
        ends.append(model.weight.detach())
    return float((ends[0] - ends[1]).abs().max())


def shrinkage(penalty: slim.Penalty, start: Tensor, lr: float = 0.05, steps: int = 60) -> Tensor:
    """[steps + 1, weights]: proximal steps with no loss at all."""
    path = [start]
    for _ in range(steps):
        path.append(penalty.prox(path[-1], lr))
    return torch.stack(path)


def main() -> None:
    parser_of(__doc__).parse_args()
    torch.set_num_threads(1)
    given = problem()
    strength, l1_ratio = 0.1, 0.5
    penalties: dict[str, slim.Penalty | None] = {
        "none": None,
        "L1": slim.L1(strength),
        "L2": slim.L2(strength),
        "elastic net": slim.ElasticNet(strength, l1_ratio),
        "L0": slim.L0(strength**2 / 2),  # the same threshold at a step of 1
    }
    found = {name: minimise(given, penalty) for name, penalty in penalties.items()}
    found["dropout 20 %"] = dropout(given, 0.2)
    twins = sklearn_twins(given, strength, l1_ratio)

    header = ["regulariser", "zeros of 30", "zeros that should be (22)", "‖w − truth‖", "test R²", "from scikit-learn"]
    rows = []
    for name, w in found.items():
        gap = f"{np.abs(w.numpy() - twins[name]).max():.1e}" if name in twins else ""
        right = int(((w == 0) & (given.truth == 0)).sum())
        distance = f"{float((w - given.truth).norm()):.3f}"
        rows.append([name, int((w == 0).sum()), right, distance, f"{given.r2(w):.4f}", gap])
    decay = decay_against_l2(given, strength)
    drop = float((found["dropout 20 %"] - dropout_closed_form(given, 0.2)).abs().max())

    start = torch.tensor([2.0, 1.0, 0.5, 0.2], dtype=torch.float64)
    paths = {"L1": shrinkage(slim.L1(1.0), start), "L2": shrinkage(slim.L2(1.0), start)}
    steps = [
        [name, *(f"{float(path[k, 0]):.4f}" for k in (0, 1, 2, 3, 10, 39, 40)), int((path[-1] == 0).sum())]
        for name, path in paths.items()
    ]

    see = (
        "Above, the weights that each regulariser ends with beside the truth; below, single weights step by step when "
        f"nothing but the regulariser acts.\n\n{seen(given, found, paths)}"
    )
    html = save("regularizers", draw(given, found, paths), title="Regularisers on one linear model", text=see)
    text = (
        f"# Regularisers on one sparse linear model\n\n{ran_on('scikit-learn')}\n\n"
        f"{EXAMPLES} examples, {FEATURES} features of which {TRUE} matter, seed {SEED}; λ = {strength}, "
        f"{STEPS} full-batch steps of SGD, 0.02 with momentum 0.9; L0 with λ = {strength**2 / 2:g}.\n\n"
        + table(header, rows)
        + f"\n\nWeight decay and the L2 penalty under plain SGD differ by {decay:.1e} at most after 200 steps. "
        f"Dropout ends {drop:.3f} from the ridge that it is on average.\n\n"
        "A weight of 2 when only the regulariser acts (step size 0.05, λ = 1), and how many of four such weights "
        "(2, 1, 0.5, 0.2) are exactly zero after 60 steps:\n\n"
        + table(["", "start", "step 1", "2", "3", "10", "39", "40", "zeros"], steps)
        + f"\n\nSeen:\n\n{seen(given, found, paths)}"
    )
    print(write("regularizers", text).read_text())
    print(f"picture: {html}")


def seen(given: Problem, found: dict[str, Tensor], paths: dict[str, Tensor]) -> str:
    """Return what the regularisers did, from the numbers alone."""
    said = []
    for name, path in paths.items():
        steps = (path[:-1] - path[1:])[:, 0]
        steps = steps[path[1:, 0] > 0]  # until it arrives
        shares = steps / path[: len(steps), 0]
        constant = bool((steps - steps[0]).abs().max() < 1e-9)
        takes = f"{float(steps[0]):.3g} at each step" if constant else f"{float(shares.mean()):.1%} of it at each step"
        arrived = int((path[-1] == 0).sum())
        ends = f"brings {arrived} of {path.shape[1]} weights to exactly zero" if arrived else "brings none to zero"
        said.append(f"{name} alone takes {takes} from a weight of {float(path[0, 0]):g} and {ends}.")
    empty = given.truth == 0
    right = {name: int(((w == 0) & empty).sum()) for name, w in found.items()}
    missed = {name: float((w - given.truth).norm()) for name, w in found.items()}
    zeros = listed([f"{count} ({name})" for name, count in sorted(right.items(), key=lambda each: -each[1]) if count])
    best = min(missed, key=lambda name: missed[name])
    none = listed([name for name, count in right.items() if not count and name != "none"])
    said.append(f"Of {int(empty.sum())} weights that should be zero, found: {zeros}; no zero by {none}.")
    return bullets([*said, f"Closest to the truth: {best}, {missed[best]:.3f} from it."])


def draw(given: Problem, found: dict[str, Tensor], paths: dict[str, Tensor]) -> go.Figure:
    titles = ["weights found", "only the regulariser acts: a weight by steps"]
    picture = make_subplots(2, 1, subplot_titles=titles, vertical_spacing=0.16)
    feature = np.arange(FEATURES)
    picture.add_bar(x=feature, y=given.truth.numpy(), name="truth", row=1, col=1, marker_color="gray")
    for name, w in found.items():
        picture.add_bar(x=feature, y=w.numpy(), name=name, row=1, col=1)
    for (name, path), dash in zip(paths.items(), ("solid", "dot")):
        for weight in range(path.shape[1]):
            line: dict[str, Any] = {"dash": dash}
            label = f"{name}, from {float(path[0, weight]):g}"
            picture.add_scatter(y=path[:, weight].numpy(), name=label, line=line, row=2, col=1)
    for row, axes in ((1, ("feature", "weight")), (2, ("step", "weight"))):
        picture.update_xaxes(title_text=axes[0], row=row, col=1)
        picture.update_yaxes(title_text=axes[1], row=row, col=1)
    picture.update_layout(height=900, title="Regularisers on one sparse linear model", barmode="group")
    return picture


if __name__ == "__main__":
    main()
