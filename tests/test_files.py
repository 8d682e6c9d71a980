"""Files that are whole or not there, and folders that one process at a time writes to."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from slim.errors import SlimError
from slim.files import LOCK, locked, replacing


def test_a_file_keeps_its_mode_and_a_new_one_gets_the_usual(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch(mode=0o600)
    before = os.umask(0o022)
    try:
        for path in (old, new):
            with replacing(path) as temporary:
                temporary.write_text("x")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (old, new)] == [0o600, 0o644]


def test_file_and_folder_are_synced_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that isn't on disk before what follows it (an unlink, say) may be lost alone."""
    done: list[str] = []
    sync, rename = os.fsync, os.replace

    def fsync(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def replace(source: Path, target: Path) -> None:
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert done == ["file", "rename", "folder"]


HOLD = """
import sys, time
from pathlib import Path
from slim.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_and_free_when_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    try:
        with pytest.raises(SlimError, match=rf"in use by -c .*process {other.pid}") as caught, locked(folder):
            raise AssertionError("two hold it")
        assert "\n" not in str(caught.value)
    finally:
        other.kill()
        other.wait()
    assert (folder / LOCK).exists()  # left behind, and stale
    with locked(folder):
        assert json.loads((folder / LOCK).read_text())["process"] == os.getpid()
    assert not (folder / LOCK).exists()


def test_the_holder_may_hold_it_again_and_an_empty_folder_goes(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "run"
    with locked(folder):
        with locked(folder):
            pass
        assert (folder / LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    with locked(folder):
        (folder / "result").touch()
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_what_a_kill_left_half_written_goes_and_nothing_else(tmp_path: Path) -> None:
    left = [".slim-a1b2c3.safetensors", ".tmpAb12Cd"]
    others = [".slim", ".tmp", ".hidden", "x.tmpAb12Cd", "sparse.safetensors"]
    for name in (*left, *others):
        (tmp_path / name).touch()
    with locked(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
