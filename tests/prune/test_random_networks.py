"""Random networks of all ingredients: whatever is planned equals its masked original, and nothing else is raised."""

import pytest
import torch
from networks import RandomNet, difference, randomise

import slim

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def check(seed: int) -> None:
    model = randomise(RandomNet(seed, more=True), seed).eval()
    try:
        plan = slim.plan(model, X, ratio=0.4)
    except slim.SlimError as error:
        assert "would remove nothing" in str(error) or "nothing to prune" in str(error)
        return
    thin = plan.apply(model)
    assert difference(model, thin, plan.removed, X) < 1e-10, model.kinds
    slim.verify(model, thin, plan, X)


@pytest.mark.parametrize("seed", range(36))
def test_some(seed: int) -> None:
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(36, 1000))
def test_many(seed: int) -> None:
    check(seed)
