"""Small functions of planning, rebuilding and migrating, each by itself against values worked out by hand."""

from collections import OrderedDict, deque
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import slim
from slim.prune.calibration import drawn, fitting, part
from slim.prune.groups import Groups
from slim.prune.migrate import _readings, _shapes, _thin_copies, _thinned, _Unknown, replacements
from slim.prune.plan import PruningPlan
from slim.prune.residual_blocks import Added
from slim.prune.scores import name_of_score, ranked
from slim.prune.stored_sizes import StoredSizes, _attempts
from slim.prune.taylor import _own_loss
from slim.trace.check import Misfit
from slim.trace.given import _counted, _is_said, _several, kept_size
from slim.trace.traced import trace

ONE, TWO, THREE = (np.arange(n, n + 2) for n in (10, 20, 30))


@pytest.mark.parametrize(
    ("stale", "attempts"),
    [
        ([], []),
        (["a.x"], [["a.x"]]),
        (["a.x", "a.y"], [["a.x"], ["a.y"], ["a.x", "a.y"]]),
        (["a.x", "b.x"], [["a.x"], ["a.x", "b.x"], ["b.x"]]),
        (
            ["a.x", "b.z", "a.y"],
            [["a.x"], ["a.y"], ["a.x", "a.y"], ["a.x", "b.z", "a.y"], ["b.z"]],
        ),
    ],
)
def test_stored_sizes_are_tried_alone_and_together(stale: list[str], attempts: list[list[str]]) -> None:
    assert [list(each) for each in _attempts(dict.fromkeys(stale, ONE))] == attempts


GIVEN = [[(2, ONE), (3, TWO)], [(3, THREE)], [(2, TWO), (4, ONE)]]


@pytest.mark.parametrize(
    ("value", "counted"),
    [
        *((2, ONE), (3, TWO), (4, ONE), (5, None), ([2, 3], [ONE, TWO]), ([3], [THREE]), ([2], [ONE])),
        *(((2, 4), [TWO, ONE]), ([2, 9], None), ([2, 3, 4], None)),
    ],
)
def test_what_a_stored_size_counts(value: Any, counted: Any) -> None:
    found: Any = _counted(GIVEN, value)
    assert found is counted if not isinstance(counted, list) else all(map(np.array_equal, found, counted))


def test_multiples_of_a_stored_size() -> None:
    labels = np.arange(6)
    for value, own in ((3, [0, 1, 2]), (2, [0, 1]), (6, None), (1, None), (4, None)):
        found = _several([[(6, labels)]], value)
        assert (None if found is None else found[0].tolist()) == own
        assert found is None or [*found[0], *found[1]] == labels.tolist()
    assert _several([[(6, labels)]], [3]) is None and _several([[(6, labels[:5])]], 3) is None
    many = [[(9, labels)]] * 2 + [[(6, labels)]]
    assert _several(many, 3) is not None and _several([[(9, labels)], *many], 3) is None  # too far back


def test_what_stays_of_stored_sizes() -> None:
    kept = np.arange(40) % 2 == 0
    assert kept_size(np.arange(10, 15), kept) == 3
    assert kept_size([np.arange(10, 15), np.arange(3), np.arange(0)], kept) == [3, 2, 0]
    assert _is_said(["a", "0", "b"], {"a", "b", "c"}) and not _is_said(["a", "x"], {"a"}) and _is_said([], set())


# -- scores ------------------------------------------------------------------------------------------------------------


class Tables(nn.Module):
    """Channels that an embedding, a convolution, a transposed one and a linear layer make together."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(5, 4), nn.Conv2d(3, 4, 1)
        self.up, self.line = nn.ConvTranspose2d(3, 4, 1), nn.Linear(3, 4)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table(torch.zeros(1, dtype=torch.long, device=x.device))[..., None, None]
        return self.out(self.conv(x) + self.up(x) + rows + self.line(x.mean((2, 3)))[..., None, None])


@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_magnitudes_of_what_makes_channels_together(p: float) -> None:
    torch.manual_seed(0)
    model, score = Tables(), slim.Magnitude(p)
    traced = trace(model, torch.zeros(1, 3, 2, 2))
    groups = Groups(traced, model, counted=ranked(score, traced))
    rows = [model.table.weight.T, model.conv.weight, model.up.weight.transpose(0, 1), model.line.weight]
    norms = [row.detach().double().flatten(1).norm(p, 1) for row in rows]
    expected = sum(norm / norm.mean() for norm in norms) / 4
    mine = groups.member[groups.layer == groups.names.index("conv")]
    np.testing.assert_allclose(score(groups)[mine], expected.numpy(), rtol=1e-6)


def test_names_of_scores() -> None:
    def largest(groups: Groups) -> Any:
        return groups

    from slim.prune.scores import GivenValues

    scores: list[Any] = [slim.Gamma(), slim.Random(), largest, GivenValues({})]
    assert [name_of_score(score) for score in scores] == ["Gamma", "Random", "largest", "given values"]


def test_random_scores_are_those_of_numpy() -> None:
    model = Tables()
    groups = Groups(trace(model, torch.zeros(1, 3, 2, 2)), model)
    assert slim.Random(3)(groups).tolist() == np.random.default_rng(3).random(len(groups.roots)).tolist()


def test_a_networks_own_loss_is_of_classes_or_of_all_that_it_gives() -> None:
    draw = torch.Generator
    logits = torch.randn(6, 3, requires_grad=True)
    drawn = torch.multinomial(logits.detach().double().softmax(1), 1, generator=draw().manual_seed(0))[:, 0]
    torch.testing.assert_close(_own_loss(logits, draw().manual_seed(0)), F.cross_entropy(logits, drawn))
    for outputs in ([logits[:, :1]], [logits[:, :, None]], [logits, logits[:, :2]]):
        generator = draw().manual_seed(0)
        noise = [torch.randn(t.shape, generator=generator, dtype=torch.float64).float() for t in outputs]
        expected = sum((t * n).sum() for t, n in zip(outputs, noise))
        torch.testing.assert_close(_own_loss(outputs, draw().manual_seed(0)), expected)
    fixed = _own_loss([logits, torch.ones(6, 3)], draw().manual_seed(0))  # what no gradient reaches isn't among them
    torch.testing.assert_close(fixed, F.cross_entropy(logits, drawn))


# -- state of optimizers -----------------------------------------------------------------------------------------------

CUTS = {0: [1], 1: [0, 2]}


@pytest.mark.parametrize(
    ("state", "shape", "readings"),
    [
        ((), (4, 5), [{}]),
        ((1,), (4, 5), [{}]),
        ((1, 1), (4, 5), [{}]),
        ((4, 5), (4, 5), [CUTS]),
        ((4, 1), (4, 5), [{0: [1]}]),
        ((1, 5), (4, 5), [{1: [0, 2]}]),
        ((4,), (4, 5), [{0: [1]}]),
        ((5,), (4, 5), [{0: [0, 2]}]),
        ((4, 3), (4, 5, 3), [{0: [1]}]),
        ((5, 3), (4, 5, 3), [{0: [0, 2]}]),
        ((4, 4), (4, 5), [{0: [1], 1: [1]}]),
        ((5, 5), (4, 5), [{0: [0, 2], 1: [0, 2]}]),
        ((5,), (5, 5), [{0: [0, 2]}, {0: [1]}]),
        ((7, 7), (4, 5), []),
        ((3,), (4, 5), []),
        ((4, 6), (4, 5), []),
        ((4, 5, 2), (4, 5), []),
        ((5,), (4,), []),
    ],
)
def test_how_state_follows_a_parameter(state: tuple[int, ...], shape: tuple[int, ...], readings: Any) -> None:
    assert _readings(state, shape, CUTS) == readings


def test_state_is_thinned_where_its_axes_tell() -> None:
    whole, rows, columns = torch.arange(20.0).view(4, 5), torch.arange(4.0), torch.arange(5.0)
    step = torch.tensor(3.0)
    given = {"whole": whole, "list": [rows, columns], "both": (whole, whole), "step": step, "name": "x", "none": None}
    thin = {key: _thinned(value, (4, 5), CUTS) for key, value in given.items()}
    left = whole[[0, 2, 3]][:, [1, 3, 4]]
    assert torch.equal(thin["whole"], left) and thin["step"] is step and (thin["name"], thin["none"]) == ("x", None)
    assert torch.equal(thin["list"][0], rows[[0, 2, 3]]) and torch.equal(thin["list"][1], columns[[1, 3, 4]])
    assert isinstance(_thinned(torch.zeros(5), (5, 5), {0: [1]}), _Unknown)
    assert torch.equal(_thinned(rows, (4, 4), {0: [1], 1: [1]}), rows[[0, 2, 3]])  # either way the same
    assert isinstance(_thinned(torch.zeros(3), (4, 5), CUTS), _Unknown)
    three = _thinned([whole, whole, whole], (4, 5), CUTS)
    assert len(three) == 3 and all(torch.equal(each, left) for each in three)
    vector = _thinned([rows], (4,), {0: [1]})
    assert torch.equal(vector[0], rows[[0, 2, 3]])


def test_shapes_of_state() -> None:
    state = {"a": torch.zeros(2, 3), "b": [torch.zeros(1), 3, torch.zeros(())], "c": 5, "d": [1, 2], "e": "text"}
    assert _shapes(state) == {"a": (2, 3), "b": [(1,), ()]}


def planned() -> tuple[nn.Sequential, PruningPlan]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    return model, slim.plan(model, torch.zeros(2, 4), ratio=0.4, floor=0, round_to=1, score={"0": [2.0, 1.0, 3.0]})


def test_what_takes_the_place_of_each_tensor() -> None:
    model, plan = planned()
    assert plan.removed == {"0": [1]}
    thin = plan.apply(model)
    found = replacements(plan.cuts, model, thin)
    for name, parameter in model.named_parameters():
        new = found[id(parameter)]
        assert new.name == name and new.tensor is thin.get_parameter(name) and new.tensors == [new.tensor]
        assert new.stays(parameter).sum() == new.tensor.numel()
    first, last = (model.get_parameter(f"{n}.weight") for n in (0, 2))
    assert (
        found[id(first)].stays(first)[:, 0].tolist() == found[id(last)].stays(last)[0].tolist() == [True, False, True]
    )
    with pytest.raises(slim.SlimError, match=r"^the thin network doesn't come from this model: it has no 0\.weight$"):
        replacements(plan.cuts, model, nn.Linear(2, 2))


def test_copies_of_parameters_that_an_optimizer_keeps() -> None:
    model, plan = planned()
    found = replacements(plan.cuts, model, plan.apply(model))
    optimizer: Any = torch.optim.SGD(model.parameters(), 0.1)
    parameters = list(model.parameters())
    optimizer.slow = [p.detach().clone() + 1 for p in parameters]
    optimizer.nested = [[p.detach().clone() for p in parameters], "text"]
    optimizer.themselves, optimizer.fewer = list(parameters), [parameters[0].detach().clone()]
    optimizer.alike = [torch.zeros(1) for _ in parameters]
    _thin_copies(optimizer, [[*parameters]], found)
    shapes = [tuple(found[id(p)].tensor.shape) for p in parameters]
    assert [tuple(t.shape) for t in optimizer.slow] == [tuple(t.shape) for t in optimizer.nested[0]] == shapes
    assert torch.equal(optimizer.slow[0], parameters[0].detach()[[0, 2]] + 1)
    assert all(a is b for a, b in zip(optimizer.themselves, parameters)) and len(optimizer.fewer[0]) == 3
    assert [t.shape for t in optimizer.alike] == [torch.Size([1])] * 4


def test_optimizers_of_other_networks_are_refused() -> None:
    model, plan = planned()
    thin, other = plan.apply(model), nn.Linear(2, 2)
    with pytest.raises(slim.SlimError) as error:
        plan.prune_optimizer(torch.optim.SGD(other.parameters(), 0.1), model, thin)
    assert str(error.value) == "the SGD holds no parameter of this model: expected the optimizer that trained it"
    both = torch.optim.SGD([*model.parameters(), *other.parameters()], 0.1)
    plan.prune_optimizer(both, model, thin)
    assert all(a is b for a, b in zip(both.param_groups[0]["params"], [*thin.parameters(), *other.parameters()]))


def test_state_that_starts_anew_is_told() -> None:
    model, plan = planned()
    optimizer: Any = torch.optim.SGD(model.parameters(), 0.1)
    first, *_ = model.parameters()
    optimizer.state[first] = {"odd": torch.zeros(7), "history": deque([1]), "order": OrderedDict()}
    thin = plan.apply(model)
    with pytest.warns(
        UserWarning, match=r"^SGD starts anew for 1 parameters, such as 0\.weight: what it keeps of them"
    ):
        plan.prune_optimizer(optimizer, model, thin)
    assert not optimizer.state


def test_sizes_at_a_misfit_that_are_tried() -> None:
    """Neither what is followed already, nor what was tried in vain, nor what stays as large."""
    sizes = StoredSizes(trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), torch.zeros(1, 3, 2, 2)))
    kept = np.ones(20, bool)
    kept[[3, 4]] = False
    changes, stays = np.arange(2, 6), np.arange(6, 9)
    sizes.followed, sizes._refuted = {"a.followed": changes}, {"a.refuted"}
    stored: Any = {
        "a.followed": changes,
        "a.refuted": changes,
        "a.stays": stays,
        "a.tried": changes,
        "a.list": [stays, changes],
    }
    assert [*sizes._stale(Misfit(changes, "", 0, stored), kept)] == ["a.tried", "a.list"]


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "batches"), [(64, 16), (1000, 2), (1024, 1), (1025, 1), (2000, 1)])
def test_so_many_batches_are_taken_that_they_hold_1024_images(size: int, batches: int) -> None:
    given = iter([torch.zeros(size, 1, 1, 1)] * 20)
    _, count = drawn(given, 1, "scores")
    assert count == size * batches and len([*given]) == 20 - batches


@pytest.mark.parametrize(
    ("images", "size", "fit"),
    [(100, (400, 400), 40), (100, (4096, 4096), 8), (10, (32, 32), 10), (9, (9999, 9999), 8)],
)
def test_of_large_images_fewer_fit(images: int, size: tuple[int, int], fit: int) -> None:
    assert fitting(images, size) == fit


def test_images_are_drawn_in_one_order() -> None:
    images = torch.arange(40.0).view(10, 1, 2, 2)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    found, count = drawn({"x": images, "n": torch.tensor(3)}, 10, "scores")
    assert count == 10 and torch.equal(found["x"], images[order]) and int(found["n"]) == 3
    assert torch.equal(part((images, 5), slice(2))[0], images[:2]) and torch.equal(part(images, order), images[order])


@pytest.mark.parametrize(
    ("images", "least", "said"),
    [
        (torch.zeros(3, 1), 4, "scores from [3] images: expected one batch of at least 4"),
        (
            (torch.zeros(3, 1), torch.zeros(2, 1)),
            1,
            "scores from [2, 3] images: expected one batch, a tensor [N, C, H, W] for example",
        ),
        (torch.tensor([[0.0], [float("nan")]]), 1, "scores: image 1 has values that aren't finite: expected numbers"),
    ],
)
def test_images_that_are_refused(images: Any, least: int, said: str) -> None:
    with pytest.raises(slim.SlimError) as error:
        drawn(images, least, "scores")
    assert str(error.value) == said


def test_the_share_of_a_stream_that_a_branch_adds() -> None:
    added: Any = object.__new__(Added)
    added.residual, added.spread = np.diag([0.5, 1.5]), np.array([1.0, 3.0])
    assert added.share == pytest.approx(0.2)
    added.spread = np.zeros(2)
    assert added.share == pytest.approx(2e30)
