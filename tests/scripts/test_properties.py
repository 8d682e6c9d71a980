"""Some of the random networks and plans of scripts/properties.py, which tries a thousand."""

import properties
import pytest
from networks import RandomNet
from torch import nn

from slim.prune.plan import PruningPlan

HEADS = [21, 60, 120]  # where half the channels of two heads went, and one whole head seemed to be left


@pytest.mark.parametrize("number", [*range(10), *HEADS])
def test_what_slim_promises_holds(number: int) -> None:
    assert not properties.outcome(number).startswith("failed")


def test_a_broken_promise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = PruningPlan.apply

    def wrong(plan: PruningPlan, model: nn.Module) -> nn.Module:
        thin = apply(plan, model)
        if isinstance(model, RandomNet):
            next(parameter for parameter in thin.parameters() if parameter.ndim == 4).data += 1e-3
        return thin

    assert properties.outcome(0) == "planned"
    monkeypatch.setattr(PruningPlan, "apply", wrong)
    assert "differs from the masked original" in properties.outcome(0)
