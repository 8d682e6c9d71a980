"""The processes that read data: how much they may have in hand, how they hand it over, and what if one dies."""

import math
import mmap
import multiprocessing.queues
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from slim.errors import SlimError
from slim.memory import free_memory
from slim.workbench.causes import explain

T = TypeVar("T")
PREFETCHED = 4  # batches that each worker has ready or in work
SHARE_OF_MEMORY = 0.25  # that batches which are ready or in work may take


@dataclass(frozen=True)
class Workers:
    """So many processes, each with so many batches in hand."""

    count: int
    prefetched: int

    @classmethod
    def fitting(cls, wanted: int, batch_bytes: int) -> "Workers":
        """Return at most `wanted` of them for batches of that size, as memory allows; at least one, if one is."""
        most = max(1, int(SHARE_OF_MEMORY * free_memory() / max(1, batch_bytes)))
        count = min(wanted, most)
        return cls(count, max(1, min(PREFETCHED, most // max(1, count))))

    def shared(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return memory, uint8 [slots, *shape], for one batch more than they have in hand, which forked processes share
        with this one; None where they aren't forked. No container limits it, as most do with /dev/shm, and it needs no
        process to ask for it, that might have been stopped."""
        if not self.count or multiprocessing.get_start_method() != "fork":
            return None
        slots = self.count * self.prefetched + 1
        return np.frombuffer(mmap.mmap(-1, slots * math.prod(shape)), np.uint8).reshape(slots, *shape)

    def loader(self, dataset: Any, batches: Sequence[Any], timeout: float) -> DataLoader:
        """Return what `dataset` gives for each of `batches`, as it is."""
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=batches,
            num_workers=self.count,
            prefetch_factor=self.prefetched if self.count else None,
            collate_fn=_as_it_is,
            timeout=timeout if self.count else 0,
            generator=torch.Generator(),  # else it draws from torch's global one, and training would differ
            worker_init_fn=prepare_worker,
        )


def _as_it_is(value: Any) -> Any:
    return value


def watched(batches: Iterable[T], name: str) -> Iterator[T]:
    """Go through batches that worker processes may make. Raises SlimError where one of them dies, gives nothing within
    the loader's time limit, or fails; then none of them stays."""
    iterator = iter(batches)
    try:
        for batch in iterator:  # `yield from` would close a generator that is gone on with later
            yield batch
    except (SlimError, OSError):
        _end_workers(iterator)
        raise
    except Exception as error:  # the code of others: anything can go wrong in it
        _end_workers(iterator)
        kind, text = type(error).__name__, str(error).strip()
        story, _, told = text.partition("Original Traceback")  # of a worker's error, which closes with what it was
        reason = text.rpartition("\n")[2] if told and "DataLoader worker" in story else f"{kind}: {text}"
        raise explain(error) or SlimError(f"reading {name} failed ({reason})") from error
    if not getattr(batches, "persistent_workers", False):
        _end_workers(iterator)


def _end_workers(iterator: Any) -> None:
    """End the workers of a DataLoader's iterator. A stopped one heeds no request, and would be waited for at exit."""
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
        for worker in iterator._workers:
            if worker.is_alive():
                worker.kill()


def prepare_worker(_: int) -> None:
    """Let a worker end when it can't hand over what it has made: by default it drops that, and is waited for without
    end. Let it heed the main process alone: signals to end come to all processes of a group alike (from a terminal,
    torchrun, SLURM). The main process then finishes its step, for which it may need this worker."""
    torch.multiprocessing.set_sharing_strategy("file_system")  # by name: a stopped worker couldn't be asked for it
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS, Windows: nothing tells who sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_when_the_main_process_says_so, daemon=True).start()


def _end(*_: Any) -> None:
    os._exit(1)


def _end_when_the_main_process_says_so() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
