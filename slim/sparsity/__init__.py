"""Penalties that drive BatchNorm scales (or other weights) to zero, added to any training loop by one line.

`penalties` says what is added to the loss, `targets` which parameters feel it, `steps` how far an optimizer goes,
`control` how strong it is over time, and `act` hooks all of it into the optimizer.
"""

from slim.sparsity.act import NEAR_ZERO, Sparsity, sparsify
from slim.sparsity.control import SCHEDULES, scheduled
from slim.sparsity.penalties import (
    L0,
    L1,
    L2,
    METHODS,
    PENALTIES,
    DeadZoneL1,
    ElasticNet,
    GroupLasso,
    Lp,
    Penalty,
    Polarization,
    TransformedL1,
    penalty,
)
from slim.sparsity.targets import coupled, parameter_groups

__all__ = [
    "L0",
    "L1",
    "L2",
    "METHODS",
    "NEAR_ZERO",
    "PENALTIES",
    "SCHEDULES",
    "DeadZoneL1",
    "ElasticNet",
    "GroupLasso",
    "Lp",
    "Penalty",
    "Polarization",
    "Sparsity",
    "TransformedL1",
    "coupled",
    "parameter_groups",
    "penalty",
    "scheduled",
    "sparsify",
]
