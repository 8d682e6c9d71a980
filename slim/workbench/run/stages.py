"""The stages of a run, in the order of the chain, and the files that hold them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slim.errors import SlimError


@dataclass(frozen=True)
class Stage:
    file: str  # in the run's folder
    command: str  # that writes it


STAGES = {
    "baseline": Stage("baseline.safetensors", "slim-run"),
    "sparse": Stage("sparse.safetensors", "slim-train"),
    "pruned": Stage("pruned.safetensors", "slim-prune"),
    "recovered": Stage("pruned.safetensors", "slim-prune"),  # the same file: what is left there is the better network
    "finetuned": Stage("finetuned.safetensors", "slim-finetune"),
    "onnx": Stage("model.onnx", "slim-export"),
    "int8": Stage("model.int8.onnx", "slim-export --int8"),
}


def newest(stage: str, root: str | Path = "checkpoints", run: str = "*") -> Path:
    """Return the file of a stage that was written last, in the folder `run` of `root` or in any."""
    file, command = STAGES[stage].file, STAGES[stage].command
    found = list(Path(root).glob(f"{run}/{file}"))
    if not found:
        raise SlimError(f"no {Path(root) / run / file}: run {command} first, or name a file")
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def find_runs(names: Sequence[str], root: Path = Path("checkpoints")) -> list[Path]:
    """Return the folders of runs given by path or by name; without any, the run that was written to last. A folder
    that holds no run, such as one of data with the run's name, doesn't hide the run."""
    if names:
        return [root / name if not _is_run(Path(name)) and _is_run(root / name) else Path(name) for name in names]
    records = [*root.glob("*/summary.json"), *root.glob("*/metrics.jsonl")]
    if not records:
        raise SlimError(f"no run under {str(root)!r}: run slim-run first, or name a run's folder")
    return [max(records, key=lambda path: path.stat().st_mtime_ns).parent]


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("summary.json", "metrics.jsonl"))
