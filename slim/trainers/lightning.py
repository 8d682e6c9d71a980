"""A callback for Lightning: penalty, gradual pruning, recovery. Needs the package `lightning`.

from slim.trainers.lightning import SlimCallback

trainer = lightning.Trainer(max_epochs=30, callbacks=[SlimCallback(slim.Flops(0.5), penalty=slim.L1(1e-4))])
trainer.fit(module, loader)
"""

from typing import Any

import lightning.pytorch as pl
import torch

from slim.batches import as_one, first_batch
from slim.errors import SlimError, unknown
from slim.prune.budgets import Budget
from slim.prune.calibration import MOST, part
from slim.sparsity import Penalty
from slim.trainers.slimming import Schedule, Slimming


class SlimCallback(pl.Callback):
    """Train with a penalty and prune within the training, to a budget; the module stays the same object.

    `network`: the attribute of the module that is pruned, such as "model"; "" is the module itself.
    `start`, `end`: shares of the training's steps between which it is pruned, in `prunes` steps (default 4, of 0.3 to
    0.7): the rest of the training fine-tunes.
    `recover`: whether it is recovered after each, on up to a thousand of the training inputs; of a batch that is a
    tuple or a list, its first part. `rules`: more keywords of `slim.plan`.

    `slimming.plans` holds what was done. For one device; raises SlimError for more, and for several optimizers.
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

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the penalty."""
        if trainer.world_size > 1 or len(trainer.optimizers) != 1:
            raise SlimError(
                f"SlimCallback with {trainer.world_size} processes and {len(trainer.optimizers)} optimizers: expected "
                "one of each"
            )
        loader: Any = trainer.train_dataloader
        try:
            network: Any = pl_module.get_submodule(self.network)
        except AttributeError:
            known = [name for name, _ in pl_module.named_children()]
            raise unknown("network of SlimCallback", self.network, known) from None
        images = part(as_one(loader, MOST) if self.recover else first_batch(loader), ..., pl_module.device)
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

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Prune where it is time: after a batch that took a step of the optimizer."""
        slimming = self.slimming
        if slimming is not None and trainer.global_step > slimming.step:
            with torch.enable_grad():
                if slimming.after_step():
                    pl_module.trainer = trainer  # which copies of Lightning's modules let go of
