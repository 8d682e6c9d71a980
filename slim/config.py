"""Typed settings for every command, read from a YAML file and overridden on the command line.

Each stage has one dataclass, and `RunConfig` nests them all, so one YAML file serves every command. A field's comment
says what it means and in which unit; `RANGES` says which values are sound. Nothing here imports torch: `--help` and a
typing mistake answer at once.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class DataConfig:
    name: str = "digits"  # digits, cifar10, cifar100, svhn, mnist, fashionmnist, or imagefolder
    root: str = "data"  # where downloaded data lies; for imagefolder, a tree split/class/image or class/image
    download: bool = False  # let torchvision fetch what is missing under root
    image_size: int | None = None  # pixels, height = width; None keeps the data set's own (imagefolder needs one)
    val_fraction: float = 0.1  # share of the training images held out to choose models by
    augment: Literal["auto", "none", "crop", "crop+flip"] = "auto"  # auto: what suits the data set
    batch_size: int = 64


@dataclass
class ModelConfig:
    arch: str = "slim:vgg7"  # slim:NAME, torchvision:NAME, timm:NAME, or package.module:factory
    kwargs: dict[str, Any] = field(default_factory=dict)  # passed to the architecture
    gamma: float | None = 0.5  # initial value of every BatchNorm scale (0.5 as in the paper); None leaves it


@dataclass
class OptimConfig:
    epochs: int = 30
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4  # on convolution and linear weights only, unless decay_norm
    decay_norm: bool = False  # also decay BatchNorm scales and all biases, as the paper's code does
    schedule: Literal["constant", "step", "cosine"] = "cosine"  # step: ÷10 at half and at three quarters
    warmup: float = 0.05  # share of the steps over which the learning rate rises linearly from 0
    label_smoothing: float = 0.0


@dataclass
class SparsityConfig:
    strength: float = 1e-4  # λ, weight of Σ|γ| in the loss; 0 trains without a penalty
    method: Literal["subgradient"] = "subgradient"
    targets: str = "*"  # shell pattern: names of the BatchNorm layers whose γ is penalised
    schedule: Literal["constant", "ramp"] = "constant"  # ramp: λ rises linearly from 0 over training


@dataclass
class PruneConfig:
    ratio: float = 0.5  # share of all prunable BatchNorm channels to remove
    floor: float = 0.1  # share of each layer's channels that always stays (at least one does)
    score: Literal["mean", "max", "sum"] = "mean"  # how a coupled group's score follows from its |γ|
    mode: Literal["couple", "select"] = "couple"  # for BatchNorm before convolution: see slim.plan
    round_to: int = 1  # keep a multiple of this many channels in each layer


@dataclass
class ExportConfig:
    opset: int = 20


@dataclass
class BenchConfig:
    batch_sizes: list[int] = field(default_factory=lambda: [1, 32])
    threads: int = 0  # 0: all cores
    provider: str = "auto"  # auto, cpu, cuda, or the name of an onnxruntime execution provider
    runs: int = 50  # timed runs per model, alternating with the others
    warmup: int = 10


@dataclass
class RunConfig:
    name: str = "digits"  # the run's folder: checkpoints/<name>/
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, mps
    precision: str = "auto"  # auto, 32-true, bf16-mixed, 16-mixed
    channels_last: bool = True
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: OptimConfig = field(default_factory=OptimConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    finetune: OptimConfig = field(default_factory=lambda: OptimConfig(epochs=20, lr=0.05))
    export: ExportConfig = field(default_factory=ExportConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
