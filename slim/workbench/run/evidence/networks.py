"""The networks of a run, from the files in its folder: the one that was pruned, and what became of it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from slim import checkpoint
from slim.errors import SlimError
from slim.prune.plan import PruningPlan
from slim.trace.traced import Trace, trace
from slim.workbench import config, models
from slim.workbench.config import RunConfig
from slim.workbench.data import Dataset
from slim.workbench.run.folder import Run, check_root
from slim.workbench.run.networks import example_images, trained_beside
from slim.workbench.run.stages import STAGES

AFTER = ("finetuned", "pruned")  # the last of these that a run has is its result
BEFORE = ("baseline", "sparse")


@dataclass
class Networks:
    """What the files of a run's folder hold; each is read when it is first asked for.

    Everything raises SlimError where the run hasn't come that far.
    """

    run: Run

    def file(self, *stages: str) -> Path:
        """Return the file of the first of `stages` that there is."""
        known = self.run.records.summary()
        paths = [self.run.path(stage) for stage in stages]
        for stage, path in zip(stages, paths):
            if path.is_file() and (stage in known or not known):  # else an earlier run left it
                return path
        raise SlimError(f"the run has no {' or '.join(path.name for path in paths)} yet")

    @cached_property
    def about(self) -> dict[str, Any]:
        """Return what the last network's file says of it."""
        return checkpoint.read_metadata(self.file(*AFTER, *reversed(BEFORE)))

    @cached_property
    def plans(self) -> list[PruningPlan]:
        return [PruningPlan.from_dict(plan) for plan in self.about["plans"]]

    @cached_property
    def before(self) -> nn.Module:
        """Return the network before any pruning: the baseline, or the sparse network of a single pass."""
        for path in map(self.run.path, BEFORE):
            if path.is_file() and not checkpoint.read_metadata(path)["plans"]:
                return self._load(path)
        raise SlimError("the run has no file of its network before pruning")

    @cached_property
    def decided_on(self) -> nn.Module:
        """Return the network that the last plan was made for."""
        return self._load(self._source)

    @property
    def penalised(self) -> bool:
        """Say whether that network was trained with a penalty on γ."""
        return self._source == self.run.path("sparse")

    @property
    def score(self) -> str:
        """Return the score of the last plan, as the settings name it; that which auto chose is in the plan."""
        by_gamma = self.plans and self.plans[-1].score == "Gamma"
        return "mean" if self.settings.prune.score == "auto" and by_gamma else self.settings.prune.score

    @cached_property
    def _source(self) -> Path:
        """Return the file of the network that was pruned last, in the run's folder or in that of an earlier pass."""
        last = self.file(*AFTER, *reversed(BEFORE))
        earlier = sorted(self.run.folder.glob("pass-*"), key=lambda path: (len(path.name), path.name), reverse=True)
        files = [
            *trained_beside(last).values(),
            *(folder / STAGES[stage].file for folder in earlier for stage in AFTER),
        ]
        for path in files:
            if path.is_file() and checkpoint.read_metadata(path)["plans"] == self.about["plans"][:-1]:
                return path
        raise SlimError("the run has no file of the network that was pruned last")

    @cached_property
    def after(self) -> nn.Module:
        """Return the pruned network, as good as the run made it."""
        return self._load(self.file(*AFTER))

    @cached_property
    def unpruned(self) -> nn.Module:
        """Return the architecture before pruning, for its shapes: the weights are the first ones at hand."""
        try:
            return self.before
        except SlimError:
            if self.about["arch"] is None:
                raise
            return models.build(self.about["arch"], allow_code=self.run.allow_code, **self.about["arch_kwargs"]).eval()

    @cached_property
    def _stored(self) -> RunConfig:
        return config.updated(RunConfig(), self.about["config"] or {})

    @cached_property
    def settings(self) -> RunConfig:
        """Return the settings that the last network was made with."""
        return config.without_permissions(self._stored, self.run.settings.data)

    @cached_property
    def dataset(self) -> Dataset:
        if self.about["config"] is None:
            raise SlimError("the network wasn't trained by slim, so its data aren't known")
        check_root(self.run.folder, self._stored.data, self.settings.data)
        found = self.run.replace(settings=self.settings).dataset()
        if not isinstance(found, Dataset):
            raise SlimError(f"{found.name} comes in batches: this is shown of data sets of images")
        return found

    @property
    def example(self) -> Any:
        """Return one image, [1, C, H, W], of noise, or what the user's own factory gives."""
        given = self.run.replace(settings=self.settings).example()
        if given is not None:
            return given
        if self.about["input_shape"] is None:
            raise SlimError("the network's file doesn't say how large its images are")
        return example_images(self.about["input_shape"])

    def trace(self, model: nn.Module) -> Trace:
        """Return which channels of a network of the run are coupled, under the rules of its plan."""
        prune = self.settings.prune
        return trace(model, self.example, select=prune.mode == "select", whole_groups=prune.grouped == "whole")

    def _load(self, path: Path) -> nn.Module:
        return models.load(path, allow_code=self.run.allow_code)
