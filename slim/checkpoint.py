"""Checkpoints: safetensors for the weights, JSON in their metadata for all else. Nothing is unpickled.

The metadata holds the architecture, its arguments and the plans that made it thinner, so that a file and whatever
builds the architecture give back the network: build, prune as planned, load the weights. A hash over metadata and
tensors tells a whole file from a truncated or altered one (it guards against accidents; it is no signature).
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import _TYPES, load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from slim.errors import SlimError, check_type
from slim.files import check_regular, replacing
from slim.images import ImageSpec
from slim.memory import free_memory
from slim.prune.plan import PruningPlan
from slim.prune.plan_format import LARGEST_NUMBER
from slim.trace.copy import clone
from slim.version import __version__

_STORED = set(_TYPES.values())
Builder = Callable[[str, Mapping[str, Any]], nn.Module]  # of the unpruned network, from its name and arguments

LARGEST_INPUT = 2**28  # values of one example
FORMAT = 1  # raised when a reader of the old format would misread the new one


def save(
    path: str | Path,
    model: nn.Module,
    plan: PruningPlan | Sequence[PruningPlan] | None = None,
    *,
    arch: str | None = None,
    arch_kwargs: Mapping[str, Any] | None = None,
    stage: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    config: Any = None,
    images: ImageSpec | None = None,
) -> Path:
    """Save `model` to `path`, whole or not at all, and return the path.

    plan: what was removed from the architecture to make `model`; several plans in the order of their use.
    arch, arch_kwargs: the name and arguments from which `slim.load` builds the unpruned network. Without them, loading
    needs that network itself.
    config: the run's settings, a dataclass or a mapping.
    images: what those need to know of its images and classes who put the network to use.
    Raises SlimError where the state holds something other than tensors, or a value has no JSON.

    >>> slim.save("thin.safetensors", thin, plan).name
    'thin.safetensors'
    """
    check_type("path", path, "save(path, model)", str, Path)
    check_type("model", model, "save(path, model)", nn.Module)
    plans = [plan] if isinstance(plan, PruningPlan) else [] if plan is None else plan
    check_type("plan", plans, "a plan or a list of plans", list, tuple)
    for each in plans:
        check_type("plan", each, "what slim.plan returned", PruningPlan)
    for name, value in (("arch_kwargs", arch_kwargs), ("metrics", metrics)):
        check_type(name, value, "values by name", Mapping, type(None))
    check_type("images", images, "a slim.ImageSpec", ImageSpec, type(None))
    tensors, shared = _tensors(model)
    about = {
        "format": FORMAT,
        "slim": __version__,
        "stage": stage,
        "arch": arch,
        "arch_kwargs": dict(arch_kwargs or {}),
        "plans": [p.to_dict() for p in plans],
        "metrics": dict(metrics or {}),
        "config": dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config,  # type: ignore[arg-type]
        **(images or ImageSpec()).to_dict(),
        "shared": shared,
    }
    try:
        text = json.dumps(about, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise SlimError(f"checkpoint {str(path)!r}: its metadata has no JSON: {e}") from None
    _check_schema(path, json.loads(text))
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"slim": text, "sha256": _digest(text, tensors)})
    return Path(path)


def load(path: str | Path, model: nn.Module | Builder) -> nn.Module:
    """Return the network that `path` holds, on the CPU, in evaluation mode, bit for bit and with the dtypes it had.

    model: the unpruned network, which stays as it is; or a function that builds it from the `arch` and `arch_kwargs`
    in the file, whose random initialisation is left out.
    Raises SlimError where the file is missing, truncated, altered or of another format, or doesn't fit.
    """
    check_type("path", path, "load(path, model)", str, Path)
    about, tensors = _read(path)
    plans = [PruningPlan.from_dict(plan) for plan in about["plans"]]
    if isinstance(model, nn.Module):
        model = clone(model).cpu()
    elif not callable(model):
        raise SlimError(f"model is of type {type(model).__name__}: expected the unpruned network")
    elif about["arch"] is None:
        raise SlimError(f"checkpoint {str(path)!r} names no architecture: pass model=, the unpruned network")
    else:
        model = _built(path, model, about, plans, tensors)
    model = _pruned(model, plans)
    own = model.state_dict(keep_vars=True)
    _check_fits(path, own, tensors, about["arch"])
    dtypes = {t.dtype for t in tensors.values() if t.is_floating_point()}
    if len(dtypes) == 1:
        _in_dtype(model, dtypes.pop())
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.data = tensor.data.to(tensors[name].dtype)
    model.load_state_dict(tensors)
    return model.eval()


def _in_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert what is real, also the buffers that aren't saved; `Module.to` would make complex ones real, too."""
    model._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def _built(
    path: str | Path,
    builder: Builder,
    about: Mapping[str, Any],
    plans: Sequence[PruningPlan],
    tensors: Mapping[str, Tensor],
) -> nn.Module:
    """Return the unpruned network that a file names. Its shapes are compared first, without memory for them, and it
    gets no more memory than there is: a file of a few bytes may name a network of any size."""
    arch, kwargs = about["arch"], about["arch_kwargs"]
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"), _Building(math.inf):
                sketch = builder(arch, kwargs)
        except Exception:  # its code looks at values, or is at fault; the real network will say
            sketch = None
        if sketch is not None:
            _check_fits(path, _pruned(sketch, plans).state_dict(), tensors, arch)
        try:
            with _Building(free_memory()):
                return builder(arch, kwargs)
        except SlimError:
            raise
        except Exception as error:  # arguments that it can't take raise errors of many kinds
            reason = f"{type(error).__name__}: {error}"
            raise SlimError(f"checkpoint {str(path)!r}: {arch} can't be built as it says ({reason:.200})") from error


def _pruned(model: nn.Module, plans: Sequence[PruningPlan]) -> nn.Module:
    for plan in plans:
        model = plan.apply(model)
    return model


def _check_fits(path: str | Path, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], arch: str | None) -> None:
    """Raise SlimError where the tensors of a network and those of a file differ in names, in shapes, or in whether they
    hold real numbers, complex ones or integers."""
    wrong = sorted(own.keys() ^ tensors.keys()) or [k for k in own if _form(own[k]) != _form(tensors[k])]
    if wrong:
        raise SlimError(f"checkpoint {str(path)!r} doesn't fit {arch or 'the model'}: see {wrong[0]!r}")


def _form(tensor: Tensor) -> tuple[torch.Size, bool, bool]:
    return tensor.shape, tensor.is_floating_point(), tensor.is_complex()


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return what the file says of itself: the arguments of `save` by name (`plans` is a list of dicts; in the place of
    `images` there are `input_shape`, `classes`, `mean` and `std`, see `ImageSpec.of`).

    Reads the header alone, and so doesn't check the tensors: `load` does.
    """
    return _parse(path, _header(path))


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state's tensors, and for each name that shares its tensor with an earlier one, that one's name."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    seen: dict[tuple, str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise SlimError(f"state {name!r} is a {type(tensor).__name__}: expected a tensor")
        if tensor.dtype not in _STORED:
            raise SlimError(f"state {name!r} has dtype {tensor.dtype}, which safetensors has no name for")
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in seen:
            shared[name] = seen[place]
        else:
            seen[place] = name
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, shared


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    header = _header(path)
    about = _parse(path, header)
    tensors = load_file(path)
    if _digest(header["slim"], tensors) != header.get("sha256"):
        raise SlimError(f"checkpoint {str(path)!r} was altered: its content doesn't match its hash")
    for name, first in about["shared"].items():
        if first not in tensors:
            raise SlimError(f"checkpoint {str(path)!r} says that {name!r} is {first!r}, which it lacks")
    return about, tensors | {name: tensors[first] for name, first in about["shared"].items()}


def _header(path: str | Path) -> dict[str, str]:
    path = Path(path)
    check_regular("checkpoint", path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
            raise SlimError(
                f"checkpoint {str(path)!r} is a pickle, which can run code when opened: expected safetensors"
            )
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except OSError as e:
        raise SlimError(f"checkpoint {str(path)!r} can't be read: {e.strerror or e}") from None
    except SafetensorError as e:
        raise SlimError(f"checkpoint {str(path)!r} is truncated or no safetensors file: {e}") from None
    if "slim" not in header:
        raise SlimError(f"checkpoint {str(path)!r} wasn't saved by slim: expected a file that slim.save wrote")
    return header


def _parse(path: str | Path, header: Mapping[str, str]) -> dict[str, Any]:
    try:
        about = json.loads(header["slim"])
        version = about["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise SlimError(f"checkpoint {str(path)!r} was altered: its metadata is not readable") from None
    if version != FORMAT:
        raise SlimError(f"checkpoint {str(path)!r} has format {version!r}: this slim reads format {FORMAT}")
    _check_schema(path, about)
    return about


def _check_schema(path: str | Path, about: Mapping[str, Any]) -> None:
    for key, (expected, fits) in _SCHEMA.items():
        if key not in about or not fits(about[key]):
            raise SlimError(f"checkpoint {str(path)!r} has {key} {str(about.get(key))[:40]!r}: expected {expected}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _optional(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _mapping_to(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _is_shape(value: Any) -> bool:
    return _list_of(_is_size)(value) and len(value) > 0 and math.prod(value) <= LARGEST_INPUT


# What the metadata hold: key -> what is expected, and whether a value is that.
_SCHEMA: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "stage": ("a name or null", _optional(_is_text)),
    "arch": ("a name or null", _optional(_is_text)),
    "arch_kwargs": ("arguments by name", _mapping_to(lambda _: True)),
    "plans": ("a list of plans", _list_of(_mapping_to(lambda _: True))),
    "metrics": ("metrics by name", _mapping_to(lambda _: True)),
    "config": ("settings or null", _optional(_mapping_to(lambda _: True))),
    "classes": ("a list of names or null", _optional(_list_of(_is_text))),
    "mean": ("a list of numbers or null", _optional(_list_of(_is_number))),
    "std": ("a list of positive numbers or null", _optional(_list_of(lambda v: _is_number(v) and v > 0))),
    "input_shape": ("sizes such as [3, 224, 224], or null", _optional(_is_shape)),
    "shared": ("names of tensors by name", _mapping_to(_is_text)),
}


class _Building(TorchFunctionMode):
    """Leave out torch.nn.init, which takes most of the time of building, as the weights come from the file; and refuse
    what takes more memory than a limit, in bytes."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.left = limit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func in _DRAWN and args[0].is_meta:
            return args[0]  # without data, drawing does nothing but import the compiler, for seconds
        if func in _MAKERS:
            size = kwargs.get("size", args[0] if args and isinstance(args[0], tuple | list) else args)
            self.left -= 4 * math.prod(n for n in size if isinstance(n, int))
            if self.left < 0:
                raise SlimError(f"a network with a tensor of size {list(size)} takes more memory than there is")
        return func(*args, **kwargs)


_DRAWN = {torch.Tensor.normal_, torch.Tensor.uniform_}
_MAKERS = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, torch.arange}
