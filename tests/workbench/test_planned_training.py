"""slim-train with a plan as the target of its penalty, and slim-prune after it."""

from pathlib import Path

import pytest
from workbench.commands import Command

import slim
from slim.prune.plan import PruningPlan
from slim.workbench.config import DataConfig, RunConfig, updated
from slim.workbench.data import load
from slim.workbench.run.pruning import pruning_within

PLANNED = ["--sparsity.method", "proximal", "--sparsity.target", "plan"]


def test_what_is_pruned_is_what_was_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    pruned = ["--prune.ratio", "0.5", "--prune.calibration_images", "64", "--prune.round_to", "8"]
    command("train", "--epochs", "2", *PLANNED, *pruned, "--name", "run")
    sparse = slim.load("checkpoints/run/sparse.safetensors")
    zero = {name: (value == 0).nonzero()[:, 0].tolist() for name, value in sparse.named_parameters() if value.ndim == 1}
    assert sum(map(len, zero.values())) > 0.45 * 448
    printed = command("prune", "checkpoints/run/sparse.safetensors", *pruned, "--recover", "false")
    assert "ranked by Gamma" in printed
    cuts = PruningPlan.load("checkpoints/run/plan.json").cuts
    assert {name: cuts[name][0] for name, gone in zero.items() if gone} == {n: gone for n, gone in zero.items() if gone}


def test_what_cannot_be_planned_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Command) -> None:
    monkeypatch.chdir(tmp_path)
    printed = mistake("train", "--epochs", "2", *PLANNED, "--prune.max_loss", "0.01")
    assert "prune.max_loss can't be planned for in training: expected ratio, flops or params" in printed
    assert "expected a number or one of plan or null" in mistake("train", "--sparsity.target", "plans")
    assert "sparsity.target is 1.5: expected a value in (0, 1)" in mistake("train", "--sparsity.target", "1.5")


@pytest.mark.parametrize(("sparsity", "plans"), [({}, False), ({"gradual": 2}, True), ({"target": "plan"}, True)])
def test_a_training_that_plans_depends_on_what_is_to_be_pruned(sparsity: dict[str, object], plans: bool) -> None:
    assert updated(RunConfig(), {"sparsity": sparsity}).sparsity.plans is plans


@pytest.mark.parametrize(
    ("sparsity", "by_gamma"),
    [
        ({"gradual": 2}, True),
        ({"gradual": 2, "strength": 0}, False),
        ({"gradual": 2, "strength": 0, "target": 0.5, "method": "proximal"}, True),
        ({"target": "plan", "method": "proximal"}, False),
    ],
)
def test_auto_ranks_by_gamma_where_a_penalty_is_at_work(sparsity: dict[str, object], by_gamma: bool) -> None:
    asked = pruning_within(load(DataConfig(), seed=0), updated(RunConfig(), {"sparsity": sparsity}))
    score = asked.rules["score"]
    assert isinstance(score, slim.Auto) and (score.penalised, score.images is None) == (by_gamma, by_gamma)
