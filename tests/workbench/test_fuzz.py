"""Some hundred of the hostile and odd inputs of scripts/fuzz.py, which tries tens of thousands."""

import sys
from pathlib import Path

import fuzz
import pytest
from workbench.commands import Shown

CASES = {"checkpoints": 25, "plans": 40, "records": 12, "onnx_graphs": 25}  # those that take longer


@pytest.fixture(scope="module", autouse=True)
def looked_at() -> None:
    sys.addaudithook(fuzz._look)


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_what_comes_in_is_taken_or_refused_in_one_line(name: str, chained: tuple[Path, dict[str, Shown]]) -> None:
    base = next((chained[0] / "checkpoints").iterdir()).resolve()
    fuzz.warm_up(name, base)
    cases = CASES.get(name, 80)
    found = fuzz.fuzz(name, base, range(cases))
    assert not found.failures
    assert found.outcomes["taken"] + found.outcomes["refused"] == cases
    assert min(found.outcomes["taken"], found.outcomes["refused"]) > 0  # neither all is taken, nor all refused
