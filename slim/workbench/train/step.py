"""One step of a training: a whole batch, forward, backward, and the update."""

from typing import Any

import torch
from torch import Tensor

from slim.errors import SlimError
from slim.workbench.causes import is_out_of_memory
from slim.workbench.config import ComputeConfig, OptimConfig
from slim.workbench.data import Batch
from slim.workbench.nested import arranged, length, split
from slim.workbench.train.devices import layout_of
from slim.workbench.train.graph import GraphedPasses, graph_recorder_for
from slim.workbench.train.guard import out_of_memory
from slim.workbench.train.recipe import Objective
from slim.workbench.train.state import TrainingState, reseed


class Step:
    """Take a training one step on.

    A batch is cut into `accumulate` parts, whose gradients add up to those of the whole; where memory doesn't suffice
    and `find_parts` is set, into twice as many from then on. BatchNorm sees the parts. The gradient is that of the
    mean over the images of all processes, however they are spread. On a GPU the passes of a batch that isn't cut are
    recorded and replayed: see `slim.workbench.train.graph`.
    """

    def __init__(
        self,
        state: TrainingState,
        objective: Objective,
        optim: OptimConfig,
        compute: ComputeConfig,
        *,
        seed: int,
        batch_size: int,
    ) -> None:
        self.state, self.objective, self.fabric = state, objective, state.fabric
        self.mix = state.task.mixing(optim)
        self.seed, self.batch_size, self.clip_norm = seed, batch_size, optim.clip_norm
        self.find_parts, self.layout, self.compile = compute.accumulate == "auto", layout_of(compute), compute.compile
        self.graph = compute.graph
        self.set_up()

    def set_up(self) -> None:
        """Make what runs the model ready for it, at first and whenever it was pruned."""
        model: Any = self.state.model
        if self.compile:
            torch.compiler.reset()  # what was compiled for other sizes; there is a limit to how much is kept
            model = torch.compile(model)
        self.network, self.stepper = self.fabric.setup(model, self.state.optimizer)
        recorder = graph_recorder_for(self.graph, self.fabric, self.state.sparsity)
        parameters = list(self.state.model.parameters())
        self.graphed = GraphedPasses(self._passes, parameters, recorder) if recorder else None

    def __call__(self, batch: Batch, lr: float) -> None:
        """Take a step on this process's part of a batch, with a learning rate."""
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        parts = self._gradients(batch)
        try:
            if self.clip_norm:
                self.fabric.clip_gradients(
                    self.network, self.stepper, max_norm=self.clip_norm, error_if_nonfinite=False
                )
            self.stepper.step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise self._out_of_memory() from None
        self.stepper.zero_grad()
        state.step += 1
        if state.average:
            state.average.update(state.step)
        for loss, sums, images in parts:
            state.meter.add(loss, sums, images, state.step, lr)

    def _gradients(self, batch: Batch) -> list[tuple[Tensor, Any, int]]:
        """Compute the gradients of a batch, in more parts where memory doesn't suffice and that is wanted."""
        buffers = list(self.state.model.buffers()) if self.find_parts else []
        before = [buffer.clone() for buffer in buffers]
        while True:
            try:
                return self._backward(batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._use_less(length(batch.inputs))
                for buffer, value in zip(buffers, before):  # BatchNorm has counted what was in vain
                    buffer.copy_(value)

    def _backward(self, batch: Batch) -> list[tuple[Tensor, Any, int]]:
        """Add up the gradients. Returns of each part the loss, what it adds to the metric, and its images."""
        state, fabric = self.state, self.fabric
        reseed(self.seed, state.step, fabric.global_rank)
        inputs, targets, samples = batch
        if self.mix is not None:
            inputs, targets = self.mix(inputs, targets)
        # As many parts in all processes, whose shares may differ by an image: in each they wait for each other.
        number_of_parts = min(state.accumulate, max(1, samples // fabric.world_size))
        if number_of_parts == 1 and self.graphed is not None:
            return [(*self.graphed(arranged(inputs, self.layout), targets), length(inputs))]
        cut = list(zip(split(arranged(inputs, self.layout), number_of_parts), split(targets, number_of_parts)))
        done = []
        for number, (some, wanted) in enumerate(cut, start=1):
            last, images = number == len(cut), length(some)
            share = images * fabric.world_size / samples  # processes are averaged
            done.append((*self._passes(some, wanted, share, last), images))
        return done

    def _passes(self, inputs: Any, targets: Any, share: float = 1.0, last: bool = True) -> tuple[Tensor, Any]:
        """Add `share` of the gradients of a part's mean loss; return that loss, and the part's sums of the metric."""
        state, fabric = self.state, self.fabric
        with fabric.no_backward_sync(self.network, enabled=not last):
            outputs = state.task.forward(self.network, inputs, targets)
            with fabric.autocast():
                loss = self._judged(inputs, outputs, targets)
            weighed = loss * share
            if last and state.sparsity is not None and state.sparsity.method == "loss":
                weighed = weighed + state.sparsity.loss()
            fabric.backward(weighed)
        with torch.no_grad():
            return loss.detach(), state.task.tally(outputs, targets)

    def _judged(self, inputs: Any, outputs: Any, targets: Any) -> Tensor:
        try:
            return self.objective(inputs, outputs, targets)
        except IndexError as error:  # a CPU says so of a class that there isn't
            raise SlimError(f"targets don't fit the network's outputs: {error}: expected class numbers") from error

    def _use_less(self, images: int) -> None:
        """Cut batches into twice as many parts. Raises `SlimError` where that isn't wanted or possible."""
        state = self.state
        if not self.find_parts or 2 * state.accumulate > images:
            raise self._out_of_memory() from None
        state.accumulate *= 2
        self.stepper.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _out_of_memory(self) -> SlimError:
        return out_of_memory(self.batch_size, self.state.accumulate, self.fabric.world_size, self.find_parts)
