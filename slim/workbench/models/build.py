"""The paper's networks, and how a model's name becomes a model.

A name is `slim:vgg19` (ours), `torchvision:resnet50`, `timm:repvgg_a0` (timm is optional), or
`package.module:factory` (code of the user's own, imported only where the caller allows it). The networks are
plain modules that know nothing of pruning.
"""

import warnings
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from inspect import Parameter, signature
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from slim.errors import SlimError, unknown
from slim.extras import named_if_missing
from slim.progress import progress
from slim.workbench.causes import told
from slim.workbench.code import FAILURES, Allowed, import_object
from slim.workbench.models.densenet import densenet
from slim.workbench.models.fcos import fcos
from slim.workbench.models.resnet import preresnet, resnet
from slim.workbench.models.stacks import VGG_WIDTHS, lenet, mlp, vgg
from slim.workbench.models.unet import unet

__all__ = ["arguments", "build", "names"]

_SLIM: dict[str, Callable[..., nn.Module]] = {
    **{f"vgg{depth}": partial(vgg, depth) for depth in VGG_WIDTHS},
    "resnet20": partial(resnet, 20),
    "resnet56": partial(resnet, 56),
    "preresnet164": partial(preresnet, 164),
    "densenet40": partial(densenet, 40),
    "mlp": mlp,
    "lenet": lenet,
    "unet": unet,
    "fcos": fcos,
}
LIBRARIES = ("slim", "torchvision", "timm")  # whose networks have names; others are code of the user's
_FORMS = "slim:NAME, torchvision:NAME, timm:NAME, package.module:factory or file.py:factory"
# Arguments that make torchvision or timm fetch or read weights: building a model reads no files.
_WEIGHTS = {
    *("weights", "weights_backbone"),
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
}


def names() -> list[str]:
    """Return slim's own networks, as `build` takes them: ["slim:densenet40", …]."""
    return sorted(f"slim:{name}" for name in _SLIM)


def arguments(arch: str) -> list[str]:
    """Return what one of slim's own networks takes besides num_classes and in_channels; [] for any other name.

    `image_size` is among them where the layers depend on it ("slim:mlp", "slim:lenet"): pass the data's.
    """
    source, _, name = arch.partition(":")
    if source != "slim" or name not in _SLIM:
        return []
    return [key for key in signature(_SLIM[name]).parameters if key not in ("num_classes", "in_channels")]


def build(
    arch: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    gamma: float | None = 0.5,
    allow_code: Allowed = (),
    **kwargs: Any,
) -> nn.Module:
    """Build a new, untrained network. Its weights follow from torch's random state: call torch.manual_seed before.

    arch
        - `slim:NAME`: one of `names()`. Convolutions start as in the paper's code: normal with variance
          2 / fan-out (He et al., ICCV 2015); so do the linear layers before a BatchNorm. A last linear
          layer is normal with standard deviation 0.01; a last convolution, which few channels feed, begins as torch has
          it: from so small weights a U-Net learned where shapes are, and never which.
        - `torchvision:NAME`: a classification, segmentation, detection or video network that
          `torchvision.models.get_model` knows, without pretrained weights. These read 3 channels; another
          number is an error, because with another first layer it would no longer be that network. For
          detection, num_classes counts the background.
        - `timm:NAME`, where timm is installed, without pretrained weights.
        - `package.module:factory`: imports the module and calls the factory, a function or class. It gets
          num_classes and in_channels where its signature has them.
    num_classes, in_channels: width of the last layer (None: the network's own default), and channels of the images.
    gamma: initial value of every BatchNorm scale γ (0.5 in Network Slimming); None leaves the network's own, as does a
        factory of the user's, whose network may be trained.
    allow_code: the name `package.module:factory`, or several, that may be imported: what the user wrote, never what a
        file says.
    kwargs: passed on to the network.

    Raises SlimError for an unknown name, an argument that the network doesn't take, a missing package, or
    code that isn't allowed.
    """
    for key, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value is not None and (type(value) is not int or value < 1):
            raise SlimError(f"{key} {value!r:.40}: expected a whole number of at least 1")
    source, _, name = arch.partition(":")
    if not source or not name:
        raise _unnamed(arch)
    sizes = {"in_channels": in_channels} | ({} if num_classes is None else {"num_classes": num_classes})
    if source == "slim":
        model = _slim(name, sizes, kwargs)
    elif source == "torchvision":
        model = _torchvision(name, sizes, kwargs)
    elif source == "timm":
        model = _timm(name, sizes, kwargs)
    else:
        model = _code(arch, sizes, kwargs, allow_code)
    if gamma is not None and source in LIBRARIES:  # a factory's network may be trained
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.affine:
                nn.init.constant_(module.weight, gamma)
    return model


def _slim(name: str, sizes: dict[str, int], kwargs: dict[str, Any]) -> nn.Module:
    if name not in _SLIM:
        raise unknown("slim model", name, _SLIM)
    takes = arguments(f"slim:{name}")
    for key in kwargs:
        if not takes:
            raise SlimError(f"slim:{name} takes no argument {key!r}")
        if key not in takes:
            raise unknown(f"argument of slim:{name}", key, takes)
    model = _call(f"slim:{name}", _SLIM[name], sizes | kwargs)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if module.bias is None:  # a BatchNorm follows
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
    return model


def _torchvision(name: str, sizes: dict[str, int], kwargs: dict[str, Any]) -> nn.Module:
    with progress("loading torchvision", 1):
        from torchvision import models

    arch = f"torchvision:{name}"
    known = _torchvision_names()
    if name not in known:
        raise unknown("torchvision model", name, known)
    if sizes["in_channels"] != 3:
        raise SlimError(f"{arch} reads images of 3 channels, not {sizes['in_channels']}")
    _refuse_weights(arch, kwargs)
    builder = models.get_model_builder(name)
    # Without this, segmentation and detection networks download a trained backbone.
    weights = {key: None for key in ("weights", "weights_backbone") if key in signature(builder).parameters}
    classes = {key: value for key, value in sizes.items() if key == "num_classes"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of initialisations that will change
        return _call(arch, builder, {**weights, **classes, **kwargs})


def _torchvision_names() -> list[str]:
    from torchvision import models

    tasks = (models, models.segmentation, models.detection, models.video)
    return [name for task in tasks for name in models.list_models(module=task)]


def _timm(name: str, sizes: dict[str, int], kwargs: dict[str, Any]) -> nn.Module:
    arch = f"timm:{name}"
    with named_if_missing():
        import timm
    if not timm.is_model(name):
        raise unknown("timm model", name, timm.list_models())
    _refuse_weights(arch, kwargs)
    sizes = {"in_chans" if key == "in_channels" else key: value for key, value in sizes.items()}
    return _call(arch, timm.create_model, {"model_name": name, "pretrained": False, **sizes, **kwargs})


def _code(arch: str, sizes: dict[str, int], kwargs: dict[str, Any], allow_code: Allowed) -> nn.Module:
    factory = import_object("model", arch, allow_code=allow_code, kind=nn.Module)
    takes = signature(factory).parameters
    takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in takes.values())
    sizes = {key: value for key, value in sizes.items() if takes_all or key in takes}
    wanted = takes.get("num_classes")
    if wanted is not None and wanted.default is Parameter.empty and "num_classes" not in sizes | kwargs:
        raise SlimError(
            f"{arch!r} needs num_classes, and the data name no classes: expected their names beside the data "
            "({'train': …, 'classes': …}), or model.kwargs {num_classes: 10}"
        )
    return _call(arch, factory, sizes | kwargs)


def _call(arch: str, factory: Callable[..., Any], kwargs: dict[str, Any]) -> nn.Module:
    """Return what the factory makes of the arguments; its complaints about them become one line."""
    try:
        model = factory(**kwargs)
    except SlimError:
        raise
    except FAILURES as error:
        raise SlimError(f"can't build {arch!r} with {kwargs} ({told(error, None)})") from error
    if not isinstance(model, nn.Module):
        raise SlimError(f"{arch!r} gave {type(model).__name__}, expected a torch.nn.Module")
    return model


def _refuse_weights(arch: str, kwargs: dict[str, Any]) -> None:
    for key in kwargs:
        if key in _WEIGHTS:
            raise SlimError(f"{arch} takes no {key!r} here: it starts untrained; expected model.weights (--weights)")


def _unnamed(arch: str) -> SlimError:
    """Return the error for a name without a source: the nearest one that has it."""
    full = {name: f"torchvision:{name}" for name in _torchvision_names()}
    full |= {name: f"slim:{name}" for name in _SLIM}
    near = get_close_matches(arch.strip(":"), full, n=1, cutoff=0.5)
    hint = f"did you mean {full[near[0]]!r}?" if near else f"expected {_FORMS}"
    return SlimError(f"unknown model {arch!r}: {hint}")
