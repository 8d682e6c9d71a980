"""What belongs to a network goes on with the thinner one: its optimizer's state, parameter by parameter."""

import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from slim.errors import SlimError, check_type
from slim.prune.rebuild import Cuts, thin_tensor
from slim.trace.copy import named_tensors

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Replacement:
    """The tensor of the thin network in the place of one of the original, and what it lacks: dimension -> indices.

    `bias` is one that its layer has in the thin network alone: it takes up constants of removed channels.
    """

    name: str
    tensor: Tensor
    cuts: Mapping[int, list[int]]
    bias: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        return [self.tensor] if self.bias is None else [self.tensor, self.bias]

    def stays(self, original: Tensor) -> Tensor:
        """Return which values of the original are left: bool, in its shape."""
        stays = torch.ones(original.shape, dtype=torch.bool, device=original.device)
        for dim, removed in self.cuts.items():
            stays.index_fill_(dim, torch.tensor(removed, dtype=torch.int64, device=original.device), False)
        return stays


def replacements(cuts: Cuts, model: nn.Module, thin: nn.Module) -> dict[int, Replacement]:
    """Return for each tensor of `model`, by its id, what takes its place in `thin`.

    Raises SlimError where `thin` lacks one of them.
    """
    thinner, original = dict(named_tensors(thin)), named_tensors(model)
    new = {name.removesuffix("bias"): thinner[name] for name in thinner.keys() - dict(original).keys()}
    found: dict[int, Replacement] = {}
    for name, tensor in original:
        if id(tensor) not in found or name in cuts:
            if name not in thinner:
                raise SlimError(f"the thin network doesn't come from this model: it has no {name}")
            bias = new.get(name.removesuffix("parametrizations.weight.original").removesuffix("weight"))
            found[id(tensor)] = Replacement(name, thinner[name], cuts.get(name, {}), bias)
    return found


def migrate_optimizer(optimizer: Optimizer, found: Mapping[int, Replacement]) -> None:
    """Hand an optimizer over to the thin network, in place, with the optimizers that it wraps.

    State of a parameter is thinned where its axes tell how; else it starts anew, with a warning. Raises SlimError where
    the optimizer holds none of the model's parameters.
    """
    check_type("optimizer", optimizer, "one of torch.optim", Optimizer)
    if not any(id(p) in found for group in optimizer.param_groups for p in group["params"]):
        raise SlimError(
            f"the {type(optimizer).__name__} holds no parameter of this model: expected the optimizer that trained it"
        )
    anew: list[str] = []
    before = [list(group["params"]) for group in optimizer.param_groups]
    for each in _wrapped(optimizer):
        _thin_copies(each, before, found)
        for group in each.param_groups:
            _replace(group["params"], found)
        anew += _migrate_state(each, found)
        for value in vars(each).values():  # what it keeps of its parameters besides
            if isinstance(value, list):
                _replace(value, found)
            elif isinstance(value, dict) and value is not each.state:
                for key in [key for key in value if id(key) in found]:
                    del value[key]
        if isinstance(each, torch.optim.LBFGS):
            each._numel_cache = None
    if anew:
        warnings.warn(
            f"{type(optimizer).__name__} starts anew for {len(anew)} parameters, such as {anew[0]}: what it keeps of "
            "them doesn't tell which channels it belongs to",
            stacklevel=3,
        )


def _wrapped(optimizer: Optimizer) -> Iterator[Optimizer]:
    """Yield an optimizer and those inside it, as in Lookahead."""
    yield optimizer
    for value in list(vars(optimizer).values()):
        if isinstance(value, Optimizer) and value is not optimizer:
            yield from _wrapped(value)


def _thin_copies(optimizer: Optimizer, groups: list[list[Tensor]], found: Mapping[int, Replacement]) -> None:
    """Thin lists of copies of all parameters of a group, such as slow weights, that an optimizer keeps."""
    lists = [value for value in vars(optimizer).values() if isinstance(value, list)]
    for copies in [*lists, *(part for value in lists for part in value if isinstance(part, list))]:
        for parameters in groups:
            alike = len(copies) == len(parameters) and all(
                isinstance(copy, Tensor) and copy is not parameter and copy.shape == parameter.shape
                for copy, parameter in zip(copies, parameters)
            )
            if alike:
                copies[:] = [new for old, p in zip(copies, parameters) for new in _thin_copy(old, found.get(id(p)))]
                break


def _thin_copy(copied: Tensor, replacement: Replacement | None) -> list[Tensor]:
    if replacement is None:
        return [copied]
    bias = replacement.bias
    return [thin_tensor(copied, replacement.cuts), *([] if bias is None else [bias.detach().clone()])]


def _replace(tensors: list[Any], found: Mapping[int, Replacement]) -> None:
    tensors[:] = [new for t in tensors for new in (found[id(t)].tensors if id(t) in found else [t])]


def _migrate_state(optimizer: Optimizer, found: Mapping[int, Replacement]) -> list[str]:
    """Hand over the state of each parameter; return the names of those whose state starts anew."""
    anew = []
    for parameter in [p for p in optimizer.state if id(p) in found]:
        replacement = found[id(parameter)]
        state = optimizer.state.pop(parameter)
        thin = {key: _thinned(value, tuple(parameter.shape), replacement.cuts) for key, value in state.items()}
        if _unknown(thin) or not _fits(optimizer, replacement.tensor, parameter, thin):
            anew.append(replacement.name)
        else:
            optimizer.state[replacement.tensor] = thin
        for key, value in vars(parameter).items():  # Adahessian notes the curvature there
            left = _thinned(value, tuple(parameter.shape), replacement.cuts)
            if not hasattr(replacement.tensor, key) and not _unknown(left):
                setattr(replacement.tensor, key, left)
    return anew


class _Unknown:
    """State whose axes don't tell which channels it belongs to."""


def _unknown(state: Any) -> bool:
    return any(isinstance(leaf, _Unknown) for leaf in tree_leaves(state))


def _thinned(value: Any, shape: Shape, cuts: Mapping[int, list[int]]) -> Any:
    """Return what is left of a part of the state of a parameter of this `shape`."""
    if isinstance(value, Tensor):
        readings = _readings(tuple(value.shape), shape, cuts)
        if not readings or any(other != readings[0] for other in readings):
            return _Unknown()
        return thin_tensor(value, readings[0]) if readings[0] else value
    if isinstance(value, (list, tuple)):
        if len(value) == len(shape) > 1:  # one for each axis, as preconditioners are
            return type(value)(_thinned(v, (n,), _cut(cuts, axis)) for axis, (v, n) in enumerate(zip(value, shape)))
        return type(value)(_thinned(v, shape, cuts) for v in value)
    return value


def _readings(state: Shape, shape: Shape, cuts: Mapping[int, list[int]]) -> list[dict[int, list[int]]]:
    """Return how state of one shape can follow a parameter of another, the likeliest alone where there is one."""
    if all(n == 1 for n in state):
        return [{}]
    if len(state) == len(shape) and all(mine in (1, n) for mine, n in zip(state, shape)):  # as large, or a factor of it
        return [{axis: cut for axis, cut in cuts.items() if state[axis] == shape[axis]}]
    axes = [axis for axis in range(len(shape)) if (*shape[:axis], *shape[axis + 1 :]) == state]
    if axes and len(shape) > 1:  # the mean over one axis
        return [{a - (a > axis): cut for a, cut in cuts.items() if a != axis} for axis in axes]
    if len(state) == 2 and state[0] == state[1]:  # a preconditioner of one axis
        axes = [axis for axis, n in enumerate(shape) if n == state[0]]
        return [{d: cut for d in (0, 1) for cut in _cut(cuts, axis).values()} for axis in axes]
    return []


def _cut(cuts: Mapping[int, list[int]], axis: int) -> dict[int, list[int]]:
    """Return the cut of one axis, as that of a vector."""
    return {0: cuts[axis]} if axis in cuts else {}


def _fits(optimizer: Optimizer, thin: Tensor, parameter: Tensor, state: Mapping[str, Any]) -> bool:
    """Return whether the optimizer itself would give a thin parameter state of these shapes: where it factors by the
    sizes of a parameter, fewer channels may mean other factors."""
    factors = {key: shape for key, shape in _shapes(state).items() if shape not in ((), tuple(thin.shape))}
    if thin.shape == parameter.shape or not factors:
        return True
    scratch = nn.Parameter(thin.detach().clone())
    scratch.grad = torch.ones_like(scratch)
    group = next((g for g in optimizer.param_groups if any(p is thin for p in g["params"])), optimizer.param_groups[0])
    trial = object.__new__(type(optimizer))
    own = {key: dict(value) if type(value) is dict else value for key, value in vars(optimizer).items()}
    trial.__dict__ = own | {"param_groups": [{**group, "params": [scratch]}], "state": defaultdict(dict)}
    trial.__dict__ |= {key: OrderedDict() for key in own if key.endswith("_hooks")}
    try:
        with torch.random.fork_rng(devices=[]):
            trial.step()
    except Exception:  # it needs more than a gradient
        return True
    fresh = _shapes(trial.state[scratch])
    return all(fresh.get(key) == shape for key, shape in factors.items())


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shapes of tensors in a state: key -> shape, or the shapes of a list."""
    found: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            found[key] = tuple(value.shape)
        elif isinstance(value, Sequence) and any(isinstance(v, Tensor) for v in value):
            found[key] = [tuple(v.shape) for v in value if isinstance(v, Tensor)]
    return found
