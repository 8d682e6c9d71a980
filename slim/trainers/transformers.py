"""A callback for Hugging Face's Trainer: penalty, gradual pruning, recovery. Needs the package `transformers`.

from slim.trainers.transformers import SlimCallback

callback = SlimCallback(slim.Flops(0.5), {"pixel_values": images}, penalty=slim.L1(1e-4))
Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
"""

from typing import Any

from transformers import TrainerCallback

from slim.batches import as_one
from slim.errors import SlimError
from slim.prune.budgets import Budget
from slim.prune.calibration import MOST, part
from slim.sparsity import Penalty
from slim.trainers.slimming import Schedule, Slimming


class SlimCallback(TrainerCallback):
    """Train with a penalty and prune within the training, to a budget; the model stays the same object.

    `images`: inputs of the model without labels, as it takes them (a dict of keyword arguments), some hundred: what it
    is traced with and recovered on after each prune (unless `recover` is False).
    `start`, `end`: shares of the training's steps between which it is pruned, in `prunes` steps.
    `rules`: more keywords of `slim.plan`. `slimming.plans` holds what was done. The model's configuration keeps the
    original's sizes, so `from_pretrained` can't read what `Trainer.save_model` wrote: keep it with `slim.save` and the
    plans. For one device; raises SlimError for more.
    """

    def __init__(
        self,
        budget: Budget,
        images: Any,
        *,
        penalty: Penalty | None = None,
        start: float = 0.3,
        end: float = 0.7,
        prunes: int = 4,
        recover: bool = True,
        rules: dict[str, Any] | None = None,
    ) -> None:
        self.schedule = Schedule(start, end, prunes)
        self.budget, self.images, self.penalty = budget, images, penalty
        self.recover, self.rules = recover, rules
        self.slimming: Slimming | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Begin with the penalty."""
        if args.world_size > 1 or args.n_gpu > 1:
            raise SlimError(f"SlimCallback on {max(args.world_size, args.n_gpu)} devices: expected one")
        model, optimizer = known["model"], known["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)  # what accelerate wraps
        images = part(as_one(self.images, MOST), ..., args.device)
        self.slimming = Slimming(
            model,
            optimizer,
            part(images, slice(2)),
            self.budget,
            at=self.schedule.at(state.max_steps),
            penalty=self.penalty,
            images=images if self.recover else None,
            rules=self.rules,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Prune where it is time."""
        if self.slimming is not None:
            self.slimming.after_step()
