"""Tasks: what they add up to over batches, and that nothing but classification knows of accuracy."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from slim.errors import SlimError
from slim.workbench import tasks
from slim.workbench.config import ComputeConfig, OptimConfig
from slim.workbench.data import Loaders
from slim.workbench.report import terminal
from slim.workbench.tasks import Classification, Metric, Task
from slim.workbench.train import Distillation, Snapshots, fit

ON_CPU = ComputeConfig(device="cpu", precision="32-true")


class Distance(Task):
    """A number for each sample, by squared error; the metric is the mean absolute error, of which less is better."""

    metric = Metric("error", "min", share=False, unit=" px")

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).square().mean()

    def tally(self, outputs: Any, targets: Tensor) -> Tensor:
        return torch.stack([(outputs[:, 0] - targets).abs().sum(), targets.new_tensor(len(targets))])


def batches(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(20, 5, generator=generator) for _ in range(count)]
    return [(x, 10 + 3 * x[:, 0] - x[:, 1]) for x in made]


def test_a_task_of_ones_own_trains_by_its_loss_and_goes_back_to_its_best() -> None:
    """The epoch with the least error is the best, not the one with the most."""
    torch.manual_seed(0)
    model = nn.Linear(5, 1)
    data = Loaders(batches(8, 0), val=batches(2, 1), task=Distance())
    records = fit(model, data, OptimConfig(epochs=12, patience=12, lr=0.05), compute=ON_CPU)
    errors = [record["val_error"] for record in records]
    assert not any("accuracy" in key for key in records[0])
    inputs, targets = (torch.cat(half) for half in zip(*batches(2, 1)))
    left = (model(inputs)[:, 0] - targets).abs().mean().item()
    assert left == pytest.approx(min(errors), rel=1e-5) and left < 0.2 < errors[0] / 10


def test_its_epochs_and_stages_are_shown_in_its_own_terms() -> None:
    metric, record = Distance.metric, {"train_loss": 4.0, "train_error": 1.5, "val_error": 1.25, "epoch": 1}
    assert terminal.epoch_line(record, metric) == "loss 4.000  error 1.5 px  val 1.25 px"
    console = Console(width=80, record=True, file=io.StringIO())
    stage = {"error": 1.25, "metric": metric.to_dict(), "params": 5}
    console.print(terminal.epoch_table([record], metric))
    console.print(terminal.stage_table({"baseline": stage}, "training"))
    text = console.export_text()
    assert text.count("1.25 px") == 2 and "accuracy" not in text and "acc" not in text


@pytest.mark.parametrize(
    ("metric", "better", "worse", "shown", "change"),
    [
        (Metric("accuracy", "max"), 0.9, 0.5, "90.00%", "−40.00 points"),
        (Metric("error", "min", share=False, unit=" px"), 1.0, 2.5, "1 px", "+1.5 px"),
        (Metric("miss_rate", "min"), 0.01, 0.02, "1.00%", "+1.00 points"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_metrics_know_their_direction(metric: Metric, better: float, worse: float, shown: str, change: str) -> None:
    assert metric.is_better(better, than=worse) and not metric.is_better(worse, than=better)
    assert metric.is_better(worse, than=metric.worst) and metric.loss(better, worse) == abs(better - worse)
    assert metric.format(better) == shown and metric.format_change(better, worse) == change
    assert Metric.of(json.loads(json.dumps({"metric": metric.to_dict()}))) == metric


def test_accuracy_counts_what_is_right() -> None:
    scores = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]])
    labels, task = torch.tensor([0, 1, 1, 1]), Classification(2)
    halves = task.tally(scores[:1], labels[:1]) + task.tally(scores[1:], labels[1:])
    assert task.value(halves) == task.value(task.tally(scores, labels)) == 0.75
    assert task.value(task.tally(scores, torch.eye(2)[labels])) == 0.75  # of mixed images
    assert torch.equal(task.predict(scores), scores.softmax(1))


def test_names() -> None:
    assert tasks.build_task("classification", classes=4) == Classification(4)
    with pytest.raises(SlimError, match="unknown task 'clasification': did you mean 'classification'"):
        tasks.build_task("clasification")


TASK = """
from slim.workbench.tasks import Metric, Task

class Mine(Task):
    metric = Metric("loss", "min", share=False)
    def loss(self, outputs, targets): ...
    def tally(self, outputs, targets): ...

def nothing(): return 3
"""


def test_a_task_in_the_users_own_file_is_run_only_where_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mytask.py").write_text(TASK)
    (tmp_path / "broken.py").write_text("1 / 0")
    for name in ("mytask.py:Mine", "mytask:Mine"):
        with pytest.raises(SlimError, match=f"would run 'mytask.*: expected --allow-code {name}"):
            tasks.build_task(name)
        monkeypatch.syspath_prepend(tmp_path)
        assert tasks.build_task(name, allow_code=[name]).metric.direction == "min"
    for name, message in (
        ("mytask.py:Mein", "unknown task in mytask.py 'Mein': did you mean 'Mine'"),
        ("mytask.py:nothing", "made int: expected a slim.workbench.tasks.Task"),
        ("missing.py:Mine", r"can't import the task 'missing.py:Mine' \(FileNotFoundError"),
        ("broken.py:Mine", r"can't import the task 'broken.py:Mine' \(ZeroDivisionError: division by zero\)"),
    ):
        with pytest.raises(SlimError, match=message) as error:
            tasks.build_task(name, allow_code=name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", ["label_smoothing", "mixup", "cutmix"])
def test_settings_that_mean_nothing_to_a_task_are_refused(setting: str) -> None:
    data = Loaders(batches(2, 0), task=Distance())
    refused: dict[str, Any] = {setting: 0.1}
    with pytest.raises(SlimError, match=f"{setting} is 0.1, which Distance can't use: expected 0"):
        fit(nn.Linear(5, 1), data, OptimConfig(epochs=1, **refused), compute=ON_CPU)
    with pytest.raises(SlimError, match="distillation isn't defined for Distance"):
        fit(nn.Linear(5, 1), data, OptimConfig(epochs=1), compute=ON_CPU, distillation=Distillation(nn.Linear(5, 1)))


def test_a_snapshot_holds_the_best_value(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = Loaders(batches(4, 0), val=batches(1, 1), task=Distance())
    records = fit(
        nn.Linear(5, 1), data, OptimConfig(epochs=3, patience=3), compute=ON_CPU, snapshots=Snapshots(tmp_path, {})
    )
    state = Snapshots(tmp_path, {}).newest()
    assert state is not None and state["best"]["value"] == min(record["val_error"] for record in records)
