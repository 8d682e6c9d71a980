"""Where a training tells its numbers as it goes: a protocol of three methods, and the services that keep it.

Each package is optional, is imported when it is named, and keeps its own account: where it sends what is told, or that
it stays offline, is up to its own settings (WANDB_MODE=offline, MLFLOW_TRACKING_URI, TRACKIO_DIR).
"""

import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from slim.errors import SlimError, SlimWarning
from slim.extras import named_if_missing
from slim.workbench.causes import told
from slim.workbench.code import FAILURES
from slim.workbench.config import RunConfig, flattened
from slim.workbench.train.tensorboard import SCALARS, TensorBoard

PROJECT = "slim"


class Tracker(Protocol):
    """What a stage of a run tells of itself."""

    def epoch(self, record: dict[str, Any], model: nn.Module) -> None:
        """Take the record of an epoch, as `fit` gives it, and the network as it is then."""

    def text(self, tag: str, text: str) -> None:
        """Take preformatted text, such as a table."""

    def close(self) -> None:
        """Finish."""


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """Return what of an epoch's record is worth a curve."""
    curves = {key: value for key, value in record.items() if key in SCALARS or key.startswith(("train_", "val_"))}
    return {key: float(value) for key, value in curves.items() if isinstance(value, (int, float))}


class WeightsAndBiases:
    """Tells a run of Weights & Biases; trackio has the same functions."""

    def __init__(self, package: Any, run: str, folder: Path, settings: dict[str, Any]) -> None:
        where = {"dir": str(folder)} if package.__name__ == "wandb" else {}
        self._package = package
        package.init(project=PROJECT, name=run, config=settings, **where)

    def epoch(self, record: dict[str, Any], model: nn.Module) -> None:
        self._package.log(numbers(record), step=record["epoch"])

    def text(self, tag: str, text: str) -> None:
        self._package.log({tag: self._package.Html(f"<pre>{text}</pre>") if hasattr(self._package, "Html") else text})

    def close(self) -> None:
        self._package.finish()


class MLflow:
    """Tells a run of MLflow."""

    def __init__(self, run: str, settings: dict[str, Any]) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(PROJECT)
        mlflow.start_run(run_name=run)
        mlflow.log_params(flattened(settings))

    def epoch(self, record: dict[str, Any], model: nn.Module) -> None:
        self._mlflow.log_metrics(numbers(record), step=record["epoch"])

    def text(self, tag: str, text: str) -> None:
        self._mlflow.log_text(text, f"{tag}.txt")

    def close(self) -> None:
        self._mlflow.end_run()


class Safe:
    """Tells a tracker as long as that works: a training is worth more than its curves."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker: Tracker | None = tracker
        self._name = name

    def epoch(self, record: dict[str, Any], model: nn.Module) -> None:
        self._tell(lambda tracker: tracker.epoch(record, model))

    def text(self, tag: str, text: str) -> None:
        self._tell(lambda tracker: tracker.text(tag, text))

    def close(self) -> None:
        self._tell(lambda tracker: tracker.close())

    def _tell(self, tell: Callable[[Tracker], None]) -> None:
        try:
            if self._tracker:
                tell(self._tracker)
        except FAILURES as error:
            self._tracker = None
            warnings.warn(f"{self._name} is told no more of this stage ({told(error)})", SlimWarning, stacklevel=2)


def open_tracker(settings: RunConfig, folder: Path, stage: str) -> Tracker | None:
    """Return where the settings want a stage told, if anywhere. Raises SlimError where its package is missing, or it
    can't begin."""
    name = "tensorboard" if settings.tensorboard and settings.tracker == "none" else settings.tracker
    if name == "none":
        return None
    with named_if_missing():
        try:
            return Safe(_opened(name, f"{folder.name}/{stage}", folder, settings), name)
        except (SlimError, ImportError):
            raise
        except FAILURES as error:
            raise SlimError(
                f"{name} can't begin ({told(error)}): expected what its own settings name, an offline mode of it, or "
                "--tracker none"
            ) from error


def _opened(name: str, run: str, folder: Path, settings: RunConfig) -> Tracker:
    match name:
        case "wandb":
            import wandb

            return WeightsAndBiases(wandb, run, folder, asdict(settings))
        case "trackio":
            import trackio

            return WeightsAndBiases(trackio, run, folder, asdict(settings))
        case "mlflow":
            return MLflow(run, asdict(settings))
    return TensorBoard(folder / "tensorboard" / run.rpartition("/")[2])
