"""The callback in Hugging Face's own Trainer, on a small ResNet of its library."""

from pathlib import Path
from typing import Any

import pytest
import torch
from digits_net import digits
from torch import nn

import slim
from slim.errors import SlimError

pytestmark = pytest.mark.wild
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


def model() -> Any:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=10,
        downsample_in_first_stage=False,
    )  # fmt: skip
    return transformers.ResNetForImageClassification(config)


def test_a_training_ends_thin_and_accurate(tmp_path: Path) -> None:
    from slim.trainers.transformers import SlimCallback

    images, labels, others, wanted = digits()
    larger = nn.functional.interpolate(images, 16)
    data = [{"pixel_values": image, "labels": label} for image, label in zip(larger, labels)]
    network = model()
    callback = SlimCallback(slim.Flops(0.4), {"pixel_values": larger[:256]}, penalty=slim.L1(1e-3), prunes=2)
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=5, per_device_train_batch_size=64, learning_rate=4e-3, save_strategy="no",
        report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = transformers.Trainer(network, arguments, train_dataset=data, callbacks=[callback])
    trainer.train()
    slimming = callback.slimming
    assert slimming is not None and trainer.model is network is slimming.network
    assert slimming.step == trainer.state.max_steps and len(slimming.plans) == 2
    assert slimming.plans[-1].totals["flops"][1] <= 0.4 * slimming.plans[0].totals["flops"][0]
    with torch.no_grad():
        found = network.eval()(nn.functional.interpolate(others, 16)).logits.argmax(1)
    assert float((found == wanted).double().mean()) > 0.85


def test_a_training_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    from slim.trainers.transformers import SlimCallback

    images, labels, _, _ = digits()
    larger = nn.functional.interpolate(images[:160], 16)
    data = [{"pixel_values": image, "labels": label} for image, label in zip(larger, labels)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=20, per_device_train_batch_size=16, save_strategy="steps", save_steps=5, use_cpu=True,
        report_to=[], disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip

    def trained(checkpoint: Path | None) -> tuple[Any, SlimCallback]:
        network = model()
        callback = SlimCallback(slim.Flops(0.5), {"pixel_values": larger[:64]}, penalty=slim.L1(1e-3), prunes=2)
        if checkpoint:
            callback.follow(network, checkpoint)
        trainer = transformers.Trainer(network, arguments, train_dataset=data, callbacks=[callback])
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        return network, callback

    whole, first = trained(None)
    again, second = trained(tmp_path / "checkpoint-10")
    assert [p.digest for p in second.thinned.plans] == [p.digest for p in first.thinned.plans]
    assert len(second.thinned.plans) == 2
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_mistakes(tmp_path: Path) -> None:
    from slim.trainers.transformers import SlimCallback

    with pytest.raises(SlimError, match=r"slim_plans.json' can't be read: expected a checkpoint of a Trainer"):
        SlimCallback(slim.Flops(0.5), {}).follow(model(), tmp_path)
    with pytest.raises(SlimError, match=r"expected shares of the steps"):
        SlimCallback(slim.Flops(0.5), {}, end=1.5)
