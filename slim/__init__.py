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
    "Runtime": "runtime",
    "plan": "planning",
    "PruningPlan": "planning",
    "explain": "planning",
    "verify": "verification",
    "recover": "recovery",
    "Recovery": "recovery",
    "save": "checkpoint",
    "load": "checkpoint",
    "export_onnx": "export",
    "OnnxModel": "export",
    "quantize_onnx": "export",
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


if TYPE_CHECKING:  # what type checkers and editors see
    from slim.bench import benchmark as benchmark
    from slim.checkpoint import load as load
    from slim.checkpoint import save as save
    from slim.errors import SlimError as SlimError
    from slim.export import OnnxModel as OnnxModel
    from slim.export import export_onnx as export_onnx
    from slim.export import quantize_onnx as quantize_onnx
    from slim.planning import PruningPlan as PruningPlan
    from slim.planning import explain as explain
    from slim.planning import plan as plan
    from slim.recovery import Recovery as Recovery
    from slim.recovery import recover as recover
    from slim.runtime import Runtime as Runtime
    from slim.sparsity import L0 as L0
    from slim.sparsity import L1 as L1
    from slim.sparsity import L2 as L2
    from slim.sparsity import DeadZoneL1 as DeadZoneL1
    from slim.sparsity import ElasticNet as ElasticNet
    from slim.sparsity import GroupLasso as GroupLasso
    from slim.sparsity import Lp as Lp
    from slim.sparsity import Penalty as Penalty
    from slim.sparsity import Polarization as Polarization
    from slim.sparsity import Sparsity as Sparsity
    from slim.sparsity import TransformedL1 as TransformedL1
    from slim.sparsity import coupled as coupled
    from slim.sparsity import parameter_groups as parameter_groups
    from slim.sparsity import sparsify as sparsify
    from slim.verification import verify as verify
