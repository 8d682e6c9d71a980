"""Pruning within a training, against the same steps written out by hand, one large step, and closed forms."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import ZOO, randomise
from rich.console import Console
from torch import Tensor, nn

import slim
from slim import checkpoint
from slim.errors import SlimError
from slim.prune.budgets import Ratio
from slim.prune.plan import PruningPlan
from slim.trace.size import network_size
from slim.workbench import config, models, train
from slim.workbench.config import ComputeConfig, OptimConfig, PruneConfig, RunConfig, SparsityConfig
from slim.workbench.data import Dataset, batches
from slim.workbench.run import ROOT, Run, run_all, whole
from slim.workbench.train import Callbacks, Snapshots, fit
from slim.workbench.train.gradual import Pruning
from slim.workbench.train.state import mixed

ON_CPU = ComputeConfig(device="cpu", precision="32-true")
IMAGE = torch.zeros(1, 1, 8, 8)


def network(seed: int = 0, widths: tuple[int, int] = (12, 20)) -> nn.Sequential:
    torch.manual_seed(seed)
    first, second = widths
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1, bias=False),
        nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * second, 10),
    )


def features(model: nn.Module) -> list[int]:
    """Return the channels of every BatchNorm."""
    return [module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


class Prunes(list[tuple[int, PruningPlan]]):
    """What a training tells of its prunes: steps and plans."""

    def __call__(self, step: int, plan: PruningPlan) -> None:
        self.append((step, plan))


def test_the_budget_follows_the_cubic(digits: Dataset) -> None:
    model, prunes = network(), Prunes()
    optim = OptimConfig(epochs=5)  # 40 steps
    how = SparsityConfig(gradual=3, gradual_start=0.25, gradual_end=0.75)
    records = fit(
        model,
        digits,
        optim,
        compute=ON_CPU,
        sparsity=how,
        pruning=Pruning(Ratio(0.7), {"floor": 0}),
        callbacks=Callbacks(on_prune=prunes),
    )
    assert [step for step, _ in prunes] == [17, 23, 30]  # 10 + 20·i/3
    left = [32 - int(0.7 * (1 - (1 - i / 3) ** 3) * 32) for i in (1, 2, 3)]
    assert [plan.totals["channels"][1] for _, plan in prunes] == left
    assert [record["channels"] for record in records] == [32, 32, left[1], left[2], left[2]]
    assert sum(features(model)) == left[-1] == 10
    assert model(IMAGE).shape == (1, 10)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_fit_is_a_plain_loop_that_prunes(optimizer: str, digits: Dataset) -> None:
    """Schedule, penalty, momentum, average and all written out. Equal bit for bit."""
    lr = {"sgd": 0.05, "adam": 0.003}[optimizer]
    optim = OptimConfig(epochs=3, optimizer=optimizer, lr=lr, schedule="constant", warmup=0, weight_decay=0, ema=0.7)  # type: ignore[arg-type]
    sparsity = SparsityConfig(strength=3e-3, gradual=3, gradual_start=0.1, gradual_end=0.9)
    ours = network()
    fit(
        ours,
        digits,
        optim,
        compute=replace(ON_CPU, channels_last=False),
        seed=7,
        sparsity=sparsity,
        pruning=Pruning(slim.Flops(0.3)),
    )

    plain: nn.Module = network()
    torch.manual_seed(7)
    decayed = [p for p in plain.parameters() if p.ndim > 1]
    others = [p for p in plain.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.0}]
    stepper: torch.optim.Optimizer
    if optimizer == "sgd":
        stepper = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    else:
        stepper = torch.optim.Adam(groups, lr=lr, betas=(0.9, 0.999))
    average = {name: t.clone() for name, t in plain.state_dict().items() if t.is_floating_point()}
    plans: list[PruningPlan] = []
    due = {round(24 * (0.1 + 0.8 * i / 3)): i / 3 for i in (1, 2, 3)}
    step = 0
    for epoch in (1, 2, 3):
        plain.train()
        for images, labels in batches(digits.train, digits, 64, shuffle_seed=mixed(7, epoch), augment=True):
            loss = F.cross_entropy(plain(images), labels)
            stepper.zero_grad()
            loss.backward()
            for module in plain.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.grad += 3e-3 * module.weight.detach().sign()  # type: ignore[operator]
            stepper.step()
            step += 1
            decay = min(0.7, (1 + step) / (10 + step))
            for name, tensor in plain.state_dict().items():
                if name in average:
                    average[name] += (tensor - average[name]) * (1 - decay)
            if step in due:
                share = (1 - due[step]) ** 3
                plan = slim.plan(plain.eval(), IMAGE, slim.Flops(share + 0.3 * (1 - share)), after=plans)
                thin = plan.apply(plain).train()
                plan.prune_optimizer(stepper, plain, thin)
                plain = thin
                plans.append(plan)
                for name, cuts in plan.cuts.items():
                    for dim, gone in cuts.items():
                        stays = [i for i in range(average[name].shape[dim]) if i not in gone]
                        average[name] = average[name].index_select(dim, torch.tensor(stays))
    assert len(plans) == 3 and all(plan.removed for plan in plans)
    found = ours.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in average.items())


# Plans after other plans


def widths(model: nn.Module) -> dict[str, Tensor]:
    return {name: m.weight.detach() for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


@pytest.mark.parametrize(
    "budget, rules",
    [
        (Ratio, {}),
        (slim.Flops, {}),
        (slim.Params, {"score": slim.Gamma("max")}),
        (Ratio, {"floor": 0.4}),
        (slim.Flops, {"floor": 5, "round_to": 2}),
    ],
)
def test_small_steps_end_where_a_large_one_does(budget: type[slim.Budget], rules: dict[str, Any]) -> None:
    model = randomise(ZOO["residual"]()).eval()
    x = torch.randn(1, 3, 32, 32)
    once = slim.plan(model, x, budget(0.5), **rules).apply(model)
    plans: list[PruningPlan] = []
    thin = model
    for share in (0.15, 0.3, 0.45, 0.5):
        plan = slim.plan(thin, x, budget(share if budget is Ratio else 1 - share), **rules, after=plans)
        thin = plan.apply(thin)
        plans.append(plan)
    expected, found = widths(once), widths(thin)
    assert all(torch.equal(found[name], gamma) for name, gamma in expected.items())
    assert sum(map(len, found.values())) < sum(map(len, widths(model).values()))
    whole, left = plans[0].totals[key := budget.total][0], plan.totals[key][1]
    assert plan.achieved[budget.name] == pytest.approx(1 - left / whole if budget is Ratio else left / whole)
    again = slim.plan(thin, x, budget(0.5), **rules, after=plans)
    assert not again.removed and again.apply(thin)(x).equal(thin(x))


def test_plans_after_others_are_checked() -> None:
    model = network()
    plan = slim.plan(model, IMAGE, ratio=0.3)
    with pytest.raises(SlimError, match="has 32 prunable channels: expected the 23 that"):
        slim.plan(model, IMAGE, after=[plan])
    for rules in ({"budget": slim.Latency(0.5)}, {"ratio": 0.5, "layer_ratios": {"1": 0.5}}):
        with pytest.raises(SlimError, match="can't be planned after other plans"):
            slim.plan(plan.apply(model), IMAGE, after=[plan], **rules)


# The penalty goes on


def test_what_is_gone_counts_towards_a_target(digits: Dataset) -> None:
    model = network()
    how = SparsityConfig(strength=1e-3, method="proximal", target=0.6, gradual=4, gradual_start=0.3)
    records = fit(model, digits, OptimConfig(epochs=16), compute=ON_CPU, sparsity=how, pruning=Pruning(Ratio(0.35)))
    left = records[-1]["channels"]
    assert left == 32 - int(0.35 * 32)
    assert (32 - left + records[-1]["zero"] * left) / 32 == pytest.approx(0.6, abs=1 / 32)


@pytest.mark.parametrize("kind", ["group_lasso", "l1"])
def test_the_penalty_of_the_thin_network(kind: str) -> None:
    model = randomise(ZOO["residual"]()).eval()
    x = torch.randn(1, 3, 32, 32)

    def penalty(of: nn.Module) -> slim.Penalty:
        return slim.GroupLasso(0.1, groups=slim.coupled(of, x)) if kind == "group_lasso" else slim.L1(0.1)

    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sparsity = slim.sparsify(model, optimizer, penalty(model), method="proximal")
    model(x).square().sum().backward()
    optimizer.step()
    plan = slim.plan(model, x, ratio=0.4)
    thin = plan.apply(model)
    plan.prune_optimizer(optimizer, model, thin)
    sparsity.prune(plan, model, thin)
    named = dict(thin.named_parameters())
    assert all(named[name] is parameter for name, parameter in sparsity.parameters.items())
    fresh = slim.sparsify(thin, torch.optim.SGD(thin.parameters(), 0.1, momentum=0.9), penalty(thin))
    assert sparsity.value() == pytest.approx(fresh.value(), rel=1e-6)
    assert sparsity.statistics()["layers"].keys() == fresh.statistics()["layers"].keys()
    sparsity.strength = 1e6
    for parameter in thin.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # so strong that nothing is left of any γ
    assert sparsity.zero() == 1


# Snapshots


class Killed(BaseException):
    pass


class Killing(Snapshots):
    """Saves after each step, and dies after one of them."""

    def __init__(self, folder: Path, fatal: int, resume: bool) -> None:
        super().__init__(folder, {}, minutes=1e-9, resume=resume)
        self.fatal = fatal

    def save(self, step: int, state: Any) -> Path:
        path = super().save(step, state)
        if step == self.fatal:
            raise Killed
        return path


def test_killed_around_a_prune(digits: Dataset, tmp_path: Path) -> None:
    """Just before it, in it, right after it, and long after it."""
    how = SparsityConfig(strength=5e-3, method="proximal", target=0.6, gradual=2, gradual_start=0, gradual_end=0.5)

    def trained(fatal: int = -1, in_prune: bool = False, resume: bool = False) -> tuple[nn.Module, Prunes]:
        model, prunes = network(), Prunes()

        def on_prune(step: int, plan: PruningPlan) -> None:
            if in_prune:
                raise Killed
            prunes(step, plan)

        optim = OptimConfig(epochs=2, ema=0.9, optimizer="adamw", lr=0.01)
        more: dict[str, Any] = {"snapshots": Killing(tmp_path, fatal, resume), "compute": ON_CPU}
        fit(
            model,
            digits,
            optim,
            sparsity=how,
            pruning=Pruning(Ratio(0.5)),
            callbacks=Callbacks(on_prune=on_prune),
            **more,
        )
        return model, prunes

    expected, plans = trained()
    assert [step for step, _ in plans] == [4, 8]
    for fatal, in_prune in ((3, False), (-1, True), (4, False), (5, False), (8, False), (13, False)):
        with pytest.raises(Killed):
            trained(fatal, in_prune)
        found, same = trained(resume=True)
        assert [(step, plan.to_dict()) for step, plan in same] == [(step, plan.to_dict()) for step, plan in plans]
        ours, theirs = found.state_dict(), expected.state_dict()
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


# The whole run

SETTINGS = config.updated(
    RunConfig(),
    {
        "name": "gradual",
        "compute": {"device": "cpu"},
        "train": {"epochs": 3},
        "finetune": {"epochs": 1, "distill": 0.5},
        "sparsity": {"gradual": 4},
        "prune": {"flops": 0.3, "ratio": None},
    },
)
FOLDER = Path("checkpoints/gradual")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(whole, "_export_and_measure", lambda *_: [])  # tested elsewhere


def run(settings: RunConfig = SETTINGS, *, resume: bool = False) -> str:
    console = Console(file=io.StringIO(), width=100)
    settings = replace(settings, report=replace(settings.report, page=False))
    run_all(Run(ROOT / settings.name, settings, console, resume=resume))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_run_ends_at_its_budget(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    told = run()
    assert told.count("pruned after step") == 4
    assert "the 4 prunes within the training left nothing to remove" in told
    summary = json.loads((FOLDER / "summary.json").read_text())
    assert summary["sparse"]["prunes"] == 4 and "prunes" not in summary["pruned"]
    for stage in ("sparse", "pruned", "finetuned"):
        assert 0.25 < summary[stage]["flops"] / summary["baseline"]["flops"] <= 0.3
    plans = [
        PruningPlan.from_dict(plan) for plan in checkpoint.read_metadata(FOLDER / "finetuned.safetensors")["plans"]
    ]
    assert len(plans) == 5 and not plans[-1].removed
    thin = slim.load(FOLDER / "finetuned.safetensors")
    about = checkpoint.read_metadata(FOLDER / "sparse.safetensors")
    model: nn.Module = models.build(about["arch"], **about["arch_kwargs"]).eval()
    for plan in plans:  # each removes no more than it says
        after = plan.apply(model)
        slim.verify(model, after, plan, IMAGE)
        model = after
    assert [p.shape for p in model.parameters()] == [p.shape for p in thin.parameters()]
    lines = [json.loads(line) for line in (FOLDER / "metrics.jsonl").read_text().splitlines()]
    found = [line["channels"] for line in lines if line["stage"] == "sparse"]
    assert found == sorted(found, reverse=True) and found[0] > found[-1] == summary["sparse"]["channels"]

    fits, original = [], train.fit

    def counted(*args: Any, **more: Any) -> list[dict[str, Any]]:
        fits.append(1)
        return original(*args, **more)

    monkeypatch.setattr(train, "fit", counted)
    run(resume=True)
    assert not fits
    run(
        replace(SETTINGS, prune=PruneConfig(ratio=0.3, round_to=1)), resume=True
    )  # what to prune concerns the sparse training
    assert len(fits) == 2
    assert PruningPlan.load(FOLDER / "plan.json").achieved["ratio"] == pytest.approx(0.3, abs=0.01)


def test_several_passes(here: None) -> None:
    settings = replace(
        SETTINGS, passes=2, prune=PruneConfig(ratio=0.4, round_to=1), train=replace(SETTINGS.train, epochs=2)
    )
    run(settings)
    left = []
    for folder, plans in ((FOLDER / "pass-1", 5), (FOLDER, 10)):
        about = checkpoint.read_metadata(folder / "finetuned.safetensors")
        assert len(about["plans"]) == plans
        left.append(about["metrics"]["channels"])
        starts, ends = (PruningPlan.from_dict(about["plans"][i]).layers for i in (plans - 5, plans - 1))
        assert all(end.after >= start.before / 2 for start, end in zip(starts, ends, strict=True))
    assert left[0] < 0.7 * 448 and left[1] < 0.8 * left[0]


@pytest.mark.parametrize(
    "budget, rules",
    [
        (Ratio(0.5), {"score": slim.Residual}),
        (Ratio(0.5), {"score": slim.Magnitude()}),
        (Ratio(0.5), {"mode": "select"}),
        (slim.Flops(0.4), {"scope": "layer", "round_to": 1}),
        (slim.Flops(0.4), {"round_to": 8}),
        (slim.Flops(0.4), {"round_to": slim.Runtime()}),
    ],
    ids=str,
)
def test_every_way_to_plan(budget: slim.Budget, rules: dict[str, Any], digits: Dataset) -> None:
    """Whatever the rules, all prunes together keep the budget, as one would."""
    model, prunes = network(widths=(48, 64)), Prunes()
    whole = network_size(model, IMAGE).flops
    if rules.get("score") is slim.Residual:
        rules = {"score": slim.Residual(digits.train[:64].decoded().float())}
    how = SparsityConfig(strength=1e-3, gradual=3)
    fit(
        model,
        digits,
        OptimConfig(epochs=2),
        compute=ON_CPU,
        sparsity=how,
        pruning=Pruning(budget, rules),
        callbacks=Callbacks(on_prune=prunes),
    )
    widths = features(model)
    if isinstance(budget, Ratio):
        assert sum(widths) == 56
    else:
        assert 0.25 * whole < network_size(model, IMAGE).flops <= 0.4 * whole
    if rules.get("round_to") == 8:
        assert widths[0] % 8 == widths[1] % 8 == 0
    if "scope" in rules:
        assert widths[0] / 48 == pytest.approx(widths[1] / 64, abs=0.02)
    assert len(prunes) >= 2 and model(IMAGE).shape == (1, 10)


@pytest.mark.parametrize(
    "how, pruning, steps, message",
    [
        (
            {"gradual": 3, "gradual_start": 0.8},
            {},
            8,
            "gradual_start is 0.8: expected less than gradual_end, which is 0.7",
        ),
        ({"gradual": 9}, {}, 8, "gradual is 9: expected at most 4, as this training has 8 steps"),
        ({"gradual": 2}, {"budget": slim.Latency(0.5)}, 8, "prune.latency is 0.5, which gradual pruning can't reach"),
        ({"gradual": 2}, {"rules": {"keep": ["bn*"]}}, 8, "keep 'bn\\*' matches no layer"),
        ({"gradual": 2}, {"budget": Ratio(0.01)}, 8, "ratio 0.01 would remove nothing"),
    ],
)
def test_mistakes(how: dict[str, Any], pruning: dict[str, Any], steps: int, message: str, digits: Dataset) -> None:
    model = network()
    with pytest.raises(SlimError, match=message):
        fit(
            model,
            digits,
            OptimConfig(epochs=1),
            compute=ON_CPU,
            sparsity=SparsityConfig(**how),
            pruning=Pruning(**pruning),
        )
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), network().state_dict().values()))


@pytest.mark.slow
def test_compiled(digits: Dataset) -> None:
    """With more prunes than torch.compile keeps programs for a module (8)."""
    found, expected = network(), network()
    for model, compiled in ((found, True), (expected, False)):
        how = SparsityConfig(gradual=10, gradual_start=0.1)
        optim = OptimConfig(epochs=3, lr=0.01)
        fit(model, digits, optim, compute=replace(ON_CPU, compile=compiled), sparsity=how, pruning=Pruning(Ratio(0.5)))
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
