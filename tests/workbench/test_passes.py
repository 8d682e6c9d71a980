"""Several passes of sparse training, pruning and fine-tuning, against the same steps done by hand."""

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import slim
from slim import checkpoint
from slim.prune.plan import PruningPlan
from slim.trace.size import network_size
from slim.workbench import config, data, models, train
from slim.workbench.config import RunConfig
from slim.workbench.run import ROOT, Run, finetuning, run_all, whole

SETTINGS = config.updated(
    RunConfig(),
    {
        "name": "several",
        "passes": 3,
        "compute": {"device": "cpu"},
        "train": {"epochs": 1},
        "finetune": {"epochs": 1},
        "prune": {"ratio": 0.4},
        "sparsity": {"strength": 0.02},
        "report": {"page": False},
    },
)
FOLDERS = [Path("checkpoints/several", name) for name in ("pass-1", "pass-2", ".")]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(whole, "_export_and_measure", lambda *_: [])  # tested elsewhere


class Fits:
    """Counts the trainings, and fails when number `fatal` (from 1) begins."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fatal: int = 0) -> None:
        self.count, self.fatal, self.original = 0, fatal, train.fit
        monkeypatch.setattr(train, "fit", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        if self.count == self.fatal:
            raise KeyboardInterrupt
        return self.original(*args, **kwargs)


def run(settings: RunConfig = SETTINGS, resume: bool = False) -> str:
    console = Console(file=io.StringIO(), width=100)
    run_all(Run(ROOT / settings.name, settings, console, resume=resume))
    return console.file.getvalue()  # type: ignore[attr-defined]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return slim.load(path).state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_each_pass_goes_on_from_the_network_of_the_one_before() -> None:
    told = run()
    networks = []
    for number, folder in enumerate(FOLDERS, start=1):
        for stage, prunes in (("sparse", number - 1), ("pruned", number), ("finetuned", number)):
            about = checkpoint.read_metadata(folder / f"{stage}.safetensors")
            assert len(about["plans"]) == prunes
        plan = PruningPlan.load(folder / "plan.json")
        assert plan.to_dict() == about["plans"][-1]
        for layer in plan.layers:
            assert layer.after >= layer.before / 2
        assert plan.ratio_achieved > 0.2
        networks.append(slim.load(folder / "finetuned.safetensors"))

    # composition: the plans one after the other, on a new network
    thin = models.build(about["arch"], **about["arch_kwargs"])
    for made in about["plans"]:
        thin = PruningPlan.from_dict(made).apply(thin)
    assert [p.shape for p in thin.parameters()] == [p.shape for p in networks[-1].parameters()]

    # the second pass's first stage, by hand
    dataset = data.load(SETTINGS.data, SETTINGS.seed)
    train.fit(
        networks[0],
        dataset,
        finetuning.training(SETTINGS),
        compute=SETTINGS.compute,
        seed=SETTINGS.seed,
        sparsity=SETTINGS.sparsity,
    )
    assert same(networks[0].state_dict(), weights(FOLDERS[1] / "sparse.safetensors"))

    table = told[told.index("by pass") :]
    sizes = [network_size(slim.load(f / "finetuned.safetensors"), torch.zeros(1, 1, 8, 8)).params for f in FOLDERS]
    assert [int(row[1].replace(",", "")) for row in re.findall(r"^ +\d +([\d,]+) +([\d,]+)", table, re.M)] == sizes
    assert sizes == sorted(sizes, reverse=True)


TWO = replace(SETTINGS, passes=2)


def test_an_interrupted_run_ends_like_one_that_was_not(monkeypatch: pytest.MonkeyPatch) -> None:
    run(TWO)
    folders = [FOLDERS[0], FOLDERS[2]]
    whole = {folder: weights(folder / "finetuned.safetensors") for folder in folders}
    # a new run doesn't take the old passes for its own
    fits = Fits(monkeypatch, fatal=4)  # the baseline, two for the first pass, the sparse one of the second
    with pytest.raises(KeyboardInterrupt):
        run(TWO)
    fits.fatal = 0
    run(TWO, resume=True)
    assert fits.count == 4 + 2
    for folder in folders:
        assert same(whole[folder], weights(folder / "finetuned.safetensors"))
    for train_lr in (None, 0.1):  # which the former means
        run(replace(TWO, train=replace(TWO.train, lr=train_lr)), resume=True)
    assert fits.count == 4 + 2

    # with another setting, all that follows from it is done again
    other = replace(TWO, finetune=replace(TWO.finetune, lr=0.01))
    run(other, resume=True)
    assert fits.count == 6 + 3  # all but the baseline and the first sparse training
    run(replace(other, passes=1), resume=True)
    assert fits.count == 9 + 2  # the files in the run's folder were those of a second pass
    assert len(checkpoint.read_metadata(FOLDERS[2] / "finetuned.safetensors")["plans"]) == 1


def test_a_floor_above_half_holds_in_every_pass() -> None:
    run(replace(SETTINGS, passes=2, prune=replace(SETTINGS.prune, floor=0.8)))
    for folder in (FOLDERS[0], FOLDERS[2]):
        assert all(layer.after >= 0.8 * layer.before for layer in PruningPlan.load(folder / "plan.json").layers)
