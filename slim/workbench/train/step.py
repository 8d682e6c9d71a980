"""One step of a training: a whole batch, forward, backward, and the update."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from slim.errors import SlimError
from slim.workbench.causes import is_out_of_memory, told
from slim.workbench.config import ComputeConfig, OptimConfig
from slim.workbench.data import Batch
from slim.workbench.nested import arranged, described, length, split
from slim.workbench.train.devices import layout_of
from slim.workbench.train.graph import Recorded, graph_recorder_for
from slim.workbench.train.guard import out_of_memory
from slim.workbench.train.recipe import Objective, complete_momentum
from slim.workbench.train.state import TrainingState, reseed

Part = tuple[Tensor, Any, int]  # of a batch: its mean loss, what it adds to the metric, its images


class Step:
    """Take a training one step on.

    A batch is cut into `accumulate` parts, whose gradients add up to those of the whole; where memory doesn't suffice
    and `find_parts` is set, into twice as many from then on. BatchNorm sees the parts. The gradient is that of the
    mean over the images of all processes, however they are spread. On a GPU the step is recorded and replayed: see
    `slim.workbench.train.graph`.
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
        self.rate: Tensor | None = None
        self.take: Callable[[Any, Any, int, int], list[Part]] = self._take
        recorder = graph_recorder_for(self.graph, self.fabric, self.state.sparsity)
        if recorder is not None:
            self._hold_numbers()
            self.take = Recorded(self._take, recorder, self._recording, self._replaying)

    def _hold_numbers(self) -> None:
        """Keep the numbers that change from step to step in tensors, which a recorded step reads anew each time."""
        state, device = self.state, self.fabric.device
        self.rate = torch.zeros((), device=device)
        for group in state.optimizer.param_groups:
            group["lr"] = self.rate
        if state.sparsity is not None:
            state.sparsity.hold()
        if state.average is not None:
            state.average.hold(device)

    @contextmanager
    def _recording(self) -> Iterator[None]:
        sparsity, optimizer = self.state.sparsity, self.state.optimizer
        _tell_adam(optimizer, recorded=True)
        try:
            with sparsity.recorded() if sparsity is not None else nullcontext():
                yield
        except BaseException:
            self.stepper.zero_grad()
            raise
        finally:
            _tell_adam(optimizer, recorded=False)

    def _replaying(self) -> AbstractContextManager[None]:
        sparsity = self.state.sparsity
        return sparsity.replayed(self.state.optimizer) if sparsity is not None else nullcontext()

    def __call__(self, batch: Batch, lr: float) -> None:
        """Take a step on this process's part of a batch, with a learning rate."""
        state = self.state
        self._set_numbers(lr)
        parts = self._taken(batch)
        state.step += 1
        for loss, sums, images in parts:
            state.meter.add(loss, sums, images, state.step, lr)

    def _set_numbers(self, lr: float) -> None:
        if self.rate is not None:
            self.rate.fill_(lr)
        for group in self.state.optimizer.param_groups if self.rate is None else ():
            group["lr"] = lr
        if self.state.average is not None:
            self.state.average.weigh(self.state.step + 1)

    def _taken(self, batch: Batch) -> list[Part]:
        """Take the step, in more parts where memory doesn't suffice and that is wanted."""
        state, processes = self.state, self.fabric.world_size
        buffers = list(state.model.buffers()) if self.find_parts else []
        before = [buffer.clone() for buffer in buffers]
        while True:
            # As many parts in all processes, whose shares may differ by an image: in each they wait for each other.
            number_of_parts = min(state.accumulate, max(1, batch.samples // processes))
            reseed(self.seed, state.step, self.fabric.global_rank)
            inputs, targets, samples = batch
            if self.mix is not None:
                inputs, targets = self.mix(inputs, targets)
            try:
                return self.take(inputs, targets, samples, number_of_parts)
            except SlimError:
                raise
            except Exception as error:
                if not is_out_of_memory(error):  # of the network, the task or the data, on what they were given
                    what = f"on {described(inputs)} with targets, {described(targets)}"
                    raise SlimError(f"training fails at step {state.step + 1} {what} ({told(error)})") from error
                self._use_less(length(batch.inputs))
                for buffer, value in zip(buffers, before):  # BatchNorm has counted what was in vain
                    buffer.copy_(value)

    def _take(self, inputs: Any, targets: Any, samples: int, number_of_parts: int) -> list[Part]:
        """Compute the gradients part by part, and update the model. Returns what the meter is told of each part."""
        cut = list(zip(split(arranged(inputs, self.layout), number_of_parts), split(targets, number_of_parts)))
        done = []
        for number, (some, wanted) in enumerate(cut, start=1):
            images = length(some)
            share = images * self.fabric.world_size / samples  # processes are averaged
            done.append((*self._passes(some, wanted, share, number == len(cut)), images))
        try:
            self._update()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise self._out_of_memory() from None
        return done

    def _update(self) -> None:
        """Go along the gradients."""
        if self.clip_norm:
            self.fabric.clip_gradients(self.network, self.stepper, max_norm=self.clip_norm, error_if_nonfinite=False)
        complete_momentum(self.state.optimizer)
        self.stepper.step()
        self.stepper.zero_grad()
        if self.state.average is not None:
            self.state.average.update()

    def _passes(self, inputs: Any, targets: Any, share: float, last: bool) -> tuple[Tensor, Any]:
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
        self.set_up()  # what was recorded holds memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _out_of_memory(self) -> SlimError:
        return out_of_memory(self.batch_size, self.state.accumulate, self.fabric.world_size, self.find_parts)


def _tell_adam(optimizer: torch.optim.Optimizer, recorded: bool) -> None:
    """Say that a step is recorded: Adam refuses to be where it wasn't told, and warns where it was and isn't."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = recorded
