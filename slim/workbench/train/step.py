"""One step of a training: a whole batch, forward, backward, and the update."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slim.errors import SlimError
from slim.workbench.train.guard import is_out_of_memory, out_of_memory
from slim.workbench.train.recipe import Mixing, Objective, logits
from slim.workbench.train.state import Training, reseed

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Step:
    """Takes a `Training` one step on.

    A batch is cut into `accumulate` parts, whose gradients add up to those of the whole; where memory doesn't suffice
    and `find_parts` is set, into twice as many from then on. BatchNorm sees the parts. The gradient is that of the
    mean over the images of all processes, however they are spread.
    """

    def __init__(
        self,
        training: Training,
        objective: Objective,
        mix: Mixing | None,
        *,
        seed: int,
        batch_size: int,
        clip_norm: float,
        compile: bool,
        find_parts: bool,
        layout: torch.memory_format,
    ) -> None:
        self.training, self.objective, self.mix = training, objective, mix
        self.seed, self.batch_size, self.clip_norm = seed, batch_size, clip_norm
        self.find_parts, self.layout, self.compile = find_parts, layout, compile
        self.fabric: Fabric = training.fabric
        self.set_up()

    def set_up(self) -> None:
        """Make what runs the model ready for it, at first and whenever it was pruned."""
        model: Any = self.training.model
        if self.compile:
            torch.compiler.reset()  # what was compiled for other sizes; there is a limit to how much is kept
            model = torch.compile(model)
        self.network, self.stepper = self.fabric.setup(model, self.training.optimizer)

    def __call__(self, images: Tensor, labels: Tensor, lr: float) -> None:
        """A step on this process's part of a batch: normalised images [B, C, H, W] and labels [B]."""
        now = self.training
        for group in now.optimizer.param_groups:
            group["lr"] = lr
        buffers = list(now.model.buffers()) if self.find_parts else []
        before = [buffer.clone() for buffer in buffers]
        while True:
            try:
                parts = self._backward(images, labels)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._use_less(len(images))
                for buffer, value in zip(buffers, before):  # BatchNorm has counted what was in vain
                    buffer.copy_(value)
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
        now.step += 1
        if now.average:
            now.average.update(now.step)
        for loss, scores, targets in parts:
            now.meter.add(loss, scores, targets, now.step, lr)

    def _backward(self, images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Adds up the gradients. Returns loss, scores and labels of each part."""
        now, fabric = self.training, self.fabric
        reseed(self.seed, now.step, fabric.global_rank)
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        images = images.contiguous(memory_format=self.layout)
        count = self._images_of_all(len(labels))
        done = []
        # As many parts in all processes, whose shares may differ by an image: in each they wait for each other.
        number_of_parts = min(now.accumulate, max(1, self.batch_size // fabric.world_size))
        cut = list(zip(images.tensor_split(number_of_parts), labels.tensor_split(number_of_parts)))
        for number, (some, targets) in enumerate(cut, start=1):
            last = number == len(cut)
            with fabric.no_backward_sync(self.network, enabled=not last):
                scores = logits(self.network(some))
                with fabric.autocast():
                    loss = self.objective(some, scores, targets)
                weighed = loss * (len(targets) * fabric.world_size / count)  # processes are averaged
                if last and now.sparsity is not None and now.sparsity.method == "loss":
                    weighed = weighed + now.sparsity.loss()
                fabric.backward(weighed)
            done.append((loss.detach(), scores.detach(), targets))
        return done

    def _images_of_all(self, own: int) -> int:
        """The images of this step on all processes: i-th of n processes has every n-th image from the i-th on."""
        return own if self.fabric.world_size == 1 else self.batch_size

    def _use_less(self, images: int) -> None:
        """Cut batches into twice as many parts. Raises `SlimError` where that isn't wanted or possible."""
        now = self.training
        if not self.find_parts or 2 * now.accumulate > images:
            raise self._out_of_memory() from None
        now.accumulate *= 2
        self.stepper.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _out_of_memory(self) -> SlimError:
        return out_of_memory(self.batch_size, self.training.accumulate, self.fabric.world_size, self.find_parts)
