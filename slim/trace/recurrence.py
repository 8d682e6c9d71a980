"""Recurrent layers (nn.LSTM, nn.GRU, nn.RNN) in a trace: one step of the sequence tells what all of them do."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from slim.trace.attributes import words_of
from slim.trace.constants import TAKES_VALUES, KeepValues
from slim.trace.copy import Modules
from slim.trace.labeller import Labeller

_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}
_NAMES = {"lstm", "gru", "rnn_tanh", "rnn_relu"}


def is_recurrent(modules: Modules) -> bool:
    """Say whether there are recurrent layers among modules, or such as may call their functions."""
    return any(isinstance(module, nn.RNNBase) or not _NAMES.isdisjoint(words_of(type(module))) for _, module in modules)


class OneStep(KeepValues):
    """A recurrent layer is traced in its first step alone, which is repeated: torch would take each of thousands of
    steps apart into ten operators (not one of a library's, which tells nothing). Where there is data, what all steps
    give is filled in."""

    def __init__(self, labeller: Labeller) -> None:
        super().__init__()
        self.labeller = labeller

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in TAKES_VALUES:
            return super().__torch_function__(func, types, args, kwargs)
        if func not in _RECURRENT or not isinstance(args[0], Tensor):
            return func(*args, **(kwargs or {}))
        if args[0].is_meta:
            return self._traced(func, *args)
        enabled = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)  # torch.backends.mkldnn.flags sets more, and warns
        try:
            outs = self._traced(func, *args)
        finally:
            torch._C._set_mkldnn_enabled(enabled)
        with _disable_current_modes():
            for out, value in zip(outs, func(*args)):
                out.copy_(value)
        return outs

    def _traced(self, func: Any, *args: Any) -> tuple[Tensor, ...]:
        if isinstance(args[1], Tensor) and args[1].dtype == torch.int64:  # the sizes of batches
            return self._packed(func, *args)
        time = 1 if args[8] else 0  # batch_first
        steps = args[0].shape[time]
        out, *states = self._first(steps, func, args[0].narrow(time, 0, 1), *args[1:])
        shape = [steps if dim == time else size for dim, size in enumerate(out.shape)]
        return out.expand(shape).clone(), *states

    def _packed(self, func: Any, data: Tensor, sizes: Tensor, *others: Any) -> tuple[Tensor, ...]:
        """Sequences end to end: as many steps as the first batch holds, and on from there."""
        first = int(sizes[0])
        out, *states = self._first(len(data) / first, func, data[:first].unsqueeze(0), *others, False)
        return out[0, :1].expand(len(data), -1).clone(), *states

    def _first(self, steps: float, func: Any, *args: Any) -> tuple[Tensor, ...]:
        before = len(self.labeller.products)
        outs = func(*args)
        for state in outs[1:]:  # which the next step reads as the first one read a state of zeros, of the same size
            self.labeller.freeze_tensor(state, "the state of a recurrent layer")
        for product in self.labeller.products[before:]:
            product.positions = round(product.positions * steps)
        return outs
