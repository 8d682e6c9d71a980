"""Files that are either whole or not there, and folders that one process at a time writes to."""

import contextlib
import json
import os
import re
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from slim.errors import SlimError

LOCK = ".lock"
# Ours, and those that safetensors writes before it renames them.
LEFTOVER = re.compile(r"\.slim-.+|\.tmp[A-Za-z0-9]{6}")
MOST_TEXT = 2**28  # bytes: the records of a long run take a few million
_held: set[Path] = set()  # by this process


def check_regular(what: str, path: str | Path, most: float = float("inf")) -> None:
    """Raise SlimError, which calls it `what`, where `path` is no regular file of at most so many bytes: a pipe that
    nobody writes to would be waited for without end."""
    try:
        about = os.stat(path)
    except OSError as error:
        raise SlimError(f"{what} {str(path)!r} can't be read: {error.strerror}") from None
    except ValueError as error:  # NUL and the like
        raise SlimError(f"{what} {str(path)!r} can't be read: no file has such a name ({error})") from None
    if not stat.S_ISREG(about.st_mode):
        kind = "a folder" if stat.S_ISDIR(about.st_mode) else "a pipe or a device"
        raise SlimError(f"{what} {str(path)!r} can't be read: it is {kind}, expected a file")
    if about.st_size > most:
        raise SlimError(f"{what} {str(path)!r} has {about.st_size:,} bytes: expected at most {most:,}")


def read_text(what: str, path: str | Path, most: int = MOST_TEXT) -> str:
    """Return the text of a regular file of at most so many bytes. Raises SlimError, which calls it `what`."""
    check_regular(what, path, most)
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SlimError(f"{what} {str(path)!r} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SlimError(f"{what} {str(path)!r} is not text: expected UTF-8") from None


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it takes the place of `path`, file and folder synced to disk.

    Whatever goes wrong before that (an error, Ctrl-C, a full disk) leaves an earlier file at `path` alone. Its mode
    stays; a new file gets the usual one. Raises SlimError where it can't be written.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        make_folder(path.parent)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".slim-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
        temporary.chmod(mode)  # mkstemp's 0600 would hide the file from colleagues
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, SafetensorError, ValueError) as error:
        if (reason := _why_unwritten(error)) is None:
            raise
        raise SlimError(
            f"can't write {str(path)!r}: {reason}; expected a folder with room that you may write to"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _why_unwritten(error: Exception) -> str | None:
    """Return what the system says against writing a file; None where the error is another one."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, SafetensorError):
        found = re.search(r"I/O error: (.*?)( \(os error|$)", str(error))
        return found[1] if found else str(error)
    return str(error) if "null byte" in str(error) or isinstance(error, UnicodeEncodeError) else None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, so that they last through a power failure."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in made:
        _sync_folder(each.parent)


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make what was renamed or made in a folder last through a power failure. Not every system can open a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone, again and again if need be; raise SlimError where another one holds it.

    The lock ends with its process, however that ends. What a killed process left half-written goes first. A folder that
    was made for the lock and is still empty after it goes, too.
    """
    folder = folder.absolute()
    if folder in _held:
        yield
        return
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    make_folder(folder)
    lock = folder / LOCK
    handle = _take(lock)
    _held.add(folder)
    try:
        clear_leftovers(folder)
        yield
    finally:
        _held.remove(folder)
        lock.unlink(missing_ok=True)
        os.close(handle)
        with contextlib.suppress(OSError):  # where something was written
            for each in made:
                each.rmdir()


def _take(lock: Path) -> int:
    """Open and lock a file, and note in it whose it is."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _flock(handle)
        except OSError:
            owner = os.read(handle, 1000).decode(errors="replace")
            os.close(handle)
            with contextlib.suppress(ValueError, KeyError, TypeError):
                about = json.loads(owner)
                owner = f"{about['command']} (process {about['process']} on {about['host']})"
            raise SlimError(
                f"{str(lock.parent)!r} is in use by {owner or 'another process'}: wait for it, or choose another --name"
            ) from None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                break
        os.close(handle)  # its owner removed it between the two
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:500]
    text = json.dumps({"command": command, "process": os.getpid(), "host": socket.gethostname()})
    os.ftruncate(handle, 0)
    os.write(handle, text.encode())
    return handle


def _flock(handle: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
