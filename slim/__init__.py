"""slim: channel pruning for any CNN, exact, honest, and measured where it runs.

The public surface is below. Names are looked up on first use, so that `import slim` costs nothing and torch is
imported only when work starts.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from slim.extras import named_if_missing
from slim.version import __version__

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
    "Runtime": "deploy.cost.runtime",
    "Runtimes": "deploy.cost.runtime",
    "OnnxRuntime": "deploy.onnx.target",
    "OpenVino": "deploy.openvino.target",
    "ExecuTorch": "deploy.executorch.target",
    "export": "deploy.targets",
    "Latency": "deploy.cost.latency",
    "Budget": "prune.budgets",
    "Channels": "prune.budgets",
    "Flops": "prune.budgets",
    "Params": "prune.budgets",
    "Loss": "prune.loss",
    "Score": "prune.scores",
    "Gamma": "prune.scores",
    "Magnitude": "prune.scores",
    "Random": "prune.scores",
    "Residual": "prune.residual",
    "Taylor": "prune.taylor",
    "Auto": "prune.auto",
    "plan": "prune.planner",
    "PruningPlan": "prune.plan",
    "explain": "prune.planner",
    "sensitivity": "prune.sensitivity",
    "Sensitivity": "prune.sensitivity",
    "verify": "prune.verify",
    "recover": "prune.recovery.recover",
    "Recovery": "prune.recovery.recover",
    "merge": "prune.recovery.merge",
    "Slimming": "trainers.slimming",
    "compress": "compression",
    "Compressed": "compression",
    "save": "checkpoint",
    "load": "workbench.models.load",
    "push_to_hub": "workbench.models.hub",
    "ImageSpec": "images",
    "export_onnx": "deploy.onnx.write",
    "OnnxModel": "deploy.onnx.predict",
    "quantize_onnx": "deploy.onnx.quantize",
    "read_onnx": "deploy.onnx.reader.read",
    "prune_onnx": "deploy.onnx.prune",
    "OnnxPruning": "deploy.onnx.prune",
    "benchmark": "deploy.bench.benchmark",
    "rule": "trace.rules.builtin",
    "Op": "trace.op",
    "SlimError": "errors",
    "SlimWarning": "errors",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'slim' has no attribute {name!r}")
    with named_if_missing():
        return getattr(import_module(f"slim.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:  # what type checkers and editors see
    from slim.checkpoint import save as save
    from slim.compression import Compressed as Compressed
    from slim.compression import compress as compress
    from slim.deploy.bench.benchmark import benchmark as benchmark
    from slim.deploy.cost.latency import Latency as Latency
    from slim.deploy.cost.runtime import Runtime as Runtime
    from slim.deploy.cost.runtime import Runtimes as Runtimes
    from slim.deploy.executorch.target import ExecuTorch as ExecuTorch
    from slim.deploy.onnx.predict import OnnxModel as OnnxModel
    from slim.deploy.onnx.prune import OnnxPruning as OnnxPruning
    from slim.deploy.onnx.prune import prune_onnx as prune_onnx
    from slim.deploy.onnx.quantize import quantize_onnx as quantize_onnx
    from slim.deploy.onnx.reader.read import read_onnx as read_onnx
    from slim.deploy.onnx.target import OnnxRuntime as OnnxRuntime
    from slim.deploy.onnx.write import export_onnx as export_onnx
    from slim.deploy.openvino.target import OpenVino as OpenVino
    from slim.deploy.targets import export as export
    from slim.errors import SlimError as SlimError
    from slim.errors import SlimWarning as SlimWarning
    from slim.images import ImageSpec as ImageSpec
    from slim.prune.auto import Auto as Auto
    from slim.prune.budgets import Budget as Budget
    from slim.prune.budgets import Channels as Channels
    from slim.prune.budgets import Flops as Flops
    from slim.prune.budgets import Params as Params
    from slim.prune.loss import Loss as Loss
    from slim.prune.plan import PruningPlan as PruningPlan
    from slim.prune.planner import explain as explain
    from slim.prune.planner import plan as plan
    from slim.prune.recovery.merge import merge as merge
    from slim.prune.recovery.recover import Recovery as Recovery
    from slim.prune.recovery.recover import recover as recover
    from slim.prune.residual import Residual as Residual
    from slim.prune.scores import Gamma as Gamma
    from slim.prune.scores import Magnitude as Magnitude
    from slim.prune.scores import Random as Random
    from slim.prune.scores import Score as Score
    from slim.prune.sensitivity import Sensitivity as Sensitivity
    from slim.prune.sensitivity import sensitivity as sensitivity
    from slim.prune.taylor import Taylor as Taylor
    from slim.prune.verify import verify as verify
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
    from slim.trace.op import Op as Op
    from slim.trace.rules.builtin import rule as rule
    from slim.trainers.slimming import Slimming as Slimming
    from slim.workbench.models.hub import push_to_hub as push_to_hub
    from slim.workbench.models.load import load as load
