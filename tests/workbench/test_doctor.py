"""slim-doctor: what it says of an installation that works, and of one that doesn't."""

import json
import time

import pytest
import torch
from workbench.commands import Command, call

import slim
from slim.workbench import doctor
from slim.workbench.cli.main import COMMANDS


def test_this_installation_can_be_trusted(capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    pytest.importorskip("onnxruntime")
    start = time.process_time()
    with pytest.raises(SystemExit) as end:
        call("doctor", "--json")
    assert time.process_time() - start < 60
    said = json.loads(capsys.readouterr().out)
    assert end.value.code == 0 and said["trusted"] and said["verdict"].startswith("this installation can be trusted")
    assert [check["name"] for check in said["checks"]] == ["train", "prune", "verify", "save", "export", "compare"]
    assert not [warning for warning in recwarn if "score=" in str(warning.message)]  # it warns of nothing that it does
    assert torch.__version__.partition("+")[0] in said["facts"]["packages"]
    assert slim.__version__ in said["facts"]["slim"] and "doctor" in COMMANDS


def test_the_facts_are_lines_for_a_bug_report() -> None:
    found = doctor.facts()
    assert {"slim", "python", "packages", "machine", "threads", "devices", "memory", "disk", "cache"} <= found.keys()
    assert all(fact and "\n" not in fact for fact in found.values())


@pytest.mark.parametrize(
    ("part", "broken"),
    [
        ("train", lambda self: self._learned(doctor._network().eval())),
        ("verify", lambda self: str(slim.verify(self.model, doctor._network(), self.plan, self.images[:8]))),
        ("save", lambda self: dict[str, str]()["nothing"]),
    ],
)
def test_what_is_broken_is_named(
    part: str, broken: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor._Subject, part, broken)
    with pytest.raises(SystemExit) as end:
        call("doctor")
    said = capsys.readouterr().out
    assert end.value.code == 1
    assert f"this installation can NOT be trusted: {part}: " in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_wrong_option_is_one_line(mistake: Command) -> None:
    assert "--json" in mistake("doctor", "--jsn")
