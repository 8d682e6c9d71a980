"""A callback for Hugging Face's Trainer: penalty, gradual pruning, recovery. Needs the package `transformers`.

from slim.trainers.transformers import SlimCallback

callback = SlimCallback(slim.Flops(0.5), {"pixel_values": images}, penalty=slim.L1(1e-4))
Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
"""

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback

from slim.batches import as_one
from slim.errors import SlimError
from slim.files import replacing
from slim.prune.budgets import Budget
from slim.prune.calibration import MOST, part
from slim.sparsity import Penalty
from slim.trainers.slimming import Schedule, Slimming, Thinned

PLANS = "slim_plans.json"  # in a checkpoint's folder


class SlimCallback(TrainerCallback):
    """Train with a penalty and prune within the training, to a budget; the model stays the same object.

    `images`: inputs of the model without labels, as it takes them (a dict of keyword arguments), some hundred: what it
    is traced with and recovered on after each prune (unless `recover` is False).
    `start`, `end`: shares of the training's steps between which it is pruned, in `prunes` steps.
    `rules`: more keywords of `slim.plan`. `slimming.plans` holds what was done. The model's configuration keeps the
    original's sizes, so `from_pretrained` can't read what `Trainer.save_model` wrote: keep it with `slim.save` and the
    plans. The Trainer's checkpoints have the plans beside the weights: a training that was cut off goes on by

        callback.follow(model, "out/checkpoint-500")  # a new model, made as thin in place
        Trainer(model, …, callbacks=[callback]).train(resume_from_checkpoint="out/checkpoint-500")

    For one device; raises SlimError for more, and for `load_best_model_at_end`, which may be the model before a prune.
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
        self.thinned = Thinned()

    def follow(self, model: nn.Module, checkpoint: str | Path) -> None:
        """Make a model in place as thin as a checkpoint of the Trainer says. SlimError where that has no plans."""
        path = Path(checkpoint) / PLANS
        try:
            records = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SlimError(
                f"{str(path)!r} can't be read: expected a checkpoint of a Trainer with SlimCallback"
            ) from error
        self.thinned.follow(model, records)

    def on_save(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Write the plans beside the weights of a checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            with replacing(folder / PLANS) as temporary:
                temporary.write_text(json.dumps([plan.to_dict() for plan in self.thinned.plans]), encoding="utf-8")

    def on_train_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """End the penalty, and say where the training ended before the last prune."""
        if self.slimming is not None:
            self.slimming.end()

    def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Begin with the penalty."""
        if args.world_size > 1 or args.n_gpu > 1:
            raise SlimError(f"SlimCallback on {max(args.world_size, args.n_gpu)} devices: expected one")
        if args.load_best_model_at_end:
            raise SlimError(
                "SlimCallback with load_best_model_at_end, which may be a model before a prune: expected False"
            )
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
        self.slimming.go_on(self.thinned.plans, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Prune where it is time."""
        if self.slimming is not None:
            self.slimming.after_step()
