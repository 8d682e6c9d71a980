"""What `sparsify` refuses and says, to the letter, and its small functions against values worked out by hand."""

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import slim
from slim.errors import SlimError
from slim.prune.plan import PruningPlan
from slim.sparsity.act import PATIENCE
from slim.sparsity.control import TargetPlan, TargetShare, removed_by, scheduled
from slim.sparsity.penalties import penalty
from slim.sparsity.steps import StepSizes, _stacked, knows
from slim.sparsity.targets import chosen, coupled, has_scales, parameter_groups


def network() -> Any:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Linear(2, 2))


def sgd(model: nn.Module, **settings: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **settings})


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": 3}, "int is no optimizer: expected one of torch.optim, then a penalty"),
    ({"penalty": 1e-4}, "0.0001 is no penalty: expected one such as slim.L1(1e-4)"),
    (
        {"penalty": slim.L0(1.0)},
        "method 'subgradient' can't act with L0: expected proximal",
    ),
    (
        {"penalty": slim.Polarization(1.0), "method": "proximal"},
        "method 'proximal' can't act with Polarization: expected subgradient or loss",
    ),
    ({"model": 3}, "model is of type int: expected sparsify(model, optimizer, penalty)"),
    ({"floor": "a"}, "floor is of type str: expected a share"),
    ({"steps": 1.5}, "steps is of type float: expected the number of steps to come"),
    ({"target": "half"}, "target is of type str: expected a share of zeros, a plan, or None"),
    (
        {"schedule": "ramp"},
        "steps is None: a schedule or a target needs the number of steps to come, at least 1",
    ),
    (
        {"schedule": "ramp", "steps": 0},
        "steps is 0: a schedule or a target needs the number of steps to come, at least 1",
    ),
    (
        {"target": 0.5, "steps": -3, "method": "proximal"},
        "steps is -3: a schedule or a target needs the number of steps to come, at least 1",
    ),
    (
        {"target": 0.5, "steps": 9},
        "a target can't go with method 'subgradient' and schedule 'constant': expected 'proximal', which makes exact "
        "zeros to count, and 'constant', as λ is adapted",
    ),
    (
        {"target": 0.5, "steps": 9, "method": "proximal", "schedule": "decay"},
        "a target can't go with method 'proximal' and schedule 'decay': expected 'proximal', which makes exact "
        "zeros to count, and 'constant', as λ is adapted",
    ),
    (
        {"target": 0.5, "steps": 9, "method": "proximal", "penalty": slim.L1(0)},
        "sparsity strength is 0: a target needs a λ above 0 to start from, such as 1e-4",
    ),
    (
        {"target": 0.0, "steps": 9, "method": "proximal"},
        "sparsity target is 0.0: expected a share of zeros in (0, 1)",
    ),
    ({"target": 1, "steps": 9, "method": "proximal"}, "sparsity target is 1: expected a share of zeros in (0, 1)"),
    (
        {"target": 0.5, "steps": 9, "method": "proximal", "floor": 1.0},
        "sparsity floor is 1.0: expected a share of each layer in [0, 1)",
    ),
    (
        {"target": 0.5, "steps": 9, "method": "proximal", "floor": -0.1},
        "sparsity floor is -0.1: expected a share of each layer in [0, 1)",
    ),
    (
        {"target": 0.9, "steps": 9, "method": "proximal", "floor": 0.25},
        "sparsity target is 0.9: expected at most 0.700 with a floor of 25%",
    ),
    ({"targets": []}, "targets is empty: expected a shell pattern such as '*', which stands for all"),
    ({"targets": 3}, "targets is of type int: expected a shell pattern, several, or strengths by pattern"),
    ({"targets": {"*": -1}}, "the relative strength of '*' is -1: expected a number ≥ 0"),
    ({"types": 3}, "types is of type int: expected a type of layers or several"),
    (
        {"targets": "x"},
        "no BatchNorm layer with a trainable scale matches 'x': there is nothing to penalise",
    ),
    (
        {"targets": ["1", "x"], "types": "conv"},
        "no trainable weight of conv matches '1': there is nothing to penalise",
    ),
]


@pytest.mark.parametrize(("settings", "said"), SETTINGS)
def test_what_is_refused(settings: dict[str, Any], said: str) -> None:
    model = network()
    given = {"model": model, "optimizer": sgd(model), "penalty": slim.L1(0.1), **settings}
    with pytest.raises(SlimError) as error:
        slim.sparsify(given.pop("model"), given.pop("optimizer"), given.pop("penalty"), **given)
    assert str(error.value) == said


def test_optimizers_that_are_refused() -> None:
    model = network()
    some = torch.optim.SGD([*model[:3].parameters()], 0.1)
    with pytest.raises(SlimError) as error:
        slim.sparsify(model, some, slim.L1(0.1))
    assert str(error.value) == (
        "the optimizer lacks 3.weight: expected all 2 parameters that match '*'; give it the model's parameters, or "
        "narrow targets"
    )
    with pytest.raises(SlimError) as error:
        slim.sparsify(model, torch.optim.RMSprop(model.parameters(), 0.1), slim.L1(0.1), method="proximal")
    assert str(error.value) == (
        "method 'proximal' can't tell the step size of RMSprop: expected SGD, Adam or AdamW of torch.optim, or method "
        "'subgradient' or 'auto'"
    )

    class Bare(torch.optim.SGD):
        def __init__(self, parameters: Any) -> None:
            self.param_groups = [{"params": list(parameters)}]

    with pytest.raises(SlimError) as error:
        slim.sparsify(model, Bare(model.parameters()), slim.L1(0.1))
    assert str(error.value) == (
        "Bare has no hooks, as it leaves out what torch.optim.Optimizer does to begin with: expected the optimizer "
        "that it wraps"
    )


def test_weight_decay_on_what_is_penalised_is_warned_of() -> None:
    model = network()
    said = (
        r"^weight decay acts on 2 of the 2 penalised parameters too, such as 1\.weight: build the optimizer from "
        r"slim\.parameter_groups\(model, weight_decay\) to keep it off them$"
    )
    with pytest.warns(UserWarning, match=said):
        slim.sparsify(model, sgd(model, weight_decay=0.1), slim.L1(0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slim.sparsify(model, torch.optim.SGD(parameter_groups(model, 0.1), 0.1), slim.L1(0.1))


def test_an_optimizer_that_takes_no_step_is_warned_of_once() -> None:
    model = network()[1]
    slim.sparsify(model, sgd(model), slim.L1(0.1))
    other = sgd(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(PATIENCE + 4):
            model(torch.randn(2, 4, 2, 2)).sum().backward()
            other.step()
            assert len(caught) == (step >= PATIENCE)  # seen on the pass after
    assert str(caught[0].message) == (
        "the penalised parameters changed 5 times, and the optimizer given to sparsify took no step: the penalty "
        "doesn't act. Give it the one whose step() is called"
    )


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({}, "proximal"),
        ({"optimizer": torch.optim.RMSprop}, "subgradient"),
        ({"penalty": slim.Polarization(0.1)}, "subgradient"),
        ({"optimizer": torch.optim.Adam}, "proximal"),
    ],
)
def test_auto_takes_the_method_that_can_act(settings: dict[str, Any], method: str) -> None:
    model = network()
    optimizer = settings.get("optimizer", torch.optim.SGD)(model.parameters(), 0.1)
    sparsity = slim.sparsify(model, optimizer, settings.get("penalty", slim.L1(0.1)), method="auto")
    assert sparsity.method == method and knows(optimizer) == (not isinstance(optimizer, torch.optim.RMSprop))


def test_a_penalty_at_work_in_one_line() -> None:
    model = network()
    with torch.no_grad():
        model[1].weight[:3] = 0.009
    sparsity = slim.sparsify(model, sgd(model), slim.L1(0.25), schedule="ramp", steps=9)
    assert str(sparsity) == "L1(strength=0.25) by subgradient on 10 values of 2 layers, step 0 of 9: 30.0% near zero"
    plain = slim.sparsify(model, sgd(model), slim.Lp(0.25, p=0.5), targets="1", method="loss")
    assert str(plain) == "Lp(strength=0.25, p=0.5) by loss on 4 values of 1 layers, step 0: 75.0% near zero"
    with pytest.raises(SlimError, match=r"^loss\(\) with method 'subgradient' would count the penalty twice: expected"):
        sparsity.loss()


def test_statistics_are_those_of_plain_loops() -> None:
    model = network()
    values = [[0.0, 0.5, -0.005, 2.0], [0.0, 0.0, 1.0, 0.009, 0.01, -1.0]]
    with torch.no_grad():
        for layer, own in zip((1, 3), values):
            model[layer].weight.copy_(torch.tensor(own))
    sparsity = slim.sparsify(model, sgd(model), slim.L1(0.25))
    found = sparsity.statistics(bins=4)
    assert found["zero"] == sparsity.zero() == 0.3 and found["near_zero"] == sparsity.near_zero() == 0.5
    assert found["layers"] == {"1.weight": [0.25, 0.5], "3.weight": [2 / 6, 0.5]}
    assert found["histogram"] == {"max": 2.0, "counts": [6, 1, 2, 1]}
    assert sparsity.statistics(threshold=0.6)["near_zero"] == 0.7
    assert (
        sum(sparsity.statistics()["histogram"]["counts"]) == 10
        and len(sparsity.statistics()["histogram"]["counts"]) == 40
    )
    assert sparsity.value() == pytest.approx(0.25 * sum(abs(x) for own in values for x in own), rel=1e-6)


def test_state_of_a_penalty_goes_on() -> None:
    def made() -> tuple[Any, torch.optim.SGD, Any]:
        torch.manual_seed(0)
        model = network()
        optimizer = sgd(model, momentum=0.9)
        return model, optimizer, slim.sparsify(model, optimizer, slim.L1(0.1), method="proximal", target=0.5, steps=20)

    def steps(model: Any, optimizer: torch.optim.Optimizer, some: range) -> None:
        for step in some:
            optimizer.zero_grad()
            goals = torch.rand(10, generator=torch.Generator().manual_seed(step))
            (torch.cat([model[1].weight, model[3].weight]) - goals).square().sum().backward()
            optimizer.step()

    (model, optimizer, sparsity), (again, other, resumed) = made(), made()
    steps(model, optimizer, range(8))
    state = sparsity.state_dict()
    assert state.keys() == {"step", "strength", "peak", "sums", "pushed"}
    assert (state["step"], state["peak"], len(state["sums"][0])) == (8, 0.1, 2)
    assert state["sums"][0] == pytest.approx([sum(0.9**k for k in range(8))] * 2) and len(state["pushed"][0]) == 5
    again.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch shares the tensors
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    steps(model, optimizer, range(8, 20))
    steps(again, other, range(8, 20))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    assert sparsity.state_dict() == resumed.state_dict() and sparsity.zero() == 0.5
    fresh = made()[2].state_dict()
    assert (fresh["step"], fresh["pushed"], fresh["sums"]) == (0, [None], [[0.0, 0.0]])


# -- targets -----------------------------------------------------------------------------------------------------------


def test_targets_by_name_and_type() -> None:
    model = network()
    for settings, found in (
        ({}, {"1.weight": 1.0, "3.weight": 1.0}),
        ({"targets": "[34]"}, {"3.weight": 1.0}),
        ({"targets": ("1", "*")}, {"1.weight": 1.0, "3.weight": 1.0}),
        ({"targets": {"1": 0.5, "*": 2}}, {"1.weight": 0.5, "3.weight": 2}),
        ({"types": "linear"}, {"4.weight": 1.0}),
        ({"types": ["linear", "bias"]}, {"4.weight": 1.0, "4.bias": 1.0}),
        ({"types": [nn.Linear, "conv"]}, {"0.weight": 1.0, "2.weight": 1.0, "4.weight": 1.0}),
        ({"types": ("batchnorm", "bias"), "targets": "1"}, {"1.weight": 1.0, "1.bias": 1.0}),
    ):
        assert {name: strength for name, (_, strength) in chosen(model, **settings).items()} == found
    assert list(chosen(nn.BatchNorm2d(2))) == ["weight"]
    with pytest.raises(SlimError, match=r"unknown layer type 'batchnorms'.*did you mean 'batchnorm'"):
        chosen(model, types="batchnorms")


def test_groups_with_and_without_weight_decay() -> None:
    model = network()

    def names(groups: list[dict[str, Any]]) -> list[tuple[float, list[str]]]:
        known = {id(p): name for name, p in model.named_parameters()}
        return [(group["weight_decay"], [known[id(p)] for p in group["params"]]) for group in groups]

    matrices = ["0.weight", "2.weight", "4.weight"]
    vectors = [name for name, _ in model.named_parameters() if name not in matrices]
    assert names(parameter_groups(model, 0.1)) == [(0.1, matrices), (0.0, vectors)]
    assert names(parameter_groups(model, 0.1, decay_norm=True)) == [
        (0.1, [name for name, _ in model.named_parameters()])
    ]
    [kept, off] = names(parameter_groups(model, 0.1, types="conv", targets="0"))
    assert kept == (0.1, ["2.weight", "4.weight"]) and off[0] == 0.0 and "0.weight" in off[1]
    model[0].requires_grad_(False)
    assert names(parameter_groups(model, 0.1))[0] == (0.1, ["2.weight", "4.weight"])


def test_networks_with_scales() -> None:
    for layer, has in (
        (nn.BatchNorm2d(2), True),
        (nn.BatchNorm2d(2, affine=False), False),
        (nn.GroupNorm(1, 2), False),
    ):
        assert has_scales(nn.Sequential(layer)) is has


def test_labels_of_coupled_channels() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.a(x) + self.b(x))

    found = coupled(Adds(), torch.zeros(1, 3, 2, 2))
    assert found["a.weight"] == found["b.weight"] == found["a.bias"] and len({*found["a.weight"]}) == 2
    assert not {*found["a.weight"]} & {*found["out.weight"]}


# -- control -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step", "steps", "strength"),
    [
        *(("constant", 0, 1, 2.0), ("warmup", 0, 1, 2.0), ("warmup", 0, 20, 1.0), ("warmup", 1, 20, 2.0)),
        *(
            ("warmup", 19, 20, 2.0),
            ("warmup", 2, 100, 0.6),
            ("ramp", 0, 4, 0.5),
            ("ramp", 3, 4, 2.0),
            ("ramp", 9, 4, 2.0),
        ),
        *(("decay", 0, 4, 2.0), ("decay", 3, 4, 0.5), ("decay", 4, 4, 0.0), ("decay", 9, 4, 0.0)),
    ],
)
def test_schedules(name: str, step: int, steps: int, strength: float) -> None:
    assert scheduled(name, 2.0, step, steps) == pytest.approx(strength)


def test_schedules_that_are_none() -> None:
    with pytest.raises(SlimError, match=r"unknown schedule 'ramps'.*did you mean 'ramp'"):
        scheduled("ramps", 1.0, 0, 1)


LAYERS = torch.tensor([0] * 6 + [1] * 4)


def test_a_target_share_over_time() -> None:
    target = TargetShare(0.5, 0.2, 100, LAYERS)
    assert (target.count, target.every, target.kept.tolist(), target.ends.tolist()) == (5, 1, [2, 1], [6, 10])
    assert [target.share(step) for step in (0, 10, 40, 70, 100)] == pytest.approx([0, 0, 0.5 * 0.875, 0.5, 0.5])
    assert [target.acts(step) for step in (0, 9, 10, 11, 100)] == [False, False, True, True, True]
    assert [target.share_of(zeros) for zeros in (0, 3, 10)] == [0, 0.3, 1]
    assert [TargetShare(0.5, 0, steps, LAYERS).every for steps in (1, 199, 200, 1000, 5000)] == [1, 1, 2, 10, 10]
    assert target.next(2.0, 40, target.share(40)) == pytest.approx(2.0)
    assert target.next(2.0, 100, 0.5) == pytest.approx(2.0) and target.next(2.0, 100, 0.6) == pytest.approx(2.0)
    behind = ((0.5 + 0.02) / (0.0625 + 0.02)) ** 0.4
    assert target.next(2.0, 40, 0.0) == pytest.approx(2 * behind) and target.next(1e6, 40, 0.0) == 1e6
    assert target.next(2.0, 10, 0.5) == pytest.approx(2 * (0.02 / 0.52) ** 0.4)


def test_a_target_share_after_pruning() -> None:
    target = TargetShare(0.5, 0.2, 100, LAYERS)
    target.follow(torch.tensor([True] * 4 + [False] * 2 + [True] * 3 + [False]), {})
    assert (target.count, target.layers.tolist(), target.ends.tolist()) == (2, [0] * 4 + [1] * 3, [4, 7])
    assert target.share_of(0) == 0.3 and target.share_of(2) == 0.5
    magnitude = torch.tensor([0.4, 0.1, 0.3, 0.2, 0.6, 0.5, 0.01])
    assert target.pushed(magnitude).tolist() == [False, True, False, False, False, False, True]
    target.follow(torch.tensor([True] * 2 + [False] * 5), {})
    assert target.count == 0 and not target.pushed(magnitude[:2]).any()


def plan_of(cuts: dict[str, dict[int, list[int]]], shapes: dict[str, list[int]]) -> PruningPlan:
    return PruningPlan({}, {}, {}, cuts, shapes)


def test_a_target_plan_is_asked_for_once() -> None:
    asked = []

    def make() -> PruningPlan:
        asked.append(torch.is_grad_enabled())
        return plan_of({"a": {0: [1, 4]}, "c": {0: [0]}}, {"a": [6]})

    parameters = {"a": torch.zeros(6), "b": torch.zeros(2, 2)}
    target = TargetPlan(make, 100, LAYERS, parameters)
    assert [target.acts(step) for step in (29, 30)] == [False, True] and (target.whole, target.every) == (10, 1)
    with torch.no_grad():
        marks = [target.pushed(torch.zeros(10)) for _ in range(2)]
    assert asked == [True] and marks[0].nonzero()[:, 0].tolist() == [1, 4] and target.target == 0.2
    target.follow(torch.tensor([True, False, True, True] + [True] * 6), {"a": torch.zeros(5), "b": torch.zeros(2, 2)})
    assert target.pushed(torch.zeros(9)).nonzero()[:, 0].tolist() == [3] and target.layers.tolist() == [0] * 5 + [1] * 4
    with pytest.raises(SlimError, match=r"^target\(\) is of type int: expected what slim\.plan returned$"):
        TargetPlan(lambda: 3, 100, LAYERS, parameters).pushed(torch.zeros(10))  # type: ignore[arg-type, return-value]


def test_values_that_a_plan_removes() -> None:
    parameters = {"a": torch.zeros(3), "b": torch.zeros(2, 3), "c": torch.zeros(1)}
    plan = plan_of({"a": {0: [2]}, "b": {0: [1], 1: [0]}, "c": {0: []}}, {"a": [3], "b": [2, 3]})
    assert removed_by(plan, parameters).tolist() == [False, False, True, True, False, False, True, True, True, False]
    with pytest.raises(SlimError) as error:
        removed_by(plan, {"a": torch.zeros(4)})
    assert str(error.value) == "the target's plan isn't of this model: a is [4]: expected [3]"
    with pytest.raises(SlimError) as error:
        removed_by(plan, {"x": torch.zeros(4)})
    assert (
        str(error.value) == "the target's plan removes none of the penalised values: expected one that removes channels"
    )


# -- steps and penalties -----------------------------------------------------------------------------------------------


def test_numbers_and_tensors_as_one() -> None:
    one = torch.tensor(2.0)
    assert _stacked([0.5, 0.5]) == 0.5 and _stacked([one, one]) is one
    found = _stacked([0.5, one])
    assert isinstance(found, Tensor) and found.tolist() == [0.5, 2.0]
    different = _stacked([0.5, 0.25])
    assert isinstance(different, Tensor) and different.tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, [0.1, 0.1, 0.1]),
        ({"momentum": 0.5}, [0.1, 0.15, 0.175]),
        ({"momentum": 0.5, "nesterov": True}, [0.15, 0.175, 0.1875]),
        ({"momentum": 0.5, "dampening": 0.2}, [0.1, 0.13, 0.145]),
    ],
)
def test_steps_per_unit_of_a_steady_gradient(settings: dict[str, Any], sizes: list[float]) -> None:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    optimizer = torch.optim.SGD(parameters, 0.1, **settings)
    steps = StepSizes(optimizer, parameters, [0, 0])
    for size in sizes:
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        before = parameters[0].detach().clone()
        steps.before_step(optimizer)
        optimizer.step()
        assert steps.after_step(optimizer) == pytest.approx(size)
        assert float((before - parameters[0]).mean()) == pytest.approx(size)
    parameters[0].grad = None  # one that had no gradient doesn't step
    steps.before_step(optimizer)
    optimizer.step()
    found = steps.after_step(optimizer)
    assert isinstance(found, Tensor) and found[:3].tolist() == [0, 0, 0] and (found[3:] > 0.09).all()


def test_a_momentum_that_was_there_before_has_reached_its_limit() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.5, dampening=0.2)
    for _ in range(60):
        parameter.grad = torch.ones(3)
        optimizer.step()
    steps = StepSizes(optimizer, [parameter], [0])
    steps.before_step(optimizer)
    optimizer.step()
    assert steps.after_step(optimizer) == pytest.approx(0.1 * 0.8 / 0.5)


REFUSALS: list[tuple[Callable[[], object], str]] = [
    (lambda: slim.L1(-1), "sparsity strength is -1: expected a number ≥ 0"),
    (lambda: slim.L1(True), "sparsity strength is True: expected a number ≥ 0"),
    (lambda: slim.ElasticNet(1, l1_ratio=-0.1), "l1_ratio is -0.1: expected a number in [0, 1]"),
    (lambda: slim.ElasticNet(1, l1_ratio=1.1), "l1_ratio is 1.1: expected a number in [0, 1]"),
    (lambda: slim.Lp(1, p=0), "p is 0: expected a number above 0"),
    (lambda: slim.DeadZoneL1(1, a=-1), "a is -1: expected a number ≥ 0"),
    (lambda: slim.TransformedL1(1, a=0), "a is 0: expected a number above 0"),
    (lambda: slim.L0(1).subgradient(torch.ones(1)), "L0 has no subgradient: expected method 'proximal'"),
    (
        lambda: slim.Polarization(1).prox(torch.ones(1), 1.0),
        "Polarization has no proximal operator: expected method 'subgradient' or 'loss'",
    ),
    (
        lambda: slim.GroupLasso(1, torch.arange(3)).value(torch.ones(4)),
        "GroupLasso has groups for 3 values, not 4: expected one for each",
    ),
    (
        lambda: slim.GroupLasso(1, {"a": [1, 2]}).bind({"a": torch.zeros(3)}),
        "GroupLasso has 2 labels for a: expected 3",
    ),
    (lambda: penalty("l1", 1, p=3), "penalty l1 can't take {'p': 3}: expected no settings"),
    (lambda: penalty("group_lasso", 1, p=3), "penalty group_lasso can't take {'p': 3}: expected groups"),
]


@pytest.mark.parametrize(("make", "said"), REFUSALS)
def test_penalties_that_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(SlimError, match=f"^{re.escape(said)}$"):
        make()


def test_limits_of_settings() -> None:
    assert [
        slim.L1(0).strength,
        slim.ElasticNet(1, 0).l1_ratio,
        slim.ElasticNet(1, 1).l1_ratio,
        slim.DeadZoneL1(1, 0).a,
    ] == [0, 0, 1, 0]
    assert (slim.ElasticNet(1).l1_ratio, slim.Lp(1).p, slim.DeadZoneL1(1).a) == (0.5, 0.5, 0.1)
    assert (slim.TransformedL1(1).a, slim.Polarization(1).t) == (1.0, 1.2)


def test_groups_of_a_lasso() -> None:
    """Labels of coupled channels are one group; 0 is a group of its own; each row of a matrix is a channel."""
    lasso = slim.GroupLasso(1.0, {"a": [7, 0, 0], "b": [7, 3]})
    lasso.bind({"a": torch.zeros(3), "b": torch.zeros(2, 2)})
    x = torch.tensor([3.0, 1.0, 2.0, 4.0, 0.0, 5.0, 12.0])
    groups = [[0, 3, 4], [1], [2], [5, 6]]
    value = sum(len(g) ** 0.5 * float(x[g].norm()) for g in groups)
    assert float(lasso.value(x)) == pytest.approx(value)
    expected = torch.zeros(7)
    for g in groups:
        expected[g] = x[g].norm() / len(g) ** 0.5
    torch.testing.assert_close(lasso.magnitude(x), expected)
    lasso.thin(torch.tensor([True, False, True, True, True, True, True]))
    assert float(lasso.value(x[[0, 2, 3, 4, 5, 6]])) == pytest.approx(value - 1)
