"""The experiments under scripts/: their closed forms, and that each teaches what it says."""

import math
import sys
from pathlib import Path

import loss_surface
import numpy as np
import pytest
import regularizers
import shared
import torch
import weight_distribution

import slim

P, X = 0.9, 1.3


def test_results_name_the_command_that_ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "export_sample.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), "--only", "timm:dla34", "--out", "a b.jsonl"])
    assert shared.command() == "python scripts/export_sample.py --only timm:dla34 --out 'a b.jsonl'"
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "other.py")])
    assert shared.command() == f"python {tmp_path}/other.py"


def test_loss_and_gradient_of_the_surface() -> None:
    """Against PyTorch's cross-entropy with soft targets, and its autograd."""
    beta = torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        beta * X, torch.tensor([P, 1 - P], dtype=torch.float64).expand(20, 2), reduction="none"
    )
    torch.testing.assert_close(loss_surface.loss(beta, P, X), expected)
    expected.sum().backward()
    torch.testing.assert_close(loss_surface.gradient(beta.detach(), P, X), beta.grad)


@pytest.mark.parametrize("kind", loss_surface.KINDS)
@pytest.mark.parametrize("strength", [0.05, 0.3, 0.6])
def test_minima_in_closed_form(kind: str, strength: float) -> None:
    """No point of a fine grid is lower, and one next to it is hardly higher."""
    one = loss_surface.penalty(kind, strength)
    best = torch.tensor(loss_surface.minimum(kind, strength, P, X), dtype=torch.float64)
    lowest = float(loss_surface.loss(best, P, X) + one.value(best))
    axis = torch.linspace(-2, 2, 201, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    heights = loss_surface.loss(grid, P, X)
    if kind in ("L1", "both"):
        heights = heights + strength * grid.abs().sum(1)
    if kind in ("L2", "both"):
        heights = heights + strength / 2 * grid.square().sum(1)
    assert heights.min() >= lowest - 1e-12
    assert heights.min() <= lowest + 1e-3


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.6])
def test_who_reaches_zero_on_the_surface(strength: float) -> None:
    ends = {m: loss_surface.descend(m, "L1", strength, P, X)[-1] for m in ("subgradient", "proximal", "coordinate")}
    best = torch.tensor(loss_surface.minimum("L1", strength, P, X), dtype=torch.float64)
    lowest = float(loss_surface.loss(best, P, X) + strength * best.abs().sum())
    empty = strength >= (P - 0.5) * X
    for method in ("proximal", "coordinate"):
        height = float(loss_surface.loss(ends[method], P, X) + strength * ends[method].abs().sum())
        assert height == pytest.approx(lowest, abs=1e-9)
        assert (ends[method] == 0).sum() == (2 if empty else 1)
    assert (ends["subgradient"] != 0).all()
    assert (loss_surface.descend("proximal", "L2", strength, P, X) != 0).all()


def test_regularizers_agree_with_scikit_learn() -> None:
    given = regularizers.problem()
    twins = regularizers.sklearn_twins(given, 0.1, 0.5)
    penalties = {"L1": slim.L1(0.1), "L2": slim.L2(0.1), "elastic net": slim.ElasticNet(0.1, 0.5)}
    for name, penalty in penalties.items():
        ours = regularizers.minimise(given, penalty, steps=1000).numpy()
        np.testing.assert_allclose(ours, twins[name], atol=1e-4)
        assert ((ours == 0) == (twins[name] == 0)).all()
    assert (twins["L1"] == 0).sum() > (twins["elastic net"] == 0).sum() > (twins["L2"] == 0).sum() == 0


def test_weight_decay_is_l2_under_plain_sgd() -> None:
    assert regularizers.decay_against_l2(regularizers.problem(), 0.3, steps=100) < 1e-14


def test_l1_takes_a_constant_and_l2_a_share() -> None:
    start = torch.tensor([2.0, 0.52], dtype=torch.float64)
    by_l1 = regularizers.shrinkage(slim.L1(1.0), start, lr=0.05)
    expected = (start - 0.05 * torch.arange(61)[:, None].double()).clamp(min=0)
    torch.testing.assert_close(by_l1, expected, rtol=0, atol=1e-12)
    assert (by_l1[-1] == 0).all()
    by_l2 = regularizers.shrinkage(slim.L2(1.0), start, lr=0.05)
    torch.testing.assert_close(by_l2, start / 1.05 ** torch.arange(61)[:, None].double())
    assert (by_l2 > 0).all()


def test_dropout_is_a_ridge_on_average() -> None:
    given = regularizers.problem()
    ours, expected = regularizers.dropout(given, 0.2, steps=2000), regularizers.dropout_closed_form(given, 0.2)
    plain = torch.linalg.lstsq(given.x, given.y[:, None]).solution[:, 0]
    assert float((ours - expected).norm()) < 0.1 * float((plain - expected).norm())


def test_l0_finds_the_truth_without_shrinking_it() -> None:
    given = regularizers.problem()
    by_l0, by_l1 = (regularizers.minimise(given, p, steps=1000) for p in (slim.L0(0.005), slim.L1(0.1)))
    assert float((by_l0 - given.truth).norm()) < float((by_l1 - given.truth).norm())
    assert ((by_l0 == 0) & (given.truth == 0)).sum() >= 18


def test_weight_distribution_on_digits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SLIM_DATA", raising=False)
    monkeypatch.setattr(shared, "RESULTS", tmp_path)
    dataset, words = weight_distribution.mnist("/nowhere")
    assert "digits" in words
    courses = {n: weight_distribution.train(dataset, p, 0, epochs=6) for n, p in weight_distribution.PENALTIES.items()}
    for course in courses.values():
        assert len(course.histograms) == len(course.accuracy) == 7
        assert len({sum(counts) for counts in course.histograms}) == 1
        assert course.accuracy[-1] > 0.5 > 2 * course.accuracy[0]
    assert [name for name, course in courses.items() if course.zero > 0] == ["L1"]
    picture = weight_distribution.draw(courses)
    page = shared.save("test", picture)
    text = page.read_text(encoding="utf-8")
    assert len(picture.frames) == 7 and "plotly.js v" in text and "<script src=" not in text


def course(zero: float, near: float, accuracy: float, sparse: int) -> weight_distribution.Trained:
    return weight_distribution.Trained([[1]], [accuracy], [near], zero, dense_bytes=1000, sparse_bytes=sparse)


@pytest.mark.parametrize(
    ("l1", "said"),
    [
        (course(0.9, 0.92, 0.97, 300), ["L1 leaves 90.0% of the weights at exactly zero", "saves 70%", "−1.00 points"]),
        (course(0.025, 0.3, 0.98, 1000), ["L1 leaves 2.5% of the weights", "gains nothing", "+0.00 points"]),
        (course(0.0, 0.1, 0.99, 1000), ["L1 leaves none of the weights at exactly zero", "gains nothing"]),
    ],
)
def test_what_is_seen_of_weights_follows_from_the_numbers(l1: weight_distribution.Trained, said: list[str]) -> None:
    text = weight_distribution.seen({"none": [course(0.0, 0.1, 0.98, 1000)], "L1": [l1]})
    assert all(part in text for part in said) and "(10.0% without a penalty)" in text
    assert ("saves" in text) == (l1.sparse_bytes < 1000)


def test_what_is_seen_of_the_surface_follows_from_the_ends() -> None:
    ends = [loss_surface.End("L1", 0.1, "proximal", 0.0, 1), loss_surface.End("L1", 0.45, "proximal", 2e-9, 2)]
    ends += [loss_surface.End("L1", 0.1, "subgradient", 3e-3, 0), loss_surface.End("L2", 0.1, "proximal", 0.0, 0)]
    first, second = loss_surface.seen(ends).splitlines()
    assert "proximal ended at an exact zero, at the origin itself for λ = 0.45" in first
    assert "2e-09 (proximal) and 0.003 (subgradient)" in first
    assert second.startswith("- With L2, no method ended at an exact zero;")


def test_what_is_seen_of_regularizers_follows_from_the_weights() -> None:
    given = regularizers.problem()
    start = torch.tensor([2.0, 0.2], dtype=torch.float64)
    paths = {"L1": regularizers.shrinkage(slim.L1(1.0), start), "L2": regularizers.shrinkage(slim.L2(1.0), start)}
    found = {"perfect": given.truth.clone(), "dense": given.truth + 0.1}
    text = regularizers.seen(given, found, paths)
    assert "L1 alone takes 0.05 at each step from a weight of 2 and brings 2 of 2 weights to exactly zero." in text
    assert "L2 alone takes 4.8% of it at each step from a weight of 2 and brings none to zero." in text
    assert "found: 22 (perfect); no zero by dense." in text and "Closest to the truth: perfect, 0.000" in text


def test_a_quick_run_never_takes_the_place_of_a_full_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shared, "RESULTS", tmp_path)
    full, quick = shared.write("a", "full"), shared.write("a", "quick", quick=True)
    assert full.read_text() == "full\n" and quick.read_text() == "quick\n" and "_quick" in quick.name


def test_sparse_storage_is_what_csr_takes() -> None:
    model = weight_distribution.network(8)
    dense, sparse = weight_distribution.stored(model)
    assert dense == sparse == 4 * sum(p.numel() for p in model.parameters())
    layer = model[7]
    assert isinstance(layer, torch.nn.Linear)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, :5] = 1.0
    rows, count = layer.weight.shape[0], layer.weight.numel()
    assert weight_distribution.stored(model) == (dense, dense - 4 * count + 4 * (rows + 1) + 8 * 5)


def test_mean_and_spread() -> None:
    assert shared.mean_and_spread([1.0, 2.0, 4.0]) == f"{7 / 3:.2f} ± {math.sqrt(7 / 3):.2f}"
