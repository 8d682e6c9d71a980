"""Checkpoints: safetensors for the weights, JSON in their metadata for all else. Nothing is unpickled.

The metadata holds the architecture, its arguments and the plans that made it thinner, so that a file and whatever
builds the architecture give back the network: build, prune as planned, load the weights. A hash over metadata and
tensors tells a whole file from a truncated or altered one (it guards against accidents; it is no signature).
"""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from slim.errors import SlimError
from slim.files import replacing
from slim.prune.plan import PruningPlan
from slim.version import __version__

Builder = Callable[[str, Mapping[str, Any]], nn.Module]  # of the unpruned network, from its name and arguments

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
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_shape: Sequence[int] | None = None,
) -> Path:
    """Save `model` to `path`, whole or not at all, and return the path.

    plan: what was removed from the architecture to make `model`; several plans in the order of their use.
    arch, arch_kwargs: the name and arguments from which `slim.load` builds the unpruned network. Without them, loading
    needs that network itself.
    config: the run's settings, a dataclass or a mapping.
    classes, mean and std (per channel, of images in 0..1) and input_shape [C, H, W]: what those need to know
    who put the network to use.
    Raises SlimError where the state holds something other than tensors, or a value has no JSON.
    """
    plans = [plan] if isinstance(plan, PruningPlan) else list(plan or [])
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
        "classes": classes and list(classes),
        "mean": mean and list(mean),
        "std": std and list(std),
        "input_shape": input_shape and list(input_shape),
        "shared": shared,
    }
    try:
        text = json.dumps(about, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise SlimError(f"checkpoint {str(path)!r}: its metadata has no JSON: {e}") from None
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"slim": text, "sha256": _digest(text, tensors)})
        except SafetensorError as error:  # a full disk, say
            raise SlimError(f"can't write {str(path)!r}: {error}") from None
    return Path(path)


def load(path: str | Path, model: nn.Module | Builder) -> nn.Module:
    """Return the network that `path` holds, on the CPU, in evaluation mode, bit for bit and with the dtypes it had.

    model: the unpruned network, which stays as it is; or a function that builds it from the `arch` and `arch_kwargs`
    in the file, whose random initialisation is left out.
    Raises SlimError where the file is missing, truncated, altered or of another format, or doesn't fit.
    """
    about, tensors = _read(path)
    if isinstance(model, nn.Module):
        model = copy.deepcopy(model).cpu()
    elif about["arch"] is None:
        raise SlimError(f"checkpoint {str(path)!r} names no architecture: pass model=, the unpruned network")
    else:
        with torch.random.fork_rng(devices=[]), _NoInitialisation():
            model = model(about["arch"], about["arch_kwargs"])
    for plan in about["plans"]:
        model = PruningPlan.from_dict(plan).apply(model)
    own = model.state_dict(keep_vars=True)
    wrong = sorted(own.keys() ^ tensors.keys()) or [k for k in own if own[k].shape != tensors[k].shape]
    if wrong:
        raise SlimError(f"checkpoint {str(path)!r} doesn't fit {about['arch'] or 'the model'}: see {wrong[0]!r}")
    dtypes = {t.dtype for t in tensors.values() if t.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())  # this reaches the buffers that aren't saved, too
    for name, tensor in own.items():
        tensor.data = tensor.data.to(tensors[name].dtype)
    model.load_state_dict(tensors)
    return model.eval()


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return what the file says of itself: the arguments of `save` by name (`plans` is a list of dicts).

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
    return about, tensors | {name: tensors[first] for name, first in about["shared"].items()}


def _header(path: str | Path) -> dict[str, str]:
    path = Path(path)
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
    except (ValueError, TypeError, KeyError):
        raise SlimError(f"checkpoint {str(path)!r} was altered: its metadata is not readable") from None
    if version != FORMAT:
        raise SlimError(f"checkpoint {str(path)!r} has format {version!r}: this slim reads format {FORMAT}")
    return about


class _NoInitialisation(TorchFunctionMode):
    """Leave out torch.nn.init, which takes most of the time of building: the weights come from the file."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
