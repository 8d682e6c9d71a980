"""`slim.sensitivity` against networks whose layers' worth is known."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ZOO, randomise
from torch import Tensor, nn

import slim
from slim.errors import SlimError

X = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Branches(nn.Module):
    """A stem, a branch that the output needs, and one of little weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.needed = nn.Sequential(nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 4, 1))
        self.spare = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (self.needed(x) + 1e-3 * self.spare(x)).flatten(1)


def branches() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Branches()).eval()


def channels(model: nn.Module) -> dict[str, int]:
    return {name: m.num_features for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


def test_each_group_is_pruned_alone_by_each_share() -> None:
    model, seen = branches(), []

    def evaluate(network: nn.Module) -> float:
        seen.append(channels(network))
        return float(sum(channels(network).values()))

    found = slim.sensitivity(model, X[:1], evaluate, shares=(0.25, 0.5))
    assert [(group.layers, group.channels) for group in found.groups] == [
        (["stem.1"], 8), (["needed.1"], 12), (["spare.1"], 16)
    ]  # fmt: skip
    assert found.baseline == 36 and found.complete
    assert [group.pruned for group in found.groups] == [[34, 32], [33, 30], [32, 28]]
    assert seen[1] == {"stem.1": 6, "needed.1": 12, "spare.1": 16}
    assert seen[-1] == {"stem.1": 8, "needed.1": 12, "spare.1": 8}


def test_coupled_layers_are_one_group() -> None:
    model = randomise(ZOO["residual"]()).eval()
    found = slim.sensitivity(model, torch.randn(1, 3, 16, 16), lambda m: 1.0, shares=(0.5,))
    names = [name for group in found.groups for name in group.layers]
    assert len(names) == len(set(names)) and len(found.groups) < len(names)
    assert {group.name for group in found.groups} == {"stem.1 + 1", "a.0.1"}


def test_distance_shows_what_the_output_needs_and_what_recovery_gives_back() -> None:
    model = branches()
    with torch.no_grad():  # each channel of the needed branch has a twin
        for name, tensor in model.state_dict().items():
            if name.startswith(("needed.0", "needed.1")) and tensor.dim():
                tensor[6:] = tensor[:6]
    found = slim.sensitivity(model, X[:1], images=X, measure="values", shares=(0.5,))
    worth = {group.layers[0]: group for group in found.groups}
    assert found.measure == "distance" and found.baseline == 0
    assert worth["needed.1"].pruned[0] > 10 * worth["spare.1"].pruned[0] > 0
    assert worth["needed.1"].recovered[0] < 0.01 * worth["needed.1"].pruned[0]


def test_it_prints_shows_and_goes_through_json(tmp_path: Path) -> None:
    found = slim.sensitivity(
        branches(), X[:1], images=X, measure="values", shares=(0.05, 0.5)
    )  # 5 % of 8 channels are none
    assert math.isnan(found.groups[0].pruned[0]) and math.isnan(found.groups[0].recovered[0])
    text = str(found)
    assert "needed.1" in text and "−50%" in text and "→" in text and "–" in text
    shown = found._repr_html_()
    assert shown.count("<tr>") == 4 and "rgba(214, 69, 65, 1.00)" in shown  # the worst
    record = json.loads(json.dumps(found.to_dict()))
    assert slim.Sensitivity.from_dict(record).to_dict() == found.to_dict()
    found.save(tmp_path / "a.json")
    assert slim.Sensitivity.load(tmp_path / "a.json").to_dict() == found.to_dict()


def test_a_time_limit_leaves_the_rest_and_a_file_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slim.prune import sensitivity as module

    model, file = branches(), tmp_path / "sensitivity.json"
    asked: list[str] = []
    monkeypatch.setattr(module.time, "monotonic", lambda: float(len(asked)))  # an evaluation takes a second

    def evaluate(network: nn.Module) -> float:
        asked.append(str(channels(network)))
        return float(len(asked))

    part = slim.sensitivity(model, X[:1], evaluate, shares=(0.25, 0.5), time_limit=3, file=file)
    assert not part.complete and len(asked) == 4
    assert "…" in str(part)
    whole = slim.sensitivity(model, X[:1], evaluate, shares=(0.25, 0.5), file=file)
    assert whole.complete and slim.Sensitivity.load(file).complete
    assert whole.groups[0].pruned == part.groups[0].pruned == [2, 3]
    assert len(asked) == 4 + 1 + 3  # the unpruned network once more, and what was left
    with pytest.raises(SlimError, match="another shares: expected another file"):
        slim.sensitivity(model, X[:1], evaluate, shares=(0.5,), file=file)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(SlimError, match="another network: expected another file"):
        slim.sensitivity(model, X[:1], evaluate, shares=(0.25, 0.5), file=file)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "nothing to measure"),
        ({"images": X, "shares": (1.0,)}, "expected shares of a group's channels between 0 and 1"),
        ({"images": X[:9]}, "expected one batch of at least 16"),
        ({"images": X, "measure": "metre"}, "unknown distance"),
    ],
)
def test_mistakes(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SlimError, match=said):
        slim.sensitivity(branches(), X[:1], **settings)
