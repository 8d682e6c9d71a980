"""Recurrent layers (nn.LSTM, nn.GRU, nn.RNN) in a trace: one step of the sequence tells what all of them do."""

from typing import Any

import torch
from torch import Tensor

from slim.trace.constants import KeepValues
from slim.trace.labeller import Labeller

_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}


class OneStep(KeepValues):
    """Without data a recurrent layer runs the first step alone, which is repeated: torch would take each of thousands
    of steps apart into ten operators. With data it runs as those operators, too, not as one of a library's."""

    def __init__(self, labeller: Labeller) -> None:
        super().__init__()
        self.labeller = labeller

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _RECURRENT or not isinstance(args[0], Tensor):
            return super().__torch_function__(func, types, args, kwargs)
        packed = isinstance(args[1], Tensor) and args[1].dtype == torch.int64  # the sizes of batches
        if not args[0].is_meta or packed:
            enabled = torch._C._get_mkldnn_enabled()
            torch._C._set_mkldnn_enabled(False)  # torch.backends.mkldnn.flags sets more, and warns
            try:
                return func(*args, **(kwargs or {}))
            finally:
                torch._C._set_mkldnn_enabled(enabled)
        time = 1 if args[8] else 0  # batch_first
        steps = args[0].shape[time]
        before = len(self.labeller.products)
        out, *states = func(args[0].narrow(time, 0, 1), *args[1:])
        for product in self.labeller.products[before:]:
            product.positions *= steps
        shape = [steps if dim == time else size for dim, size in enumerate(out.shape)]
        return out.expand(shape).clone(), *states
