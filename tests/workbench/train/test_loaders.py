"""Training from batches that come from anywhere, against a loop written out and against a list of the same batches."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from slim.errors import SlimError
from slim.prune.budgets import Ratio
from slim.workbench.config import ComputeConfig, OptimConfig, SparsityConfig
from slim.workbench.data import Loaders, sample_inputs
from slim.workbench.tasks import Classification
from slim.workbench.train import Snapshots, evaluate, fit
from slim.workbench.train.gradual import Pruning
from slim.workbench.train.state import mixed

ON_CPU = ComputeConfig(device="cpu", precision="32-true", channels_last=False)
OPTIM = OptimConfig(epochs=2, schedule="constant", warmup=0, lr=0.05, weight_decay=0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3))


def samples(count: int = 40) -> TensorDataset:
    """Images of noise in three brightnesses."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 3
    images = torch.randn(count, 1, 8, 8, generator=generator) + labels[:, None, None, None] - 1
    return TensorDataset(images, labels)


class Stream(IterableDataset):
    """Samples without a length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(samples())


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_dataloader_is_a_plain_loop() -> None:
    """In the order that the DataLoader draws from the epoch's seed, its short last batch included."""
    loader = DataLoader(samples(), batch_size=16, shuffle=True)
    ours, plain = network(), network()
    records = fit(ours, Loaders(loader, val=loader, task=Classification(3)), OPTIM, compute=ON_CPU, seed=5)

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for epoch in (1, 2):
        torch.manual_seed(mixed(5, epoch))
        plain.train()
        losses, right = 0.0, 0
        for images, labels in loader:
            scores = plain(images)
            loss = F.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += loss.item() * len(labels)
            right += int((scores.argmax(1) == labels).sum())
        assert records[epoch - 1]["train_loss"] == pytest.approx(losses / 40, rel=1e-6)
        assert records[epoch - 1]["train_accuracy"] == right / 40
    assert same(ours, plain)
    plain.eval()
    images, labels = samples().tensors
    assert records[-1]["val_accuracy"] == float((plain(images).argmax(1) == labels).double().mean())


LOADERS: dict[str, Callable[[], Loaders]] = {
    "a list": lambda: Loaders(list(DataLoader(samples(), batch_size=16))),
    "a DataLoader": lambda: Loaders(DataLoader(samples(), batch_size=16)),
    "a stream": lambda: Loaders(DataLoader(Stream(), batch_size=16), steps_per_epoch=3),
    "an iterator": lambda: Loaders(
        iter(list(DataLoader(samples(), batch_size=16)) * 2),
        steps_per_epoch=3,  # two epochs of it
    ),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_every_kind_of_iterable_trains_alike(kind: str) -> None:
    found, expected = network(), network()
    sparsity = SparsityConfig(strength=0.01, penalty="group_lasso", gradual=2)
    fit(found, LOADERS[kind](), OPTIM, compute=ON_CPU, sparsity=sparsity, pruning=Pruning(Ratio(0.5)))
    batches = list(DataLoader(samples(), batch_size=16))
    fit(expected, batches, OPTIM, compute=ON_CPU, sparsity=sparsity, pruning=Pruning(Ratio(0.5)))
    assert found[1].num_features == 3 and same(found, expected)


def test_an_epoch_may_be_shorter_than_the_data() -> None:
    batches = list(DataLoader(samples(), batch_size=16))
    [record] = fit(network(), Loaders(batches, steps_per_epoch=1), OptimConfig(epochs=1), compute=ON_CPU)
    assert record["images"] == 16


def test_a_resumed_training_skips_the_batches_that_it_has_seen(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    class Killing(Snapshots):
        def save(self, step: int, state: Any) -> Path:
            path = super().save(step, state)
            if step == 4 and not self.resume:  # in the second epoch of three steps
                raise Killed
            return path

    def trained(folder: Path, **more: Any) -> nn.Module:
        model, loader = network(), DataLoader(samples(), batch_size=16, shuffle=True)
        fit(model, loader, OPTIM, compute=ON_CPU, snapshots=Killing(folder, {}, minutes=1e-9, **more))
        return model

    with pytest.raises(Killed):
        trained(tmp_path)
    whole = network()
    fit(whole, DataLoader(samples(), batch_size=16, shuffle=True), OPTIM, compute=ON_CPU)
    assert same(trained(tmp_path, resume=True), whole)


class TwoInputs(nn.Module):
    """Takes images twice, as positional or as named arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(left + right)}


class OfDict(Classification):
    """Classification by a network that returns a dict."""

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return super().loss(outputs["logits"], targets["label"])

    def tally(self, outputs: Any, targets: Any) -> Tensor:
        return super().tally(outputs["logits"], targets["label"])

    def check(self, outputs: Any, targets: Any) -> None:
        super().check(outputs["logits"], targets["label"])


@pytest.mark.parametrize("nest", [lambda a, b: [a, b], lambda a, b: {"right": b, "left": a}], ids=["list", "dict"])
def test_inputs_and_targets_of_any_nesting(nest: Callable[[Tensor, Tensor], Any]) -> None:
    """Cut into parts, too."""
    plain = list(DataLoader(samples(), batch_size=16))
    nested = [(nest(images / 4, images * 3 / 4), {"label": labels}) for images, labels in plain]
    model, expected = TwoInputs(), network()
    compute = ComputeConfig(device="cpu", precision="32-true", channels_last=False, accumulate=3)
    records = fit(model, Loaders(nested, val=nested, task=OfDict(3)), OPTIM, compute=compute)
    fit(expected, plain, OPTIM, compute=compute)
    assert same(model.net, expected) and records[-1]["val_accuracy"] > 0.5
    assert isinstance(sample_inputs(Loaders(nested), 20, 0), tuple | dict)  # one batch, where a list would be several
    scores = evaluate(model, nested, Loaders(nested, task=OfDict(3)), compute=ON_CPU)
    assert scores["accuracy"] == records[-1]["val_accuracy"]


BATCH = (torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (iter([BATCH]), r"the data has no length: expected Loaders\(…, steps_per_epoch=N\)"),
        ([], "the data has no training batch: expected at least one"),
        ([BATCH[0]], r"a batch of the data has type Tensor: expected \(inputs, targets\)"),
        ([{"image": BATCH[0], "size": 3}], "a batch of the data is a dict of image, size: expected .* one of label,"),
        ([(BATCH[0], BATCH[1][:, None])], r"the targets are int64 \[2, 1\]: expected class numbers \[N\]"),
        ([(BATCH[0], BATCH[1] + 99)], "can't judge the network's outputs by the targets .*Target 99 is out of bounds"),
        (
            [(BATCH[0].to(torch.uint8), BATCH[1])],
            r"can't run on images .* \(uint8 \[2, 1, 8, 8\]\): expected images \[N, C",
        ),
        ([(BATCH[0], torch.ones(4, 3))], "add up to 3: .* --task multilabel"),
        ([(*BATCH, 1)], r"a batch of the data has 3 parts: expected \(inputs, targets\)"),
        ([("image", 3)], "the inputs of a batch of the data can't be used: it holds no tensor"),
        (Loaders([BATCH], steps_per_epoch=4), "the data gave 1 training batches in an epoch: expected 4"),
        (Loaders([BATCH], val=[]), "no images to evaluate on: expected a split of the data"),
        ([(BATCH[0].expand(4, 3, 8, 8), BATCH[1])], r"can't run on images of shape \[3, 8, 8\] from the data"),
        (Loaders([BATCH], task=Classification(7)), "expected one number for each of the 7 classes"),
    ],
    ids=[
        "no length",
        "no batch",
        "no target",
        "no usual name",
        "a column of labels",
        "a class too many",
        "bytes",
        "multi-hot",
        "three parts",
        "no tensor",
        "too few",
        "no val",
        "channels",
        "classes",
    ],
)
def test_mistakes(data: Any, message: str) -> None:
    with pytest.raises(SlimError, match=message) as error:
        fit(network(), data, OptimConfig(epochs=1), compute=ON_CPU)
    assert "\n" not in str(error.value)


def test_what_needs_validation_or_classes_says_so() -> None:
    with pytest.raises(SlimError, match="patience is 1, but no image is held out"):
        fit(network(), [BATCH], OptimConfig(epochs=1, patience=1), compute=ON_CPU)
    with pytest.raises(SlimError, match="mixup and cutmix need the number of classes"):
        fit(network(), [BATCH], OptimConfig(epochs=1, mixup=0.2), compute=ON_CPU)


@pytest.mark.parametrize("label", [3, -1, 10**9])
@pytest.mark.parametrize("where", ["train", "val"])
def test_labels_out_of_range_are_one_line(label: int, where: str) -> None:
    whole = [(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))] * 2
    odd = [*whole, (torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, label, 0]))]
    train, val = (odd if part == where else whole for part in ("train", "val"))
    with pytest.raises(SlimError, match="out of bounds") as caught:
        fit(network(), Loaders(train, val, task=Classification(3)), OPTIM, compute=ON_CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("state", [{}, {"step": 1}, {"step": "x", "per_epoch": 2, "model": {}}])
def test_a_broken_state_is_one_line(state: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "x.state"
    Snapshots(folder, {}).save(1, state)
    with pytest.raises(SlimError, match=r"broken|can't resume"):
        fit(network(), [*DataLoader(samples())], OPTIM, compute=ON_CPU, snapshots=Snapshots(folder, {}, resume=True))


def test_states_behind_a_link_are_left_alone(tmp_path: Path) -> None:
    others = tmp_path / "others"
    Snapshots(others, {}).save(1, {"step": 1})
    before = sorted(others.iterdir())
    folder = tmp_path / "x.state"
    folder.symlink_to(others)
    Snapshots(folder, {}).clear()
    with pytest.raises(SlimError, match="is a link"):
        Snapshots(folder, {}).save(2, {"step": 2})
    assert sorted(others.iterdir()) == before
