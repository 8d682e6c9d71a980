"""slim: channel pruning for any CNN, exact, honest, and measured where it runs.

The public surface is below. Names are looked up on first use, so that `import slim` costs nothing and torch is
imported only when work starts.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {  # public name -> the room it lives in
    "sparsify": "sparsity",
    "L1": "sparsity",
    "L2": "sparsity",
    "ElasticNet": "sparsity",
    "Lp": "sparsity",
    "DeadZoneL1": "sparsity",
    "L0": "sparsity",
    "GroupLasso": "sparsity",
    "Polarization": "sparsity",
    "TransformedL1": "sparsity",
    "Penalty": "sparsity",
    "Sparsity": "sparsity",
    "coupled": "sparsity",
    "parameter_groups": "sparsity",
    "plan": "planning",
    "PruningPlan": "planning",
    "explain": "planning",
    "verify": "verification",
    "save": "checkpoint",
    "load": "checkpoint",
    "export_onnx": "export",
    "OnnxModel": "export",
    "benchmark": "bench",
    "SlimError": "errors",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'slim' has no attribute {name!r}")
    return getattr(import_module(f"slim.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    pass
