"""A callback for Lightning: penalty, gradual pruning, recovery. Needs the package `lightning`.

from slim.trainers.lightning import SlimCallback

trainer = lightning.Trainer(max_epochs=30, callbacks=[SlimCallback(slim.Flops(0.5), penalty=slim.L1(1e-4))])
trainer.fit(module, loader)
"""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import nn

from slim.batches import as_one, first_batch
from slim.errors import SlimError, unknown
from slim.prune.budgets import Budget
from slim.prune.calibration import MOST, part
from slim.sparsity import Penalty
from slim.trainers.slimming import Schedule, Slimming, Thinned


class SlimCallback(pl.Callback):
    """Train with a penalty and prune within the training, to a budget; the module stays the same object.

    `network`: the attribute of the module that is pruned, such as "model"; "" is the module itself.
    `start`, `end`: shares of the training's steps between which it is pruned, in `prunes` steps (default 4, of 0.3 to
    0.7): the rest of the training fine-tunes.
    `recover`: whether it is recovered after each, on up to a thousand of the training inputs; of a batch that is a
    tuple or a list, its first part. `rules`: more keywords of `slim.plan`.

    `slimming.plans` holds what was done. Lightning's checkpoints keep it, too: with a new module and this callback,
    `fit(…, ckpt_path=…)` goes on, and `validate(…, ckpt_path=…)` reads them. For one device; raises SlimError for more,
    for several optimizers, and beside Lightning's averages of weights, which keep the whole network's sizes.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        penalty: Penalty | None = None,
        network: str = "model",
        start: float = 0.3,
        end: float = 0.7,
        prunes: int = 4,
        recover: bool = True,
        rules: dict[str, Any] | None = None,
    ) -> None:
        self.schedule = Schedule(start, end, prunes)
        self.budget, self.penalty, self.network, self.recover, self.rules = budget, penalty, network, recover, rules
        self.slimming: Slimming | None = None
        self.thinned = Thinned()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Have the module made as thin as a checkpoint says, before it reads the weights there."""
        own = pl_module.on_load_checkpoint

        def thin_first(checkpoint: dict[str, Any]) -> None:
            records = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("plans", [])
            self.thinned.follow(self._network(pl_module), records)
            pl_module.trainer = trainer  # which copies of Lightning's modules let go of
            own(checkpoint)

        pl_module.on_load_checkpoint = thin_first  # type: ignore[method-assign]  # callbacks' own comes too late

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        pl_module.__dict__.pop("on_load_checkpoint", None)

    def state_dict(self) -> dict[str, Any]:
        """Return the plans so far, for Lightning's checkpoints."""
        return {"plans": [plan.to_dict() for plan in self.thinned.plans]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Do nothing: the plans were followed before the module's weights were read."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the penalty, or go on."""
        if trainer.world_size > 1 or len(trainer.optimizers) != 1:
            raise SlimError(
                f"SlimCallback with {trainer.world_size} processes and {len(trainer.optimizers)} optimizers: expected "
                "one of each"
            )
        for other in getattr(trainer, "callbacks", ()):
            if isinstance(other, StochasticWeightAveraging | WeightAveraging):
                raise SlimError(
                    f"SlimCallback beside {type(other).__name__}, which keeps an average of the whole network: "
                    "expected it in a training of its own, after the pruning"
                )
        loader: Any = trainer.train_dataloader
        network = self._network(pl_module)
        images = part(as_one(loader, MOST) if self.recover else first_batch(loader), ..., pl_module.device)
        images = trainer.precision_plugin.convert_input(images)
        self.slimming = Slimming(
            network,
            trainer.optimizers[0],
            part(images, slice(2)),
            self.budget,
            at=self.schedule.at(int(trainer.estimated_stepping_batches)),
            penalty=self.penalty,
            images=images if self.recover else None,
            rules=self.rules,
        )
        self.slimming.go_on(self.thinned.plans, trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Prune where it is time: after a batch that took a step of the optimizer."""
        slimming = self.slimming
        if slimming is not None and trainer.global_step > slimming.step:
            with torch.enable_grad():
                if slimming.after_step():
                    pl_module.trainer = trainer

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the penalty, and say where the training ended before the last prune."""
        if self.slimming is not None:
            self.slimming.end()

    def _network(self, pl_module: pl.LightningModule) -> nn.Module:
        try:
            return pl_module.get_submodule(self.network)
        except AttributeError:
            known = [name for name, _ in pl_module.named_children()]
            raise unknown("network of SlimCallback", self.network, known) from None
