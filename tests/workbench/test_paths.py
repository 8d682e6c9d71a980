"""How a run goes on from its baseline, and which network it learns from."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from torch import nn
from workbench.commands import Command

import slim
from slim.workbench import config, data, models, train
from slim.workbench.config import RunConfig
from slim.workbench.run import ROOT, Run, asked, finetuning, run_all, target, whole
from slim.workbench.run.evidence.networks import Networks
from slim.workbench.run.networks import teacher_beside, trained_beside

SETTINGS = config.updated(
    RunConfig(),
    {
        "name": "mine",
        "compute": {"device": "cpu"},
        "train": {"epochs": 1},
        "finetune": {"epochs": 1, "distill": 0.5},
        "model": {"weights": "w.safetensors"},
        "prune": {"calibration_images": 64, "round_to": 1},
        "report": {"page": False},
    },
)
STAGES = {
    "sparse": ["baseline", "sparse", "pruned", "recovered", "finetuned"],
    "direct": ["baseline", "pruned", "recovered", "finetuned"],
    "none": ["baseline", "pruned", "recovered"],
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(whole, "_export_and_measure", lambda *_: [])  # tested elsewhere
    torch.manual_seed(0)
    save_file(models.build("slim:vgg7", num_classes=10, in_channels=1).state_dict(), "w.safetensors")


def run(**changes: Any) -> tuple[Run, str]:
    console = Console(file=io.StringIO(), width=120)
    made = Run(ROOT / "mine", config.updated(SETTINGS, changes), console, allow_code=(f"{__name__}:Bare",))
    run_all(made)
    return made, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "weights", "taken"),
    [
        ("auto", "w.safetensors", "direct"),
        ("auto", None, "sparse"),
        ("sparse", "w.safetensors", "sparse"),
        ("direct", None, "direct"),
        ("none", "w.safetensors", "none"),
    ],
)
def test_each_path_has_its_stages(path: str, weights: str | None, taken: str) -> None:
    made, told = run(run={"path": path}, model={"weights": weights})
    assert list(made.records.summary()) == STAGES[taken]
    assert ("ranked by Gamma: a penalty has acted on γ" in told) == (taken == "sparse")
    assert ("ranked by Residual: a penalty has not acted on γ" in told) == (taken != "sparse")
    last = slim.load(made.path(STAGES[taken][-1]))
    plan = slim.PruningPlan.load(made.folder / "plan.json")
    source = slim.load(made.path("sparse" if taken == "sparse" else "baseline"))
    assert [p.shape for p in plan.apply(source).parameters()] == [p.shape for p in last.parameters()]
    evidence = Networks(made)
    assert evidence.score == ("mean" if taken == "sparse" else "auto")
    assert all(map(torch.equal, evidence.decided_on.parameters(), source.parameters()))


def test_fine_tuning_learns_from_the_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every path; without a baseline from the network before pruning; and not from what an earlier run left."""
    taught: list[Any] = []

    def fit(*args: Any, distillation: train.Distillation | None, **kwargs: Any) -> Any:
        taught.append(distillation and distillation.teacher)
        return original(*args, distillation=distillation, **kwargs)

    original = train.fit
    monkeypatch.setattr(train, "fit", fit)
    made, _ = run(run={"path": "sparse"})
    baseline, teacher = slim.load(made.path("baseline")), taught[-1]
    assert teacher is not None and all(map(torch.equal, teacher.parameters(), baseline.parameters()))

    run()
    pruned = made.path("pruned")
    assert made.path("sparse").is_file() and list(trained_beside(pruned)) == ["baseline"]
    made.records.forget()
    made.path("baseline").unlink()
    assert teacher_beside(pruned) == made.path("sparse")


def test_auto_is_that_of_the_library() -> None:
    some = torch.randn(8, 1, 8, 8)
    assert asked.score(SETTINGS.prune, images=some, penalised=False) == slim.Auto(some, penalised=False)
    assert asked.score(replace(SETTINGS.prune, score="mean"), images=some) == slim.Gamma("mean")


@pytest.mark.parametrize(
    ("given", "epochs", "lr"),
    [
        ({}, 20, 0.05),  # of 30 epochs with 0.1
        ({"train": {"epochs": 1}}, 1, 0.05),
        ({"train": {"epochs": 90, "lr": 0.02}}, 60, 0.01),
        ({"train": {"lr": 0.02}, "finetune": {"epochs": 7, "lr": 0.3}}, 7, 0.3),
        ({"finetune": {"optimizer": "adamw"}}, 20, 0.0005),
        ({"train": {"optimizer": "adamw"}, "finetune": {"optimizer": "adamw"}}, 20, 0.0005),  # of 1e-3
        ({"train": {"optimizer": "adam", "lr": 0.004}, "finetune": {"optimizer": "adam"}}, 20, 0.002),
        ({"model": {"weights": "own.pt"}}, 20, 0.02),  # nothing was trained with train.lr
        ({"model": {"weights": "own.pt"}, "train": {"lr": 0.04}}, 20, 0.02),
        ({"model": {"weights": "own.pt"}, "finetune": {"optimizer": "adamw"}}, 20, 5e-4),
        ({"model": {"weights": "own.pt"}, "run": {"path": "sparse"}}, 20, 0.01),  # this trains before, with 0.02
        ({"model": {"weights": "own.pt"}, "run": {"path": "sparse"}, "train": {"lr": 0.1}}, 20, 0.05),
    ],
)
def test_fine_tuning_follows_the_training_before(given: dict[str, Any], epochs: int, lr: float) -> None:
    found = finetuning.decided(config.updated(RunConfig(), given))
    assert found.epochs == epochs and found.lr == pytest.approx(lr)


@pytest.mark.parametrize(
    ("given", "weights", "lr"),
    [
        ({}, None, 0.1),
        ({"optimizer": "adamw"}, None, 1e-3),
        ({"optimizer": "adam"}, None, 1e-3),
        ({"optimizer": "adam", "lr": 0.1}, None, 0.1),
        ({}, "own.pt", 0.02),
        ({"optimizer": "adamw"}, "own.pt", 5e-4),
        ({"lr": 0.1}, "own.pt", 0.1),
    ],
)
def test_training_begins_from_a_usual_rate_of_its_optimizer(
    given: dict[str, Any], weights: str | None, lr: float
) -> None:
    """AdamW began from that of SGD, and learned nothing."""
    settings = config.updated(RunConfig(), {"train": given, "model": {"weights": weights}})
    found = finetuning.training(settings)
    assert found.lr == lr and found.epochs == RunConfig().train.epochs
    new = finetuning.training(config.updated(settings, {"model": {"weights": None}}))
    assert finetuning.training(settings, new_layer=True) == new  # it has nothing to lose


@pytest.mark.parametrize("spoilt", [True, False])
def test_of_the_network_before_and_after_fine_tuning_the_better_one_is_kept(
    spoilt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(model: nn.Module, *args: Any, **more: Any) -> list[dict[str, Any]]:
        records = trained(model, *args, **more)
        if spoilt:  # it says the same class of every image
            nn.init.zeros_([m for m in model.modules() if isinstance(m, nn.Linear)][-1].weight)
        return records

    trained, model = train.fit, models.build("slim:vgg7", num_classes=10, in_channels=1)
    trained(model, data.load(RunConfig().data, 0), config.OptimConfig(epochs=2), seed=0)
    save_file(model.state_dict(), "w.safetensors")
    monkeypatch.setattr(train, "fit", fit)
    made, told = run(finetune={"distill": 0})
    summary = made.records.summary()
    assert (summary["finetuned"].get("kept") == "recovered") == spoilt == ("made it worse on validation images" in told)
    before, after = (slim.load(made.path(stage)).state_dict() for stage in ("pruned", "finetuned"))
    assert all(torch.equal(before[name], after[name]) for name in before) == spoilt
    if spoilt:
        assert summary["finetuned"]["accuracy"] == summary["recovered"]["accuracy"] > 0.5


def test_images_without_labels_are_enough_to_prune(command: Command, mistake: Command) -> None:
    """The path is none; networks are recovered on the images, and nothing claims an accuracy."""
    torch.manual_seed(1)
    for number in range(40):
        Path("photos", str(number % 3)).mkdir(parents=True, exist_ok=True)
        noise = torch.randint(256, (8, 8, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(f"photos/{number % 3}/{number}.png")
    save_file(models.build("slim:vgg7", num_classes=5).state_dict(), "rgb.safetensors")
    argv = [
        "--data.name",
        "images",
        "--data.root",
        "photos",
        "--report.page",
        "false",
        "--name",
        "bare",
        "--prune.round_to",
        "1",
    ]
    told = command("run", "--model.weights", "rgb.safetensors", *argv)
    summary = Run(ROOT / "bare", RunConfig()).records.summary()
    assert list(summary) == ["baseline", "pruned", "recovered"] and "recovered by" in told
    assert all("accuracy" not in record and "agreement" not in record for record in summary.values())
    assert slim.load("checkpoints/bare/pruned.safetensors")(torch.zeros(1, 3, 8, 8)).shape == (1, 5)
    asked = "images without labels train nothing: expected run.path none"
    assert asked in mistake("run", "--model.weights", "rgb.safetensors", *argv, "--path", "sparse")
    onnx = pytest.importorskip("onnx")
    command(
        "export", "checkpoints/bare/pruned.safetensors", "--int8", "--export.max_loss", "1", "--data.root", "photos"
    )
    assert onnx.load("checkpoints/bare/model.int8.onnx").graph.node


class Bare(nn.Sequential):
    """A network without BatchNorm."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1, **_: Any) -> None:
        pool = nn.AdaptiveAvgPool2d(1)
        super().__init__(
            nn.Conv2d(in_channels, 16, 3),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3),
            pool,
            nn.Flatten(),
            nn.Linear(16, num_classes),
        )


def test_what_has_nothing_to_penalise_is_told_before_anything_is_trained() -> None:
    without = {"model": {"arch": f"{__name__}:Bare", "weights": None}}
    made, told = run(**without)
    assert list(made.records.summary()) == STAGES["direct"] and "no BatchNorm has a scale γ to penalise" in told
    before = made.path("baseline").stat().st_mtime_ns
    for refused in (without | {"run": {"path": "sparse"}}, {"model": {"weights": None}, "sparsity": {"targets": "x*"}}):
        with pytest.raises(slim.SlimError, match="there is nothing to penalise"):
            run(**refused)
    assert made.path("baseline").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("wanted", "after", "said"),
    [
        ({}, {"accuracy": 0.5}, ""),
        ({"speedup": 2}, {"speedup": 2.1}, "target reached: 2.10× as fast (wanted 2×)"),
        ({"speedup": 2}, {}, "target missed, not reached: not measured (wanted 2×)"),
        (
            {"speedup": 2, "max_loss": 0.01},
            {"speedup": 2.5, "accuracy": 0.895},
            "target reached: 2.50× as fast (wanted 2×), 0.50 points lost (allowed 1.00 points lost)",
        ),
        (
            {"speedup": 2, "max_loss": 0.01},
            {"speedup": 2.5, "accuracy": 0.87},
            "target missed, both can't be had here: 3.00 points lost (allowed 1.00 points lost), 2.50× as fast",
        ),
        ({"max_loss": 0}, {"accuracy": 0.95}, "target reached: 5.00 points gained (allowed 0.00 points lost)"),
        (
            {"max_loss": 0.5},
            {"error": 3.75, "metric": {"name": "error", "direction": "min", "share": False, "unit": " px"}},
            "target missed, not reached: 1.75 px lost (allowed 0.5 px lost)",
        ),
    ],
)
def test_a_run_says_whether_its_target_was_reached(wanted: dict[str, Any], after: dict[str, Any], said: str) -> None:
    settings = config.updated(RunConfig(), {"run": wanted})
    found = target.verdict(settings, {"accuracy": 0.9, "error": 2.0}, after)
    assert found.startswith(said) and bool(found) == bool(said) and "\n" not in found


def test_a_wanted_speed_up_is_a_budget_of_latency() -> None:
    settings = target.with_budget(config.updated(RunConfig(), {"run": {"speedup": 4}, "prune": {"flops": 0.5}}))
    assert (settings.prune.latency, settings.prune.flops, settings.prune.ratio) == (0.25, None, None)
    assert target.with_budget(RunConfig()) == RunConfig()


def test_a_network_with_a_new_last_layer_is_trained_before_it_is_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    original = train.fit

    def fit(model: Any, *args: Any, **kwargs: Any) -> Any:
        trained.append(sum(p.numel() for p in model.parameters()))
        return original(model, *args, **kwargs)

    monkeypatch.setattr(train, "fit", fit)
    save_file(models.build("slim:vgg7", num_classes=7, in_channels=1).state_dict(), "w.safetensors")
    made, told = run()
    assert "classifier: made new for 10 classes" in told and "classifier knows nothing yet" in told
    whole, thin = trained
    assert thin < whole and list(made.records.summary()) == STAGES["direct"]
    assert made.records.summary()["baseline"]["training"]["seconds"] > 0


def test_the_largest_cut_within_a_loss(command: Command, mistake: Command) -> None:
    """It is judged on validation images, and a network that loses nothing by it is smaller."""
    command("train", "--epochs", "4", "--data.batch_size", "32", "--name", "judged")
    command("prune", "--name", "judged", "--max-loss", "0.05", "--round-to", "1")
    run_of = Path("checkpoints/judged")
    whole, thin = slim.load(run_of / "sparse.safetensors"), slim.load(run_of / "pruned.safetensors")
    digits = data.load(RunConfig().data, 0)
    before, after = (train.evaluate(net, digits.val, digits)["accuracy"] for net in (whole, thin))
    plan = slim.PruningPlan.load(run_of / "plan.json")
    assert before - after <= 0.05 + 1e-9 and plan.ratio_achieved > 0.1
    assert plan.achieved["loss"] == pytest.approx(before - after, abs=1e-6)
    argv = ["judged", "--data.val_fraction", "0", "--max-loss", "0.05"]
    assert "prune.max_loss needs validation images" in mistake("prune", "--name", *argv)
