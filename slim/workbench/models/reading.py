"""Trained weights by a word of the settings: a file, a name of a library's, or a repository on the Hugging Face Hub."""

from pathlib import Path

from slim.errors import SlimError
from slim.workbench.models.libraries import from_hub, from_timm, from_torchvision
from slim.workbench.models.weights import HUB, PICKLED, Weights, file_and_key, is_file, states_in_file, tensors_under


def read_weights(arch: str, source: str) -> Weights:
    """Return trained weights for an architecture.

    source: a file (.safetensors, or of torch.save, .pt, .pth, .bin, .ckpt, .tar, .pkl: a state dict, or one under some
    key, `FILE:ema` for one of several); `hf-hub:owner/name`, with `@revision` where it isn't the newest; or for
    `torchvision:` and `timm:` the name of weights, such as DEFAULT or IMAGENET1K_V2. The latter two are found or
    downloaded by the library that owns them.
    Raises SlimError where there is no such file or name, and for a pickled model, which would run code.
    """
    library, _, name = arch.partition(":")
    if source.startswith(HUB):
        return from_hub(source)
    if is_file(source):
        file, key = file_and_key(source)
        states = states_in_file(Path(file))
        if key is not None:
            states = tensors_under(key, states, file)
        return Weights(source, lambda: states)
    if library == "torchvision":
        return from_torchvision(name, source)
    if library == "timm":
        return from_timm(name, source)
    raise SlimError(
        f"weights {source!r}: expected a file that ends in .safetensors or {', '.join(PICKLED)}, {HUB}owner/name, or "
        "with torchvision: or timm: the name of weights such as DEFAULT"
    )
