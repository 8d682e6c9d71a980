"""All that changes in a training: what a snapshot holds, and what going on from it needs."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from slim.errors import SlimError
from slim.prune.plan import PruningPlan
from slim.prune.rebuild import take_over
from slim.sparsity import Sparsity
from slim.trace.size import channels
from slim.workbench.tasks import Metric, Task
from slim.workbench.train.average import Average
from slim.workbench.train.meter import Meter

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class TrainingState:
    """Where a training stands, between two steps.

    There is no state of random generators: every draw follows from the seed and its place (`reseed`).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        fabric: "Fabric",
        task: Task,
        *,
        sparsity: Sparsity | None,
        average: Average | None,
        patience: int,
        per_epoch: int,
        accumulate: int,
    ) -> None:
        self.model, self.optimizer, self.fabric, self.task = model, optimizer, fabric, task
        self.sparsity, self.average = sparsity, average
        self.best = Best(model, patience, task.metric) if patience else None
        self.per_epoch = per_epoch  # steps
        self.step = 0  # done
        self.accumulate = accumulate  # parts of a batch
        self.records: list[dict[str, Any]] = []  # one for each epoch that is over
        self.meter = Meter(self.task)  # of the epoch that isn't
        self.prunes: list[tuple[int, PruningPlan]] = []  # each with the step after which it was

    @property
    def epoch(self) -> int:
        """Return the epoch that isn't over yet, from 1."""
        return len(self.records) + 1

    @property
    def step_of_epoch(self) -> int:
        return self.step - len(self.records) * self.per_epoch

    def prune(self, step: int, plan: PruningPlan) -> None:
        """Remove channels from the model; all that belongs to it goes on with what is left. The object stays."""
        assert self.best is None  # it is for trainings without a penalty, and only those with one prune
        if self.average:
            with self.average.in_place():
                averaged = plan.apply(self.model)
        thin = plan.apply(self.model)
        plan.prune_optimizer(self.optimizer, self.model, thin)
        if self.sparsity:
            self.sparsity.prune(plan, self.model, thin)
        take_over(self.model, thin)
        if self.average:
            self.average.follow(self.model, averaged)
        self.prunes.append((step, plan))

    def end_epoch(self, held_out: dict[str, float] | None, lr: float, seconds: float) -> None:
        """Enter the epoch that has just ended: see `fit` for what its record says."""
        loss, value = self.meter.means()
        name = self.task.metric.name
        gamma = self.sparsity and self.sparsity.statistics()
        self.records.append(
            {
                "epoch": self.epoch,
                "train_loss": loss,
                f"train_{name}": value,
                "val_loss": held_out and held_out.get("loss"),
                f"val_{name}": held_out and held_out[name],
                "lr": lr,
                "strength": 0.0 if self.sparsity is None else self.sparsity.strength,
                "channels": channels(self.model),
                "zero": gamma and gamma["zero"],
                "near_zero": gamma and gamma["near_zero"],
                "gamma": gamma and {"layers": gamma["layers"], "histogram": gamma["histogram"]},
                "images": self.meter.images,
                "images_per_second": self.meter.images / self.meter.training,
                "training_seconds": self.meter.training,
                "waiting_seconds": self.meter.waiting,
                "seconds": seconds,
            }
        )
        self.meter = Meter(self.task)

    def averaged(self) -> AbstractContextManager[None]:
        """Give the model the weights that count for a while: their average, if there is one."""
        return self.average.in_place() if self.average else nullcontext()

    def finish(self) -> None:
        """Give the model the weights that count."""
        if self.best and self.best.weights:
            self.best.take_place()
        elif self.average:
            self.average.take_place()

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "per_epoch": self.per_epoch,
            "accumulate": self.accumulate,
            "records": self.records,
            "prunes": [(step, plan.to_dict()) for step, plan in self.prunes],
            "meter": self.meter.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.fabric.strategy.precision.state_dict(),
            "sparsity": self.sparsity and self.sparsity.state_dict(),
            "average": self.average and self.average.tensors,
            "best": self.best and self.best.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, from an unpruned model. What the settings say, such as a weight decay, stays
        as they say now."""
        parts = {"sparsity": self.sparsity, "average": self.average, "best": self.best}
        changed = [name for name, part in parts.items() if (part is None) != (state[name] is None)]
        for step, plan in [] if changed else state.get("prunes", []):
            self.prune(step, PruningPlan.from_dict(plan))
        own = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        if state["per_epoch"] != self.per_epoch:
            changed.append(f"{self.per_epoch} steps in an epoch, not {state['per_epoch']}")
        if own != {name: tensor.shape for name, tensor in state["model"].items()}:
            changed.append("model")
        if changed:
            raise SlimError(f"can't resume, as other settings than before are given: see {', '.join(changed)}")
        self.step, self.accumulate, self.records = state["step"], state["accumulate"], state["records"]
        self.meter.load_state_dict(state["meter"])
        self.model.load_state_dict(state["model"])
        self._load_optimizer(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        if self.sparsity:
            self.sparsity.load_state_dict(state["sparsity"])
        if self.average:
            self.average.load(state["average"])
        if self.best:
            self.best.load_state_dict(state["best"])

    def _load_optimizer(self, state: dict[int, dict[str, Any]]) -> None:
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        for parameter, kept in self.optimizer.state.items():
            for key, value in kept.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:  # in the parameter's memory layout
                    kept[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class Best:
    """The weights of the epoch with the best validation metric; `patience` epochs without a better one are the end."""

    def __init__(self, model: nn.Module, patience: int, metric: Metric) -> None:
        self._current = model.state_dict()  # shares memory
        self.patience, self.metric = patience, metric
        self.value = metric.worst
        self.waited = 0  # epochs
        self.weights: dict[str, Tensor] = {}

    @property
    def is_over(self) -> bool:
        return self.waited >= self.patience

    def look(self, value: float) -> None:
        """Take note of an epoch, with the weights in place whose metric this is."""
        self.waited += 1
        if self.metric.is_better(value, than=self.value):
            self.value, self.waited = value, 0
            self.weights = {name: tensor.clone() for name, tensor in self._current.items()}

    @torch.no_grad()
    def take_place(self) -> None:
        for name, tensor in self.weights.items():
            self._current[name].copy_(tensor)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "waited": self.waited, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.waited = state["value"], state["waited"]
        self.weights = {name: t.to(self._current[name].device) for name, t in state["weights"].items()}


def reseed(seed: int, step: int, rank: int) -> None:
    """Set torch's generators for one step of one process. The state of random generators then follows from the
    number of the step, and needs no saving."""
    value = mixed(seed, step, rank, 1)
    torch.default_generator.manual_seed(value)  # torch.manual_seed writes a stack trace for each absent device, and
    if torch.cuda.is_initialized():  # keeps it: milliseconds in each step
        torch.cuda.manual_seed_all(value)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(value)


def mixed(*numbers: int) -> int:
    """Make one seed of several numbers: 32 bits, as torch's CPU generator ignores the rest."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
