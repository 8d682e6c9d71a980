"""A run: a folder, and all that its stages share."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from slim import checkpoint
from slim.errors import SlimError
from slim.files import locked
from slim.images import ImageSpec
from slim.prune.plan import PruningPlan
from slim.trace.size import network_size
from slim.workbench import config, data, models, train
from slim.workbench.causes import told
from slim.workbench.code import FAILURES, import_object
from slim.workbench.config import DataConfig, RunConfig
from slim.workbench.data import Data
from slim.workbench.run.networks import Trained, normalised_as
from slim.workbench.run.records import Records, totals
from slim.workbench.run.stages import STAGES

ROOT = Path("checkpoints")


@dataclass(frozen=True)
class Run:
    """A run: the folder of its files, its settings, where it tells what it does, and the code that the user allowed.

    allow_code: names `package.module:factory` that may be imported where a file of the run names them.
    resume: whether a stage that is done with these settings is left as it is, and an interrupted one goes on.
    own_data: whether the user named the data, which then are used for networks that no run trained, too.
    """

    folder: Path
    settings: RunConfig
    console: Console = field(default_factory=Console)
    allow_code: tuple[str, ...] = ()
    resume: bool = False
    own_data: bool = False

    def replace(self, **changes: Any) -> "Run":
        """Return a run that differs in some of its fields."""
        return dataclasses.replace(self, **changes)

    @property
    def records(self) -> Records:
        return Records(self.folder)

    def path(self, stage: str) -> Path:
        """Return the file of a stage, which may not be there."""
        return self.folder / STAGES[stage].file

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process, of several the first, and clear what kills left there; SlimError where
        another process holds it."""
        if not train.is_rank_zero():
            yield
            return
        with locked(self.folder):
            self.records.clear_stale_states()
            yield

    def dataset(self) -> Data:
        """Return the data that the settings name, with their task."""
        settings = self.settings
        return data.load_any(settings.data, settings.seed, task=settings.task, allow_code=self.allow_code)

    def example(self) -> Any:
        """Return what the user's own factory gives for an input of the network; None where the settings name none."""
        name = self.settings.model.example
        if name is None:
            return None
        make = import_object("example", name, allow_code=self.allow_code)
        try:
            return make()
        except FAILURES as error:
            raise SlimError(f"the example {name!r} can't be made without arguments ({told(error)})") from error

    def open(self, source: Path) -> Trained:
        """Return the network in a file, with the data set of its run.

        Settings that it was trained with can't change after that: another seed would draw other test images, of
        which the network has seen many.
        """
        about = checkpoint.read_metadata(source)
        if about["config"] is not None:
            trained = config.updated(RunConfig(), about["config"])
            for name in ("seed", "task", "model"):
                was, now = getattr(trained, name), getattr(self.settings, name)
                if was != now:
                    raise SlimError(f"{name} is {now}: {source} was trained with {was}, which can't change any more")
            check_root(source, trained.data, self.settings.data)
        dataset = self._dataset_for(source, about) if about["config"] is not None or self.own_data else None
        example = self.example()
        if about["input_shape"] is None and example is None:
            raise SlimError(
                f"{source} doesn't say how large its images are: expected images= in slim.save, or a factory of an "
                "example (--model.example)"
            )
        return Trained(
            stage=about["stage"] or source.stem,
            model=models.load(source, allow_code=self.allow_code),
            plans=[PruningPlan.from_dict(plan) for plan in about["plans"]],
            metrics=about["metrics"] | {"file_size": source.stat().st_size},
            arch=about["arch"],
            arch_kwargs=about["arch_kwargs"],
            images=ImageSpec.of(about),
            dataset=dataset,
            given=example,
        )

    def _dataset_for(self, source: Path, about: dict[str, Any]) -> Data:
        """Return the data for a network, normalised as its file says; SlimError where they have other classes."""
        dataset = self.dataset()
        if (
            dataset.task.labelled
            and about["classes"] is not None
            and dataset.spec.to_dict()["classes"] != about["classes"]
        ):
            name = (about["config"] or {}).get("data", {}).get("name", "other data")
            raise SlimError(f"data.name is {self.settings.data.name!r}: {source} was trained on {name!r}")
        return normalised_as(ImageSpec.of(about), dataset)

    def save(
        self,
        stage: str,
        network: Trained,
        *,
        epochs: Sequence[dict[str, Any]] = (),
        made: Sequence[PruningPlan] = (),
        fresh: bool = False,
        kept: str | None = None,
    ) -> dict[str, Any]:
        """Measure a network, save it as a stage, and enter it in the records.

        made: the plans by which it was pruned while it trained, after its own. fresh: the stage begins a new run. kept:
        the stage whose network was better than what this one made of it, and is this one's.
        Returns its summary, which is empty on other processes than the first.
        """
        if not train.is_rank_zero():
            return {}
        path, settings, model = self.path(stage), self.settings, network.model
        record: dict[str, Any] = asdict(network_size(model, network.example))
        if network.dataset and network.dataset.task.labelled:
            metric, test = network.dataset.task.metric, network.dataset.test
            test = () if test is None else test  # a loader may have no length, and so no truth value
            found = train.evaluate(model, test, network.dataset, compute=settings.compute)
            record |= {metric.name: found[metric.name], "metric": metric.to_dict()}
        if epochs:
            record["training"] = totals(epochs)
        if kept:
            record["kept"] = kept
        if made:
            record["prunes"] = len(made)
        checkpoint.save(
            path,
            model,
            [*network.plans, *made],
            arch=network.arch,
            arch_kwargs=network.arch_kwargs,
            stage=stage,
            metrics=record,
            config=settings if network.dataset else None,
            images=network.images,
        )
        record["file_size"] = path.stat().st_size
        self.records.enter(stage, record, settings, epochs, fresh=fresh)
        return record


def check_root(source: Path, stored: DataConfig, now: DataConfig) -> None:
    """Raise SlimError where a network saw data under another root, and the user didn't say where they lie: no file
    decides what is read."""
    if stored.root != now.root == DataConfig().root:
        raise SlimError(
            f"{source} was trained on data under {stored.root!r}, and no file decides what is read: expected "
            f"--data.root {stored.root}, if that is so"
        )
