"""A network in PyTorch, as a benchmark times it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from slim.deploy.bench.runners import Shape
from slim.deploy.onnx.session import ON_GPU, start_provider
from slim.deploy.target import BatchUnit, TimedCall
from slim.errors import SlimError


class TorchRunner:
    """A network in PyTorch, eager or compiled by torch.compile, on the GPU where the provider is one.

    `example`: one batch as it takes it, a tensor, a tuple or a dict; a shape, [C, H, W], stands for images. `file`: the
    file that it is from, to be named and for its size. `threads`: 0 for all cores; they are set for the whole process.

    Raises SlimError for a provider whose GPU this PyTorch doesn't see.
    """

    batch = BatchUnit()

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        *,
        compiled: bool = False,
        provider: str = "auto",
        threads: int = 0,
        file: str | Path | None = None,
    ) -> None:
        if all(isinstance(each, int) for each in example):
            example = torch.randn(1, *example, generator=torch.Generator().manual_seed(0))
        self.example, self.compiled, self.threads, self.file = example, compiled, threads, file
        self.device = "cuda" if start_provider(provider) in ON_GPU else "cpu"
        self.provider = f"PyTorch {self.device.upper()}"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SlimError(f"provider {provider!r} has a GPU, which this PyTorch doesn't see: expected provider cpu")
        if threads:
            torch.set_num_threads(threads)
        self.eager: Callable[..., Any] = model.to(self.device).eval()
        self.model = torch.compile(model, dynamic=False) if compiled else model

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.eager, self.example, self.device, self.threads)

    @property
    def name(self) -> str:
        return "the network" if self.file is None else str(self.file)

    @property
    def measures_memory(self) -> bool:
        """Return a compiler's memory would count."""
        return not self.compiled

    @property
    def file_size(self) -> int | None:
        return None if self.file is None else Path(self.file).stat().st_size

    @property
    def shapes(self) -> list[Shape]:
        return [tuple(leaf.shape[1:]) for leaf in tree_leaves(self.example) if isinstance(leaf, Tensor)]

    def prepare(self, batch_size: int) -> TimedCall:
        inputs = tree_map_only(Tensor, lambda leaf: self._repeated(leaf, batch_size), self.example)
        named = inputs if isinstance(inputs, dict) else {}
        placed = () if named else inputs if isinstance(inputs, tuple | list) else (inputs,)

        def call(run: Callable[..., Any] = self.model) -> None:
            with torch.inference_mode():
                run(*placed, **named)
            if self.device == "cuda":
                torch.cuda.synchronize()

        try:
            call(self.eager)  # what fails here isn't the compiler's fault
        except Exception as error:
            taken = " and ".join(str([batch_size, *each]) for each in self.shapes)
            raise SlimError(
                f"{self.name} doesn't run on images {taken}: expected a batch and an input_shape that fit "
                f"it ({_first_line(error)})"
            ) from error
        if self.compiled:
            try:
                call()  # compiles
            except Exception as error:
                raise SlimError(
                    f"torch.compile can't compile {self.name} here ({_first_line(error)}); expected a C++ compiler, or "
                    "no compiled network (--compiled false)"
                ) from error
        return call

    def _repeated(self, leaf: Tensor, count: int) -> Tensor:
        """Return the first sample of an input so many times."""
        return leaf[:1].repeat(count, *[1] * (leaf.dim() - 1)).to(self.device) if leaf.dim() else leaf.to(self.device)


def _rebuilt(model: nn.Module, example: Any, provider: str, threads: int) -> TorchRunner:
    return TorchRunner(model, example, provider=provider, threads=threads)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
