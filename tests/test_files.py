"""Files that are whole or not there, and folders that one process at a time writes to."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from slim.errors import SlimError
from slim.files import LOCK, locked, read_text, replacing


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


def test_new_folders_are_synced_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power failure takes a file that was synced, with the folder that nothing leads to."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    with replacing(tmp_path / "checkpoints" / "run" / "a") as temporary:
        temporary.write_text("x")
    above = [tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "run"]
    assert {folder.stat().st_ino for folder in above} <= set(synced)


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


def test_files_that_are_none_are_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "long").write_text("x" * 11)
    for name, told in {
        "pipe": "it is a pipe or a device",
        "": "it is a folder",
        "loop": "symbolic links",
        "bytes": "not text",
        "long": "11 bytes: expected at most 10",
        "missing": "No such file",
        "n\x00l": "no file has such a name",
        "\ud800": "no file has such a name",
    }.items():
        with pytest.raises(SlimError, match=told) as caught:
            read_text("plan", f"{tmp_path}/{name}", 10)
        assert str(caught.value).startswith("plan ")


def test_what_can_not_be_written_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("old")
    code = (
        "import resource, sys, torch; from pathlib import Path; from safetensors.torch import save_file\n"
        "from slim.errors import SlimError; from slim.files import replacing\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "texts, tensors = 'x' * 2000, {'x': torch.zeros(999)}\n"
        "for write in (lambda p: p.write_text(texts), lambda p: save_file(tensors, p)):\n"
        "    try:\n"
        "        with replacing(Path(sys.argv[1])) as temporary: write(temporary)\n"
        "    except SlimError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(kept)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("File too large; expected a folder with room" in line for line in lines), done.stdout
    assert kept.read_text() == "old" and list(tmp_path.iterdir()) == [kept]
