"""Typed settings for every command, read from a YAML file and overridden on the command line.

Each stage has one dataclass, and `RunConfig` nests them all, so one YAML file serves every command. The
defaults of `RunConfig` are the digits run. A field says what it means, in which unit, and which values are
sound: `--help` prints that, and `updated` checks it. Nothing here imports torch: `--help` and mistakes answer at
once.
"""

import contextlib
import dataclasses
import re
import types
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from slim.errors import SlimError, unknown
from slim.files import read_text

AUTO = "auto"
SHOWN = 80  # characters of a value in an error
MOST_VALUES = 10_000  # in a file of settings
MOST_BYTES = 2**20  # of one
LARGEST = 2**31 - 1  # of a whole number without a bound of its own
LARGEST_NUMBER = 1e18  # of another
DEEPEST = 8  # levels of a mapping or a list within a setting


def setting(default: Any, help: str, within: str = "") -> Any:
    """Return a dataclass field with its help text and its range in interval notation, such as "[0, 1)"."""
    return field(default=default, metadata=about(help, within))


def about(help: str, within: str = "") -> dict[str, str]:
    return {"help": help, "within": within}


@dataclass
class DataConfig:
    name: str = setting(
        "digits",
        "digits, shapes (for segmentation or detection), cifar10, cifar100, svhn, mnist, fashionmnist, imagefolder, "
        "images (a folder without labels), imagelist, huggingface (of the package datasets), or your own "
        "package.module:factory or file.py:factory",
    )
    root: str = setting(
        "data",
        "its folder; for imagefolder a tree split/class/image or class/image, for imagelist a CSV or JSON file of "
        "paths and labels, for huggingface OWNER/NAME or a folder",
    )
    download: bool = setting(False, "let torchvision fetch what is missing under the root")
    image_size: int | None = setting(
        None, "pixels, height = width; null: the data set's own (imagefolder needs one)", "[1, inf)"
    )
    mean: list[float] | None = field(
        default=None,
        metadata=about(
            "of each channel, black 0 and white 1, as the network's weights were trained; null: as their library says, "
            "else the training images'"
        ),
    )
    std: list[float] | None = field(default=None, metadata=about("the same of the standard deviation", "(0, inf)"))
    val_fraction: float = setting(0.1, "share of the training images held out to choose models by", "[0, 1)")
    augment: str = setting(
        "auto",
        "auto: what suits the data set; none; or some of crop, flip, cutout, randaugment, trivialaugment, joined by +",
    )
    storage: Literal["auto", "device", "host", "stream"] = setting(
        "auto",
        "images decoded on the device or in memory; stream: decoded again in each epoch (folders); auto: what fits",
    )
    workers: int | None = setting(
        None, "processes that decode image files; null: one for each core, at most 16", "[0, inf)"
    )
    timeout: float = setting(60.0, "seconds that those may take for a batch; 0: any", "[0, inf)")
    max_pixels: int = setting(
        67_108_864, "largest image in a file, which is decoded whole before it is scaled", "[1, 178956970]"
    )
    cache: bool = setting(True, "keep the decoded images of an image folder in a hidden file there")
    batch_size: int = setting(64, "images in a training step", "[1, inf)")


@dataclass
class ModelConfig:
    arch: str = setting(
        "slim:vgg7",
        "slim:NAME, torchvision:NAME, timm:NAME, hf-hub:OWNER/NAME (of timm), or your own package.module:factory or "
        "file.py:factory",
    )
    kwargs: dict[str, Any] = field(default_factory=dict, metadata=about("passed to the architecture"))
    weights: str | None = setting(
        None,
        "trained weights: a file (.safetensors, .pt, .pth; FILE:ema where it holds several), hf-hub:OWNER/NAME, or a "
        "name such as DEFAULT of torchvision: and timm:",
    )
    example: str | None = setting(
        None, "your own package.module:function or file.py:function that gives an input, where that isn't one image"
    )
    gamma: float | None = setting(
        0.5,
        "first value of every BatchNorm scale of a new network, 0.5 in the paper; null leaves it; weights and networks "
        "of your own keep theirs",
        "(0, inf)",
    )

    @property
    def trained(self) -> bool:
        """Say whether it comes with weights: those that are named, or those of a repository on the Hub."""
        return self.weights is not None or self.arch.startswith("hf-hub:")


@dataclass
class OptimConfig:
    epochs: int = setting(30, "passes over the training images", "[1, inf)")
    optimizer: Literal["sgd", "adam", "adamw"] = setting("sgd", "of torch.optim")
    lr: float = setting(0.1, "highest learning rate", "(0, inf)")
    momentum: float = setting(0.9, "momentum of SGD, β₁ of Adam and AdamW", "[0, 1)")
    nesterov: bool = setting(True, "SGD looks ahead along the momentum")
    weight_decay: float = setting(1e-4, "on convolution and linear weights only, unless decay_norm", "[0, inf)")
    decay_norm: bool = setting(False, "also decay BatchNorm scales and all biases, as the paper's code does")
    schedule: Literal["constant", "step", "cosine", "onecycle"] = setting(
        "cosine", "of the learning rate; step: ÷10 at each of milestones; onecycle: up for warmup, then down"
    )
    milestones: list[float] = field(
        default_factory=lambda: [0.5, 0.75],
        metadata=about("shares of the steps after which schedule step divides by 10", "(0, 1)"),
    )
    warmup: float = setting(0.05, "share of the steps over which the learning rate rises", "[0, 1)")
    label_smoothing: float = setting(0.0, "share of each label spread over all classes", "[0, 1)")
    mixup: float = setting(0.0, "α of mixup, such as 0.2: pairs of images are blended; 0: off", "[0, inf)")
    cutmix: float = setting(
        0.0, "α of CutMix, such as 1: boxes are exchanged; 0: off; with mixup: one of the two", "[0, inf)"
    )
    clip_norm: float = setting(0.0, "longest gradient, by its norm over all weights; 0: any", "[0, inf)")
    ema: float = setting(0.0, "decay of an average that takes the weights' place, such as 0.999; 0: off", "[0, 1)")
    patience: int = setting(
        0, "without a penalty: stop after so many epochs without a better one, and take the best; 0: never", "[0, inf)"
    )


@dataclass
class TrainConfig(OptimConfig):
    """What is null follows from the optimizer, as `slim.workbench.run.finetuning` decides."""

    lr: float | None = setting(  # type: ignore[assignment]
        None,
        "highest learning rate; null: 0.1 of SGD, 1e-3 of Adam; for weights that came with the network 0.02 and 5e-4, "
        "with a new last layer as usual",
        "(0, inf)",
    )


@dataclass
class FinetuneConfig(OptimConfig):
    """What is null follows from the training before, as `slim.workbench.run.finetuning` decides."""

    epochs: int | None = setting(  # type: ignore[assignment]
        None, "passes over the training images; null: two thirds of train.epochs", "[1, inf)"
    )
    lr: float | None = setting(  # type: ignore[assignment]
        None,
        "highest learning rate; null: half of train.lr, if both use the same optimizer; for weights that came with the "
        "network 0.02 of SGD, 5e-4 of Adam",
        "(0, inf)",
    )
    distill: float = setting(
        0.0, "weight of learning from the unpruned network's outputs, next to the labels; 0: off", "[0, 1]"
    )
    temperature: float = setting(4.0, "softens both networks' outputs in that", "(0, inf)")


@dataclass
class SparsityConfig:
    penalty: Literal[
        "l1", "l2", "elastic_net", "lp", "dead_zone", "l0", "transformed_l1", "polarization", "group_lasso"
    ] = setting("l1", "on γ; l1 is the paper's Σ|γ|, group_lasso unites channels that go together")
    penalty_kwargs: dict[str, Any] = field(
        default_factory=dict, metadata=about("its own settings, such as {p: 0.5} of lp")
    )
    strength: float = setting(1e-4, "λ, weight of the penalty in the loss; the paper: 1e-4", "[0, inf)")
    method: Literal["subgradient", "proximal", "loss"] = setting(
        "subgradient", "how the penalty acts on γ; proximal reaches exact zeros"
    )
    targets: str = setting("*", "shell pattern: names of the BatchNorm layers whose γ is penalised")
    schedule: Literal["constant", "warmup", "ramp", "decay"] = setting(
        "constant", "of λ; warmup: up over the first tenth, ramp: up all along, decay: down all along"
    )
    target: float | Literal["plan"] | None = setting(
        None,
        "what of γ is exactly zero at the end: a share; or plan: what the settings of prune would remove, which alone "
        "is pushed; finds λ, from strength on (proximal only)",
        "(0, 1)",
    )
    floor: float = setting(0.1, "with a target: share of each layer's γ that is never pushed", "[0, 1)")
    gradual: int = setting(
        0, "prune in so many small steps within this training, to the budget of prune; 0: only after it", "[0, inf)"
    )
    gradual_start: float = setting(0.2, "share of the training before those steps", "[0, 1)")
    gradual_end: float = setting(0.7, "share of the training at which the last one is", "(0, 1]")

    @property
    def penalises(self) -> bool:
        """Say whether a training with it pushes γ at all."""
        return self.strength > 0 or self.target is not None

    @property
    def plans(self) -> bool:
        """Say whether a training with it asks for plans, and so depends on the settings of prune."""
        return self.gradual > 0 or self.target == "plan"


@dataclass
class PruneConfig:
    """How much to remove, and what. One budget holds: the one given last takes the place of the others."""

    ONE_OF: ClassVar = ("ratio", "flops", "params", "latency", "max_loss")

    ratio: float | None = setting(0.5, "budget: share of all BatchNorm channels to remove", "[0, 1)")
    flops: float | None = setting(None, "budget: FLOPs that may stay, a share up to 1 or a number", "(0, inf)")
    params: float | None = setting(None, "budget: parameters that may stay, a share or a number", "(0, inf)")
    latency: float | str | None = setting(
        None,
        "budget: share of the original's that may stay, or a time such as 4.0ms; on bench.provider, as latency_of says",
    )
    latency_of: Literal["first", "worst", "mean"] = setting(
        "first",
        "where a budget of latency holds: the first of bench.batch_sizes and of bench.threads; in the worst of all; in "
        "their mean, by bench.weights",
    )
    max_loss: float | None = setting(
        None,
        "budget: what the metric may lose on validation images, such as 0.01; the largest such cut is found, recovered",
        "[0, inf)",
    )
    floor: float = setting(
        0.1, "what always stays of each layer: a share below 1, or a number of channels; at least one does", "[0, inf)"
    )
    score: Literal["auto", "mean", "max", "sum", "residual", "taylor", "magnitude", "random"] = setting(
        "auto",
        "how important coupled channels are: mean, max or sum of their |γ|; residual: what others can't stand in for; "
        "taylor: how far the outputs move without them, to first order; magnitude: the size of their filters; random; "
        "auto: mean after a training with the penalty, else residual where there are images, else magnitude",
    )
    scope: Literal["global", "layer", "isomorphic"] = setting(
        "global", "layer: the same share of every layer; isomorphic: of every kind of layer"
    )
    mode: Literal["couple", "select"] = setting("couple", "for BatchNorm before convolution: see slim.plan")
    grouped: Literal["within", "whole"] = setting(
        "within", "grouped convolutions lose the same places within each group, or whole groups"
    )
    round_to: int | Literal["auto"] = setting(
        "auto",
        "keep a multiple of this many channels in each layer, 1 for the paper's exact numbers; auto: by measured cost, "
        "wherever the benchmark measures, and never a network that is slower there if another is known",
        "[1, inf)",
    )
    keep: list[str] | None = field(default=None, metadata=about("shell patterns of BatchNorms to leave whole"))
    layer_ratios: dict[str, Any] | None = field(
        default=None, metadata=about("shell pattern of BatchNorms: share to remove there")
    )
    blocks: bool = setting(
        False, "whole residual blocks go, too, where that loses less for what it saves; by score residual alone"
    )
    recover: bool = setting(True, "win accuracy back before any training: see slim.recover")
    calibration_images: int = setting(1024, "training images for recovery and scores by images", "[8, inf)")


@dataclass
class ExportConfig:
    batch: int | str = setting("any", "batch sizes that the file takes: any; 8 alone; 8n: its multiples, clips of 8")
    opset: int = setting(20, "version of the ONNX operator set", "[18, 25]")
    dynamic_size: bool = setting(False, "leave height and width of the images open")
    to: Literal["onnx", "openvino", "executorch"] = setting(
        "onnx",
        "openvino: also write model.xml, with model.bin beside it; executorch: also write model.pte (each needs the "
        "extra of its name)",
    )
    preprocess: bool = setting(False, "normalise inside: raw images in, uint8 [N, H, W, C], probabilities out")
    float64: bool = setting(False, "also compare in float64, before optimisation; takes twice as long")
    int8: bool = setting(False, "also write model.int8.onnx, quantised on training images")
    calibration: Literal["minmax", "entropy", "percentile"] = setting(
        "minmax", "how INT8 finds the range of activations; the latter two keep all values in memory"
    )
    calibration_images: int = setting(256, "to find those ranges on", "[1, inf)")
    max_loss: float = setting(0.01, "share of the test images that INT8 may lose, or it isn't kept", "[0, 1]")
    reduce_range: bool | Literal["auto"] = setting(
        "auto", "INT8 weights in 7 bits, for processors without VNNI; auto: where this one has none"
    )


@dataclass
class BenchConfig:
    batch_sizes: list[int] = field(
        default_factory=lambda: [1, 32],
        metadata=about("images in one call; [1, 32] gives way to the size of a file that has a fixed one", "[1, inf)"),
    )
    threads: list[int] = field(
        default_factory=lambda: [0, 1], metadata=about("of one call, each in turn; 0: all cores", "[0, 256]")
    )
    weights: list[float] | None = field(
        default=None,
        metadata=about("how much each counts for sizes: for each of threads, each of batch_sizes", "(0, inf)"),
    )
    provider: str = setting(
        "auto", "cpu, cuda, tensorrt, openvino: what this onnxruntime has; auto: cuda, or cpu where that doesn't start"
    )
    runs: int = setting(50, "timed runs per model, alternating with the others", "[1, inf)")
    warmup: int = setting(10, "runs per model before the clock starts", "[0, inf)")
    image_size: int | None = setting(
        None, "pixels, for files of other makers that leave it open; others have to fit", "[1, inf)"
    )
    compiled: bool = setting(True, "also time torch.compile of checkpoints")
    memory: bool = setting(True, "also measure peak memory, in a process for each file")
    profile: int = setting(0, "nodes to show of each ONNX file, those that take the most time", "[0, inf)")


@dataclass
class ComputeConfig:
    """Where and how to compute. None of it changes what is learned, but for rounding."""

    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "where to train")
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = setting("auto", "of training")
    channels_last: bool = setting(True, "memory layout of images and weights in training")
    compile: bool = setting(False, "torch.compile the network for training: slow to start, then faster")
    graph: bool | Literal["auto"] = setting(
        "auto",
        "on a GPU, record whole training steps and replay them as a CUDA graph; auto: where the training allows it",
    )
    deterministic: bool = setting(False, "on a GPU: the same bits in each run, more slowly; on CPUs they always are")
    devices: int = setting(1, "processes on this machine, each with a device of its own", "[1, inf)")
    num_nodes: int = setting(1, "machines that train together, where no torchrun says so", "[1, inf)")
    sync_batchnorm: bool = setting(True, "with several devices: BatchNorm over the batches of all of them")
    accumulate: int | Literal["auto"] = setting(
        1, "parts that a batch is cut into to save memory; auto: twice as many until it fits", "[1, inf)"
    )


@dataclass
class WholeConfig:
    path: Literal["auto", "sparse", "direct", "none"] = setting(
        "auto",
        "how slim-run goes on from the baseline: sparse (train with the penalty, prune, fine-tune), direct (prune, "
        "recover, fine-tune), none (prune, recover); auto: direct from trained weights or without γ, else sparse",
    )
    speedup: float | None = setting(
        None, "wanted: so many times as fast as the baseline, which sets prune.latency", "(1, inf)"
    )
    max_loss: float | None = setting(
        None, "wanted: the metric loses at most this, such as 0.01; the run says whether both were reached", "[0, inf)"
    )


@dataclass
class ReportConfig:
    page: bool = setting(True, "let slim-run make report.html at the end")
    sweep_seconds: float = setting(60.0, "limit of its sweep over other ratios; 0 leaves it out", "[0, inf)")


@dataclass
class RunConfig:
    name: str = setting(AUTO, "the run's folder: checkpoints/NAME/; auto: named after data and network")
    seed: int = setting(0, "of every random draw", "[0, 4294967295]")
    passes: int = setting(
        1,
        "times that slim-run trains, prunes and fine-tunes; with several, at most half of a layer goes in one",
        "[1, inf)",
    )
    save_minutes: float = setting(10.0, "minutes between states to resume from, beside one for each epoch", "(0, inf)")
    keep_states: int = setting(2, "states to resume from that are kept", "[1, inf)")
    tensorboard: bool = setting(False, "also write TensorBoard's files (needs the extra tensorboard)")
    tracker: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = setting(
        "none", "tell each epoch to a service; its package is an extra, its account and offline mode are its own"
    )
    task: str = setting(
        "classification",
        "what is learned: classification, multilabel, regression, segmentation, detection, package.module:Task, or "
        "file.py:Task",
    )
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sparsity: SparsityConfig = field(default_factory=lambda: SparsityConfig(strength=0.01))
    prune: PruneConfig = field(default_factory=lambda: PruneConfig(ratio=0.6))
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    run: WholeConfig = field(default_factory=WholeConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


@dataclass(frozen=True)
class Setting:
    """One setting as the command line shows it."""

    key: str  # dotted, such as "train.lr"
    type: Any
    default: Any
    help: str
    within: str


@cache
def settings() -> dict[str, Setting]:
    """Return every setting by its dotted key, in the order of the file."""
    return {s.key: s for s in _walk(RunConfig(), "")}


def flattened(value: Any, name: str = "") -> dict[str, Any]:
    """Return nested settings in one level, by names such as "prune.ratio"."""
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    inner = (flattened(each, f"{name}.{key}" if name else key).items() for key, each in value.items())
    return dict(chain.from_iterable(inner))


def _walk(config: Any, prefix: str) -> Iterator[Setting]:
    hints = get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from _walk(value, f"{prefix}{f.name}.")
        else:
            yield Setting(prefix + f.name, hints[f.name], value, **f.metadata)


# What is a number without a point, too: tag, pattern, first characters.
_POWER = "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")


class _Reader(yaml.SafeLoader):
    """Reads YAML 1.1 in which 1e-3 is a number; by the letter it is text, for want of a point."""


class _Writer(yaml.SafeDumper):
    """Writes such YAML: text that looks like such a number in quotes."""


_Reader.add_implicit_resolver(*_POWER)
_Writer.add_implicit_resolver(*_POWER)


def read(path: str | Path) -> dict[str, Any]:
    """Return the settings that a YAML file holds, unchecked. SlimError where there is no such file or mapping."""
    text = read_text("config", path, MOST_BYTES)
    try:
        values = yaml.load(text, _Reader)
        _check_extent(values)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(e, "problem", None) or "not readable"
        raise SlimError(f"config {str(path)!r} is not valid YAML{line}: {reason}") from None
    except Exception as e:  # dates that there aren't, nesting without end: whatever the values make safe_load raise
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:100]
        raise SlimError(f"config {str(path)!r} holds a value that can't be ({reason})") from None
    if values is None:  # an empty file, or comments only
        return {}
    if not isinstance(values, dict):
        raise SlimError(f"config {str(path)!r} holds {_shown(values)}: expected settings such as 'seed: 1'")
    return values


def _check_extent(values: Any) -> None:
    """Raise ValueError for more values than settings have: a few aliases of aliases can stand for billions."""
    left, count = [values], 0
    while left:
        value = left.pop()
        count += 1
        if count > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values")
        left += [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []


def updated(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return a copy of `config` with nested `values` in place of its own, every one of them checked.

    Raises SlimError for an unknown key (naming the nearest), a wrong type, or a value out of range.
    """
    new: RunConfig = _updated(config, values, "")
    if not new.name or Path(new.name).name != new.name or new.name in (".", ".."):
        raise SlimError(f"name is {new.name!r}: expected a plain folder name")
    return new


def _updated(config: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise SlimError(f"{prefix[:-1]} is {values!r}: expected settings, one of {', '.join(vars(config))}")
    changes = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in vars(config):
            raise unknown_key(key)
        old = getattr(config, name)
        if dataclasses.is_dataclass(old):
            changes[name] = _updated(old, value, f"{key}.")
        else:
            changes[name] = _checked(settings()[key], value)
    given = [name for name in getattr(config, "ONE_OF", ()) if changes.get(name) is not None]
    if len(given) > 1:
        raise SlimError(f"{' and '.join(prefix + name for name in given)} are given: expected one of them")
    if given:
        changes |= {name: None for name in config.ONE_OF if name != given[0]}
    return dataclasses.replace(config, **changes)


def run_name(data: DataConfig | None, arch: str) -> str:
    """Return what to call a run of a network on data: digits-vgg7; a file or folder of the user's by its name."""
    words = [arch.rpartition(":")[2]]
    if data is not None:
        placed = data.name in ("imagefolder", "images", "imagelist", "huggingface")  # which say nothing by their name
        place = data.root if placed else data.name.partition(":")[0]
        words.insert(0, Path(place).resolve().stem if placed or place.endswith(".py") else place)
    return re.sub(r"[^\w.-]+", "-", "-".join(words)).strip("-.") or "run"


def without_permissions(stored: RunConfig, own: DataConfig | None = None) -> RunConfig:
    """Return settings that a file holds, with the user's `own` word for where data lie and what is downloaded: a file
    says what was, and decides neither."""
    own = own or DataConfig()
    return dataclasses.replace(stored, data=dataclasses.replace(stored.data, root=own.root, download=own.download))


def unknown_key(key: str) -> SlimError:
    """Return the error for a setting that doesn't exist: its namesakes elsewhere, or the nearest of its section."""
    section, _, name = key.rpartition(".")
    known = {*settings(), *(f.name for f in dataclasses.fields(RunConfig))}
    siblings = [k for k in known if k.rpartition(".")[0] == section]
    namesakes = [k for k in settings() if k.rpartition(".")[2] == name]
    if namesakes:
        return SlimError(f"unknown setting {key!r}: did you mean {' or '.join(map(repr, namesakes))}?")
    return unknown("setting", key, siblings or known)


def _checked(s: Setting, value: Any) -> Any:
    # Where text isn't what is wanted, it stands for the value it spells: on the command line everything is text.
    meant = value
    if isinstance(value, str) and s.type is not str and get_origin(s.type) is not Literal:
        listed = any(get_origin(kind) is list for kind in (s.type, *get_args(s.type)))
        with contextlib.suppress(Exception):  # whatever the value makes it raise: then it is text
            meant = yaml.load(f"[{value}]" if listed and "," in value and "[" not in value else value, _Reader)
    fitted = _converted(meant, s.type)
    if fitted is _MISFIT:
        if get_origin(s.type) is Literal and isinstance(value, str):
            raise unknown(s.key, value, get_args(s.type))
        raise SlimError(f"{s.key} is {_shown(value)}: expected {describe(s.type)}")
    for number in fitted if isinstance(fitted, list) else [fitted]:
        if not isinstance(number, int | float):
            continue
        if s.within and not _inside(number, s.within):
            raise SlimError(f"{s.key} is {_shown(number)}: expected {in_words(s.within)}")
        most = LARGEST if isinstance(number, int) and not s.within.endswith("]") else LARGEST_NUMBER
        if not abs(number) <= most:
            raise SlimError(f"{s.key} is {_shown(number)}: expected at most {most:,}")
    return fitted


def _shown(value: Any) -> str:
    """Return a value as an error shows it. Its text may have no end, or there may be none."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # digits or nesting without end
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


_MISFIT = object()


def _converted(value: Any, kind: Any) -> Any:
    """Return `value` as an instance of the type `kind`, or _MISFIT. 2 and 2.0 are alike; bool is no number."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return next((v for v in (_converted(value, a) for a in args) if v is not _MISFIT), _MISFIT)
    if origin is Literal:
        return value if value in args else _MISFIT
    if origin is list:
        value = value if isinstance(value, list) or value is None else [value]  # one without brackets
        items = [_converted(v, args[0]) for v in value] if isinstance(value, list) and value else [_MISFIT]
        return _MISFIT if _MISFIT in items else items
    if origin is dict:
        return value if isinstance(value, dict) and _is_plain(value, DEEPEST) else _MISFIT
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return _MISFIT
        with contextlib.suppress(OverflowError):  # of a whole number with hundreds of digits
            return kind(value) if kind is float or value == value // 1 else _MISFIT
        return _MISFIT
    return value if isinstance(value, kind) and _is_plain(value, 0) else _MISFIT


def _is_plain(value: Any, depth: int) -> bool:
    """Say whether a value is what YAML and JSON can hold alike, in at most `depth` levels: no dates, no odd text."""
    if isinstance(value, str):
        return value.isprintable() or not any(unicodedata.category(each) in ("Cc", "Cs") for each in value)
    if isinstance(value, dict):
        return depth > 0 and all(isinstance(k, str) and _is_plain([k, v], depth) for k, v in value.items())
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(each, depth - 1) for each in value)
    return value is None or (isinstance(value, bool | int | float) and abs(value) <= LARGEST_NUMBER)


def _inside(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below


def in_words(interval: str) -> str:
    """ "[1, inf)" as "at least 1", "(0, inf)" as "more than 0", "[0, 1)" as "a value in [0, 1)"."""
    low, high = interval[1:-1].split(", ")
    if high != "inf":
        return f"a value in {interval}"
    return f"{'at least' if interval[0] == '[' else 'more than'} {low}"


def describe(kind: Any) -> str:
    """Return a setting's type in words."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin is Literal:
        return "one of " + ", ".join(args)
    if origin is list:
        return f"a list, each {describe(args[0])}"
    if origin is dict:
        return "a mapping such as {depth: 40}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return words[kind]


def to_yaml(config: RunConfig) -> str:
    """Return the whole configuration as YAML, which `read` and `updated` turn into the same configuration again."""
    return yaml.dump(dataclasses.asdict(config), Dumper=_Writer, sort_keys=False, allow_unicode=True)
