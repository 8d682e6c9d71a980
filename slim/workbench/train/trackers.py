"""Where a training tells its numbers as it goes: a protocol of three methods, and the services that keep it.

Each package is optional, is imported when it is named, and keeps its own account: where it sends what is told, or that
it stays offline, is up to its own settings (WANDB_MODE=offline, MLFLOW_TRACKING_URI, TRACKIO_DIR).
"""

from pathlib import Path
from typing import Any, Protocol

from torch import nn

from slim.extras import named_if_missing
from slim.workbench.config import RunConfig
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
        mlflow.log_dict(settings, "config.json")

    def epoch(self, record: dict[str, Any], model: nn.Module) -> None:
        self._mlflow.log_metrics(numbers(record), step=record["epoch"])

    def text(self, tag: str, text: str) -> None:
        self._mlflow.log_text(text, f"{tag}.txt")

    def close(self) -> None:
        self._mlflow.end_run()


def open_tracker(settings: RunConfig, folder: Path, stage: str) -> Tracker | None:
    """Return where the settings want a stage told, if anywhere. Raises SlimError where its package is missing."""
    name = "tensorboard" if settings.tensorboard and settings.tracker == "none" else settings.tracker
    run = f"{folder.name}/{stage}"
    known = {"seed": settings.seed, "arch": settings.model.arch, "data": settings.data.name}
    with named_if_missing():
        match name:
            case "tensorboard":
                return TensorBoard(folder / "tensorboard" / stage)
            case "wandb":
                import wandb

                return WeightsAndBiases(wandb, run, folder, known)
            case "trackio":
                import trackio

                return WeightsAndBiases(trackio, run, folder, known)
            case "mlflow":
                return MLflow(run, known)
    return None
