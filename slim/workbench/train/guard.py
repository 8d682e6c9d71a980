"""What can stop a training: losses that aren't finite, too little memory, and signals."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn

from slim.errors import SlimError


def diverged(what: str, value: float, step: int, lr: float) -> SlimError:
    return SlimError(
        f"the {what} is {value} at step {step}, with learning rate {lr:.3g}: expected inputs and targets "
        "without NaN; else try a lower lr, a longer warmup, a lower sparsity strength, clip_norm 1, or precision "
        "32-true"
    )


def check_finite(model: nn.Module, step: int, lr: float) -> None:
    """Check that all weights are finite; raises `SlimError` where one isn't. A finite loss says nothing of the update
    that followed."""
    tensors = [t for t in model.state_dict().values() if t.is_floating_point()]
    if tensors and not torch.stack([t.isfinite().all() for t in tensors]).all():
        raise diverged("largest weight", float("inf"), step, lr)


def out_of_memory(batch_size: int, accumulate: int, processes: int, finds_parts: bool) -> SlimError:
    """Say what to try: more parts, as long as each has an image; what finds their number, unless it just has; or
    less."""
    tries = []
    if 2 * accumulate * processes <= batch_size and not finds_parts:
        finder = ", or auto, which finds it" if processes == 1 else ""
        tries.append(f"accumulate {2 * accumulate}{finder}")
    if batch_size > processes:
        tries.append(f"data.batch_size {max(processes, batch_size // 2)}")
    parts = f"{accumulate} part{'s' * (accumulate > 1)}"
    return SlimError(
        f"out of memory on batches of {batch_size} images in {parts}: "
        + (f"try {'; or '.join(tries)}" if tries else "expected a smaller network, smaller images, or more memory")
    )


class Stop:
    """Whether a signal has asked for the end."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def after(self, step: int, processes: int, device: torch.device) -> bool:
        """Say whether to stop after this step. All processes answer alike; so that they needn't wait for each other in
        every step, several of them ask each other in each tenth."""
        return (processes == 1 or step % 10 == 0) and self.is_asked(processes, device)

    def is_asked(self, processes: int, device: torch.device) -> bool:
        """Say whether any process was asked to stop: all ask each other."""
        if processes == 1:
            return self.signal is not None
        asked = torch.tensor(self.signal or 0, device=device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        self.signal = int(asked) or None
        return self.signal is not None


@contextmanager
def stoppable(wanted: bool) -> Iterator[Stop]:
    """Note SIGINT and SIGTERM in the place of being interrupted. A second SIGINT acts as usual; a second SIGTERM
    doesn't, as torchrun and SLURM may both send one."""
    stop = Stop()
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal = stop.signal or number
        if number == signal.SIGINT:
            restore()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
