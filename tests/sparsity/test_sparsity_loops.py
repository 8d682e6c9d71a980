"""One line in other people's loops: DDP, gradient accumulation, AMP, Lightning and timm, each against a plain loop."""

import copy
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparsity.training import batch, gammas, network, same
from torch import Tensor, nn

from slim import L1, Sparsity, sparsify

METHODS = ["subgradient", "proximal", "loss"]
STRENGTH = 0.1
STEPS = 4


def fixed(model: nn.Module) -> nn.Module:
    """BatchNorm on its running statistics: then half batches average to the whole one."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)


def loss_of(model: nn.Module, data: Sequence[Tensor], sparsity: Sparsity, share: float = 1.0) -> Tensor:
    images, labels = data
    loss = F.cross_entropy(model(images), labels) * share
    return loss + sparsity.loss() * share if sparsity.method == "loss" else loss


def stepped(model: nn.Module, method: str, after_step: Callable[[int], None] = lambda step: None) -> Sparsity:
    optimizer = sgd(model)
    sparsity = sparsify(model, optimizer, L1(STRENGTH), method=method)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, batch(step), sparsity).backward()
        optimizer.step()
        after_step(step)
    return sparsity


def plain_loop(method: str) -> nn.Module:
    model = fixed(network())
    sparsity = stepped(model, method)
    assert (sparsity.zero() > 0) == (method == "proximal")
    return model


def alike(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.allclose(p, q, rtol=1e-10, atol=1e-12) for p, q in zip(a.parameters(), b.parameters()))


def test_the_methods_differ() -> None:
    assert not alike(plain_loop("subgradient"), plain_loop("proximal"))
    assert alike(plain_loop("subgradient"), plain_loop("loss"))


@pytest.mark.parametrize("method", METHODS)
def test_gradient_accumulation(method: str) -> None:
    model = fixed(network())
    optimizer = sgd(model)
    sparsity = sparsify(model, optimizer, L1(STRENGTH), method=method)
    for step in range(STEPS):
        images, labels = batch(step)
        for half in (slice(0, 4), slice(4, 8)):
            loss_of(model, (images[half], labels[half]), sparsity, 0.5).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert alike(model, plain_loop(method))


def _process(rank: int, port: int, method: str, path: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    model = fixed(network())
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = sgd(model)
    sparsity = sparsify(model, optimizer, L1(STRENGTH), method=method)
    gradients = []
    for step in range(STEPS):
        images, labels = (half.chunk(2)[rank] for half in batch(step))
        optimizer.zero_grad()
        loss_of(parallel, (images, labels), sparsity).backward()
        optimizer.step()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.save({"model": model.state_dict(), "gradients": gradients}, f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_are_one(method: str, tmp_path: Path) -> None:
    """DDP on two halves of each batch against one process on the whole: gradients (with what the penalty added, once)
    and weights; and both processes hold the same weights, bit for bit."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, method, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name
    alone = fixed(network())

    def same_gradients(step: int) -> None:
        for parameter, theirs in zip(alone.parameters(), first["gradients"][step]):
            torch.testing.assert_close(parameter.grad, theirs, rtol=1e-9, atol=1e-12)

    stepped(alone, method, same_gradients)
    for parameter, theirs in zip(alone.parameters(), [first["model"][n] for n, _ in alone.named_parameters()]):
        torch.testing.assert_close(parameter.detach(), theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_with_grad_scaler(method: str) -> None:
    """The loop of PyTorch's AMP recipe. The same loop with the penalty added by hand ends in the same weights."""

    def ends(penalise: bool) -> nn.Module:
        model = network(dtype=torch.float32)
        optimizer = sgd(model)
        sparsity = sparsify(model, optimizer, L1(STRENGTH if penalise else 0.0), method=method)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        for step in range(STEPS):
            images, labels = batch(step, torch.float32)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, (images, labels), sparsity)
            scaler.scale(loss).backward()
            if not penalise and method != "proximal":
                scaler.unscale_(optimizer)
                for gamma in gammas(model):
                    assert gamma.grad is not None
                    gamma.grad += STRENGTH * gamma.detach().sign()
            scaler.step(optimizer)
            scaler.update()
            if not penalise and method == "proximal":
                decay, total = 0.9, sum(0.9**k for k in range(step + 1))
                with torch.no_grad():
                    for gamma in gammas(model):
                        gamma.copy_(F.softshrink(gamma, STRENGTH * 0.1 * (1 + decay * total)))
        return model

    ours, by_hand = ends(True), ends(False)
    for a, b in zip(ours.parameters(), by_hand.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_copying_a_model_that_is_penalised() -> None:
    """As EMA wrappers do."""
    model = network()
    sparsity = sparsify(model, sgd(model), L1(STRENGTH))
    assert same(copy.deepcopy(model), model) and sparsity.value() > 0


@pytest.mark.parametrize("method", METHODS)
def test_lightning(method: str, tmp_path: Path) -> None:
    lightning: Any = pytest.importorskip("lightning", reason="lightning isn't installed")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network()

        def on_train_batch_start(self, *args: Any) -> None:
            fixed(self.model)

        def training_step(self, data: Any, index: int) -> Tensor:
            return loss_of(self.model, data, self.sparsity)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = sgd(self.model)
            self.sparsity = sparsify(self.model, optimizer, L1(STRENGTH), method=method)
            return optimizer

    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    batches: Any = [batch(step) for step in range(STEPS)]  # a list is a dataset
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    assert alike(module.model, plain_loop(method))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_timm(method: str, name: str) -> None:
    """The parts that timm's train.py puts together: its optimizer factory, its scaler with clipping, its scheduler."""
    pytest.importorskip("timm", reason="timm isn't installed")
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import ModelEmaV3, NativeScaler

    model, reference = (fixed(network(dtype=torch.float32)) for _ in range(2))
    settings: Any = {"lr": 0.05, "weight_decay": 0.05}
    optimizer = create_optimizer_v2(model, opt=name, momentum=0.9, **settings)
    sparsity = sparsify(model, optimizer, L1(STRENGTH), method=method)
    decayed = [p for p in reference.parameters() if p.ndim >= 2]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in reference.parameters() if p.ndim < 2], "weight_decay": 0.0},
        {"params": decayed},
    ]
    other: torch.optim.Optimizer = (
        torch.optim.SGD(groups, momentum=0.9, nesterov=True, **settings)
        if name == "sgd"
        else torch.optim.AdamW(groups, **settings)
    )
    beside = sparsify(reference, other, L1(STRENGTH), method=method)
    scaler, scheduler = NativeScaler(device="cpu"), CosineLRScheduler(optimizer, t_initial=STEPS, t_in_epochs=False)
    ema = ModelEmaV3(model)
    rates = []
    for step in range(STEPS):
        images, labels = batch(step, torch.float32)
        optimizer.zero_grad()
        rates.append(optimizer.param_groups[0]["lr"])
        loss = loss_of(model, (images, labels), sparsity)
        scaler(loss, optimizer, clip_grad=1e6, parameters=model.parameters())
        ema.update(model, step=step)
        scheduler.step_update(step + 1)
    for step, lr in enumerate(rates):
        for group in other.param_groups:
            group["lr"] = lr
        other.zero_grad()
        loss_of(reference, batch(step, torch.float32), beside).backward()
        other.step()
    assert rates[-1] < rates[0]
    for a, b in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert (sparsity.zero() > 0) == (method == "proximal")
