"""How much the loss changes, to first order, when a group of coupled channels is masked: the score `Taylor`.

Masking a group sets some values θ of the network to zero: γ and β of its channels in every norm that makes them,
weights and biases where no norm does. The loss of a sample then changes by −Σ θ · ∂L/∂θ to first order. The sum is over
all that the group holds, so that what its layers do together counts, and what cancels doesn't; it is squared, and
averaged over samples (Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, equation 8, for
coupled channels).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from slim.batches import as_tensors, in_batches
from slim.errors import SlimError
from slim.progress import progress
from slim.prune.calibration import part, running
from slim.prune.groups import Floats, Groups
from slim.trace.copy import clone, named_tensors
from slim.trace.inputs import call
from slim.trace.outputs import output_tensors

LossFunction = Callable[[Any, Any], Tensor]  # of outputs and targets


@dataclass(frozen=True)
class Taylor:
    """What the loss changes by when a group goes, to first order: squared, averaged over samples, per budget saved.

        slim.plan(model, x, slim.Flops(0.5), score=slim.Taylor(loader, torch.nn.functional.cross_entropy))

    `batches`: an iterable of batches, or one batch: with a `loss`, of (inputs, targets), and `loss(outputs, targets)`
    is a number, such as the mean of a batch. Without a loss no labels are needed, and images are given as everywhere in
    slim: the network's own outputs stand in for them. Where it returns [N, classes], labels are drawn from its own
    predictions, which measures how far these move (the Fisher information: their KL divergence to second order); else
    how far its outputs move, in squared distance.
    `samples`: how many are looked at, the first ones (default 256): one forward and one backward pass for each.

    Scores are non-negative, divided by what the group's removal saves of the budget. The network is evaluated as in
    inference and left as it is. Source: Molchanov et al., CVPR 2019. Raises SlimError where the network can't run on
    the batches, or the loss doesn't depend on it.
    """

    batches: Any = field(repr=False)
    loss: LossFunction | None = None
    samples: int = 256
    ranks_all: ClassVar[bool] = True

    def __call__(self, groups: Groups) -> Floats:
        model = clone(groups.model).eval().requires_grad_(False)
        masked = _masked(model, groups)
        draw = torch.Generator().manual_seed(0)
        total, count = np.zeros(len(groups.root_of)), 0
        device = next(model.parameters()).device
        with progress("ranking channels", self.samples) as advance:
            for inputs, targets in islice(_samples(self.batches, self.loss is not None), self.samples):
                with running("the network"), torch.enable_grad():
                    outputs = call(model, part(inputs, ..., device))
                    wanted = part(targets, ..., device)
                    loss = _own_loss(outputs, draw) if self.loss is None else self.loss(outputs, wanted)
                    changes = _changes(loss, masked)
                change = np.zeros(len(groups.root_of))
                for (_, _, roots), values in zip(masked, changes):
                    np.add.at(change, roots, values)
                total += change**2
                count += 1
                advance(1)
        if not count:
            raise SlimError("score Taylor got no samples: expected an iterable of batches, or one batch")
        found: Floats = total[groups.roots] / count / groups.savings
        return found


Masked = list[tuple[Tensor, int, Any]]  # a tensor, the dimension along which masks lie, the groups along it


def _masked(model: nn.Module, groups: Groups) -> Masked:
    """Return what masks set to zero, ready for gradients."""
    tensors = dict(named_tensors(model))
    return [
        (tensors[name].requires_grad_(), dim, groups.root_of[groups.traced.labels[name][dim]])
        for producer in groups.traced.producers.values()
        for name, dim in producer.tensors.items()
        if name in tensors
    ]


def _changes(loss: Any, masked: Masked) -> list[Floats]:
    """Return Σ θ · ∂loss/∂θ along the dimension of each tensor that masks set to zero."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise SlimError(
            f"the loss of score Taylor gave {type(loss).__name__}: expected one number that gradients reach"
        )
    tensors = [tensor for tensor, _, _ in masked]
    gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
    found = []
    for (tensor, dim, roots), gradient in zip(masked, gradients):
        if gradient is None:  # forward didn't use it
            found.append(np.zeros(len(roots)))
            continue
        change = (tensor.detach().double() * gradient.double()).movedim(dim, 0).reshape(len(roots), -1).sum(1)
        found.append(change.cpu().numpy())
    return found


def _own_loss(outputs: Any, draw: torch.Generator) -> Tensor:
    """Return a loss whose squared gradients tell, in the mean over draws, how far the outputs of a sample move."""
    found = [tensor for tensor in output_tensors(outputs).values() if tensor.requires_grad]
    if len(found) == 1 and found[0].dim() == 2 and found[0].shape[1] > 1:
        logits = found[0]
        chances = logits.detach().cpu().double().softmax(1)
        return F.cross_entropy(logits, torch.multinomial(chances, 1, generator=draw)[:, 0].to(logits.device))
    noise = (torch.randn(tensor.shape, generator=draw, dtype=torch.float64).to(tensor) for tensor in found)
    return sum((tensor * direction).sum() for tensor, direction in zip(found, noise))  # type: ignore[return-value]


def _samples(batches: Any, labelled: bool) -> Iterator[tuple[Any, Any]]:
    """Yield samples one by one, as batches of one, with their targets."""
    for inputs, targets in _pairs(batches) if labelled else ((batch, None) for batch in in_batches(batches)):
        count = next((t.shape[0] for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.dim()), 0)
        for n in range(count):
            one = slice(n, n + 1)
            yield part(inputs, one), targets[one] if _is_list_of_samples(targets) else part(targets, one)


def _pairs(batches: Any) -> Iterator[tuple[Any, Any]]:
    """Yield inputs and targets of every batch; a tuple is one batch itself."""
    if not isinstance(batches, Iterable):
        raise SlimError(f"score Taylor got a {type(batches).__name__}: expected slim.Taylor(batches, loss)")
    for batch in [batches] if isinstance(batches, tuple) else batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise SlimError(f"score Taylor got a batch of type {type(batch).__name__}: expected (inputs, targets)")
        yield as_tensors(batch[0]), as_tensors(batch[1])


def _is_list_of_samples(targets: Any) -> TypeGuard[list[Any]]:
    """Say whether targets are one object for each sample, as of detection, not tensors over the batch."""
    return isinstance(targets, list) and not any(isinstance(target, Tensor) for target in targets)
