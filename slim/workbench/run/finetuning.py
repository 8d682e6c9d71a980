"""How a pruned network is trained on where the user doesn't say: the one place that decides it."""

from dataclasses import replace

from slim.workbench.config import FinetuneConfig, RunConfig

LENGTH = 2 / 3  # of the training before
PEAK = 1 / 2  # of its highest learning rate: the schedule is rewound (Renda et al., https://arxiv.org/abs/2003.02389)
GIVEN = 1 / 10  # of a usual one, for weights that came with the network: nothing is known of their training

USUAL = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}  # highest learning rates of a training


def decided(settings: RunConfig) -> FinetuneConfig:
    """Return the settings of fine-tuning, with what they leave open taken from the training before it: its length, and
    its learning rate where both use the same optimizer, else a usual one of its own. Where there was no training, as
    the weights came with the network, the rate is a share of a usual one."""
    tuned, trained = settings.finetune, settings.train
    usual = USUAL[tuned.optimizer]
    if settings.model.trained and settings.run.path != "sparse":
        rate = GIVEN * usual
    else:
        rate = PEAK * (trained.lr if tuned.optimizer == trained.optimizer else usual)
    return replace(
        tuned,
        epochs=max(1, round(LENGTH * trained.epochs)) if tuned.epochs is None else tuned.epochs,
        lr=rate if tuned.lr is None else tuned.lr,
    )
