"""The callback in Lightning's own Trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from digits_net import accuracy, digits, untrained
from torch import Tensor, nn

import slim
from slim.errors import SlimError, SlimWarning

pl = pytest.importorskip("lightning.pytorch")
from slim.trainers.lightning import SlimCallback  # noqa: E402


class Module(pl.LightningModule):  # type: ignore[name-defined]
    def __init__(self, optimizers: int = 1) -> None:
        super().__init__()
        self.model, self.optimizers_wanted = untrained(), optimizers

    def training_step(self, batch: Any, number: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(slim.parameter_groups(self.model, 1e-2), 4e-3)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3)}


def loader() -> Any:
    images, labels, _, _ = digits()
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=64)


def trainer(folder: Path, callback: SlimCallback, **settings: Any) -> Any:
    return pl.Trainer(
        max_epochs=5, accelerator="cpu", callbacks=[callback], default_root_dir=folder, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_training_ends_thin_and_accurate(accumulated: int, tmp_path: Path) -> None:
    module, callback = Module(), SlimCallback(slim.Flops(0.3), penalty=slim.L1(1e-3), prunes=2)
    network = module.model
    trainer(tmp_path, callback, accumulate_grad_batches=accumulated).fit(module, loader())
    slimming = callback.slimming
    assert slimming is not None and module.model is network is slimming.network
    assert slimming.step == 5 * -(-21 // accumulated) and len(slimming.plans) == 2
    assert slimming.plans[-1].totals["flops"][1] <= 0.3 * slimming.plans[0].totals["flops"][0]
    assert accuracy(network) > 0.85


def test_a_module_that_is_the_network_itself(tmp_path: Path) -> None:
    class Whole(Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.model(x)
            return out

    module = Whole()
    callback = SlimCallback(slim.Channels(0.5), network="", prunes=2)
    trainer(tmp_path, callback, limit_train_batches=4).fit(module, loader())
    assert callback.slimming is not None and len(callback.slimming.plans) == 2
    assert module.trainer.global_step == 20
    widths = [m.num_features for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(widths) <= 36


@pytest.mark.parametrize("network", ["model", ""])
@pytest.mark.parametrize("cut_off", [8, 12, 16])  # before the first prune, between them, after the last
def test_a_training_that_was_cut_off_goes_on_from_lightnings_checkpoint(
    cut_off: int, network: str, tmp_path: Path
) -> None:
    class Whole(Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.model(x)
            return out

    class Saves(pl.Callback):  # type: ignore[name-defined]
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == cut_off:
                trainer.save_checkpoint(tmp_path / "cut.ckpt")

    def trained(checkpoint: Path | None = None) -> tuple[Any, SlimCallback]:
        module, callback = Whole(), SlimCallback(slim.Flops(0.5), penalty=slim.L1(1e-3), prunes=2, network=network)
        runs = trainer(tmp_path, callback, limit_train_batches=4)
        runs.callbacks.append(Saves())
        runs.fit(module, loader(), ckpt_path=checkpoint)
        return module, callback

    whole, first = trained()
    again, second = trained(tmp_path / "cut.ckpt")
    assert first.slimming is not None and second.slimming is not None and second.slimming.step == 20
    assert [p.digest for p in second.slimming.plans] == [p.digest for p in first.slimming.plans]
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    if cut_off == 12:
        with pytest.raises(SlimError, match="the checkpoint's network was pruned in 1 steps, this one in 2"):
            trainer(tmp_path, first).fit(whole, loader(), ckpt_path=tmp_path / "cut.ckpt")


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_inputs_come_as_the_trainer_gives_them(precision: str, tmp_path: Path) -> None:
    module, callback = Module(), SlimCallback(slim.Flops(0.5), prunes=1)
    trainer(tmp_path, callback, precision=precision, limit_train_batches=2).fit(module, loader())
    assert callback.slimming is not None and len(callback.slimming.plans) == 1


def test_a_training_that_ends_before_the_last_prune_says_so(tmp_path: Path) -> None:
    class Stops(pl.Callback):  # type: ignore[name-defined]
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 60

    module, callback = Module(), SlimCallback(slim.Flops(0.5), penalty=slim.L1(1e-3), prunes=2)
    runs = trainer(tmp_path, callback)
    runs.callbacks.append(Stops())
    with pytest.warns(SlimWarning, match=r"ended after step 6\d, before 1 of 2 prunes .* after step 7\d\): the budget"):
        runs.fit(module, loader())
    assert callback.slimming is not None and len(callback.slimming.plans) == 1


def test_mistakes(tmp_path: Path) -> None:
    average = trainer(tmp_path, SlimCallback(slim.Flops(0.5)))
    average.callbacks.append(pl.callbacks.EMAWeightAveraging())
    with pytest.raises(SlimError, match="SlimCallback beside EMAWeightAveraging, which keeps an average"):
        average.fit(Module(), loader())
    with pytest.raises(SlimError, match=r"start 0\.8 and end 0\.7: expected shares"):
        SlimCallback(slim.Flops(0.5), start=0.8)
    with pytest.raises(SlimError, match="unknown network of SlimCallback 'modl': did you mean 'model'"):
        trainer(tmp_path, SlimCallback(slim.Flops(0.5), network="modl")).fit(Module(), loader())
