"""How networks are trained, and pruned ones trained on, where the user doesn't say: the one place that decides it."""

from dataclasses import replace

from slim.workbench.config import FinetuneConfig, RunConfig, TrainConfig

LENGTH = 2 / 3  # of the training before
PEAK = 1 / 2  # of its highest learning rate: the schedule is rewound (Renda et al., https://arxiv.org/abs/2003.02389)

# Highest learning rates: of a usual training, and for weights that came with the network, of whose training nothing is
# known (of AdamW as `slim.compress` has it). By scripts/finetune_defaults.py a ResNet-18 that is trained on with a
# penalty gets to 95 % from 0.02 and to 89 % from 0.1; a new last layer to 92 % and 96 %, so that takes the usual one.
USUAL = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}
GIVEN = {"sgd": 0.02, "adam": 5e-4, "adamw": 5e-4}


def training(settings: RunConfig, *, new_layer: bool = False) -> TrainConfig:
    """Return the settings of training, with a learning rate where they leave it open: a usual one of the optimizer, or
    that for weights which came with the network, unless a last layer was made new."""
    return replace(settings.train, lr=_rate(settings, new_layer))


def _rate(settings: RunConfig, new_layer: bool = False) -> float:
    rates = GIVEN if settings.model.trained and not new_layer else USUAL
    return rates[settings.train.optimizer] if settings.train.lr is None else settings.train.lr


def decided(settings: RunConfig) -> FinetuneConfig:
    """Return the settings of fine-tuning, with what they leave open taken from the training before it: its length, and
    its learning rate where both use the same optimizer, else a usual one of its own. Where there was no training, as
    the weights came with the network, the rate is that for given weights."""
    tuned, trained = settings.finetune, settings.train
    if settings.model.trained and settings.run.path != "sparse":
        rate = GIVEN[tuned.optimizer]
    else:
        rate = PEAK * (_rate(settings) if tuned.optimizer == trained.optimizer else USUAL[tuned.optimizer])
    return replace(
        tuned,
        epochs=max(1, round(LENGTH * trained.epochs)) if tuned.epochs is None else tuned.epochs,
        lr=rate if tuned.lr is None else tuned.lr,
    )
