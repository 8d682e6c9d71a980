"""Two networks, one forward pass: the original and the thin one run side by side and halt at every layer.

At each layer the thin network sees what the original's same layer took and gave, for the same images, can change its
own weights on the strength of that, and goes on with the new ones. So every layer is fitted to what the layers before
it now give, in one pass over the images, and no activation is kept longer than the forward pass itself keeps it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slim.trace.copy import named_tensors
from slim.trace.inputs import call
from slim.trace.intercept import Intercept, LayerCall


class Halted:
    """A forward pass of `model` in a thread of its own, which halts after every layer."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.model, self.inputs = model, inputs
        self.seen: tuple[LayerCall, Tensor] | None = None
        self.error: BaseException | None = None
        self.over = False
        self._go, self._there = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._forward, daemon=True)
        self._threads = torch.get_num_threads()
        self._thread.start()

    def _forward(self) -> None:
        torch.set_num_threads(self._threads)  # a new thread would take all cores
        self._go.acquire()
        try:
            with torch.no_grad(), Intercept(self.model, self._visit):
                call(self.model, self.inputs)
        except BaseException as error:
            self.error = error
        self.seen, self.over = None, True
        self._there.release()

    def _visit(self, layer: LayerCall) -> Tensor:
        if self.over:
            raise InterruptedError
        out = layer.run()
        self.seen = layer, out
        self._there.release()
        self._go.acquire()
        return out

    def next(self) -> tuple[LayerCall, Tensor] | None:
        """Return the next layer with its output, or None at the end. They hold until the next call."""
        self.seen = None
        self._go.release()
        self._there.acquire()
        if self.error is not None:
            raise self.error
        return self.seen

    def close(self) -> None:
        self.over = True
        self.seen = None
        self._go.release()
        self._thread.join()


class OutOfStep(Exception):
    """The two networks don't run the same layers in the same order."""


@contextmanager
def halted(model: nn.Module, inputs: Any) -> Iterator[Halted]:
    other = Halted(model, inputs)
    try:
        yield other
    finally:
        other.close()


def side_by_side(
    model: nn.Module, thin: nn.Module, inputs: Any, visit: Callable[[LayerCall, LayerCall, Tensor], Tensor]
) -> None:
    """Run both networks on `inputs`; `visit(layer of thin, layer of model, output of the latter)` gives the output of
    the former. The original's layers of which thin has nothing left are passed over. Raises OutOfStep where the others
    don't pair up."""
    gone = {name for name, tensor in named_tensors(thin) if not tensor.numel()}
    with halted(model, inputs) as original:

        def pair(layer: LayerCall) -> Tensor:
            met = original.next()
            while met is not None and met[0].name in gone:
                met = original.next()
            if met is None or (met[0].kind, met[0].name) != (layer.kind, layer.name):
                raise OutOfStep(f"{layer.name} meets {met[0].name if met else 'the end'}")
            return visit(layer, *met)

        with torch.no_grad(), Intercept(thin, pair):
            call(thin, inputs)
