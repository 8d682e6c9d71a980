"""`slim.sensitivity` against networks whose layers' worth is known."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ZOO, randomise
from torch import Tensor, nn

import slim
from slim.errors import SlimError
from slim.prune.sensitivity import Sensitive, Sensitivity

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


# -- in words, of a table that lies ready ------------------------------------------------------------------------------


NAN = math.nan
TABLE = Sensitivity(
    "metric",
    0.98765,
    [0.25, 0.5],
    [
        Sensitive(["a<b", "c", "d"], 1024, [0.9, 0.5], [0.95, 0.7]),
        Sensitive(["e"], 8, [NAN, 0.99], [NAN, 0.98765]),
        Sensitive(["f", "g"], 16, [0.6]),
    ],
    complete=False,
    of="hash",
)
PRINTED = """\
metric by share of a group's channels removed;
unpruned 0.9877

 layers    channels         −25%            −50%
 ───────────────────────────────────────────────
 a<b + 2      1,024   0.9 → 0.95       0.5 → 0.7
 e                8            –   0.99 → 0.9877
 f + 1           16          0.6               …
right after pruning → recovered
… not measured yet: the time limit came first"""


def test_the_table_in_print() -> None:
    assert str(TABLE) == PRINTED
    assert TABLE.headline() == "metric of 3 groups of layers, each with 2 shares removed"
    plain = replace(TABLE, groups=[Sensitive(["e"], 8, [0.9, 0.8])], complete=True)
    assert str(plain).splitlines()[-1].split() == ["e", "8", "0.9", "0.8"]


@pytest.mark.parametrize(
    ("larger_is_better", "shares"),
    [(True, [["0.10", "0.74"], ["0.00", "0.00"], ["1.00", "0.00"]]), (False, [["0.00"] * 2] * 3)],
)
def test_the_table_in_colours(larger_is_better: bool, shares: list[list[str]]) -> None:
    """The more red, the more is lost of what is lost at most: 0.388, where f falls to 0.6, with nothing recovered."""
    shown = replace(TABLE, larger_is_better=larger_is_better)._repr_html_()
    rows = re.findall(r"<tr><th>([^<]*)</th><td>([^<]*)</td>(.*?)</tr>", shown)
    assert [row[:2] for row in rows] == [("a&lt;b + 2", "1,024"), ("e", "8"), ("f + 1", "16")]
    cells = [re.findall(r'<td style="background: rgba\(214, 69, 65, ([\d.]+)\)">([^<]*)</td>', row[2]) for row in rows]
    assert [[text for _, text in row] for row in cells] == [
        ["0.9 → 0.95", "0.5 → 0.7"], ["–", "0.99 → 0.9877"], ["0.6", "…"]
    ]  # fmt: skip
    assert [[share for share, _ in row] for row in cells] == shares
    assert shown.startswith(
        "<table><thead><tr><th>layers</th><th>channels</th><th>−25%</th><th>−50%</th></tr></thead><tbody><tr>"
    )


def test_the_table_as_data(tmp_path: Path) -> None:
    record = TABLE.to_dict()
    assert record["groups"][1] == {"layers": ["e"], "channels": 8, "pruned": [None, 0.99], "recovered": [None, 0.98765]}
    again = Sensitivity.from_dict(json.loads(json.dumps(record)))
    assert repr(again.__dict__) == repr(TABLE.__dict__)
    assert [TABLE.lost(0.9), replace(TABLE, larger_is_better=False).lost(0.9)] == pytest.approx([0.08765, -0.08765])
    records: list[Any] = [
        None,
        [],
        {},
        record | {"format": "other"},
        record | {"shares": ["x"]},
        record | {"groups": [{}]},
    ]
    for broken in records:
        with pytest.raises(SlimError, match=r"^not a table of sensitivity: expected what Sensitivity\.to_dict gives"):
            Sensitivity.from_dict(broken)


def test_files_that_hold_no_table(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    with pytest.raises(SlimError, match=f"^can't read {str(file)!r}: No such file"):
        Sensitivity.load(file)
    file.write_text("{")
    with pytest.raises(SlimError, match=rf"^{str(file)!r} isn't a table of sensitivity: expected JSON \(Expecting"):
        Sensitivity.load(file)
