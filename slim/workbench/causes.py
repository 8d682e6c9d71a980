"""What errors of torch and Python mean for who runs a command: memory that doesn't suffice, workers that died.

Nothing here imports torch, so that a command can explain an error without it."""

from slim.errors import SlimError


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether memory didn't suffice. CUDA and Python have exceptions of their own for it; CPU and MPS have
    texts."""
    texts = ("can't allocate memory", "Cannot allocate memory", "MPS backend out of memory")
    named = {kind.__name__ for kind in type(error).__mro__} & {"MemoryError", "OutOfMemoryError"}
    return bool(named) or any(text in str(error) for text in texts)


def told(error: BaseException, most: int | None = 300) -> str:
    """Return an error of others' code, by its type and text, as part of a line; `most` are its characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:most]


def explain(error: BaseException) -> SlimError | None:
    """Return in one line what an error means that any work can end with; None where it is another one."""
    if is_out_of_memory(error):
        return SlimError(
            "out of memory: expected a smaller data.batch_size or data.image_size, data.storage stream for a folder "
            "of images, or more memory"
        )
    text = str(error)
    if not isinstance(error, RuntimeError) or not text.startswith("DataLoader"):
        return None
    if "timed out" in text:
        return SlimError(
            "the processes that read the data gave no batch for data.timeout seconds: expected faster files, "
            "data.workers 0, or a longer data.timeout"
        )
    if "exited unexpectedly" in text or "killed by signal" in text:
        return SlimError(
            "a process that reads the data died, for want of memory or of room in /dev/shm, say: expected fewer "
            "data.workers (0: none), or a smaller data.batch_size"
        )
    return None
