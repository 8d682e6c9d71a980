"""Norms without parameters, in which no tensor tells how many channels they take: the number that they keep follows."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from slim.trace.codes import codes_on
from slim.trace.copy import Modules
from slim.trace.hooks import hooked
from slim.trace.labeller import Labeller

_INSTANCE_NORMS = nn.modules.instancenorm._InstanceNorm


@contextmanager
def noting_widths(labeller: Labeller, modules: Modules) -> Iterator[None]:
    """Let a run know which channels such a norm is given."""

    def note(name: str, module: Any, args: Any) -> None:
        codes = codes_on(args[0]).get(args[0].dim() - module._get_no_batch_dim())
        if codes is not None:
            labeller.group_counts[name] = codes.labels

    norms = [(prefix, norm) for prefix, norm in modules if isinstance(norm, _INSTANCE_NORMS) and norm.weight is None]
    with hooked(norm.register_forward_pre_hook(partial(note, f"{prefix}num_features")) for prefix, norm in norms):
        yield
