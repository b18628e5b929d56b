"""What runs in a reader process (a DataLoader worker): whole batches, and errors as messages."""

import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from openmae.data.hand_over import configure_transfer
from openmae.errors import Fault, RequestError

# Signals with which a user or a cluster stops a run. Readers ignore them: the main process decides when they stop.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class MemoryShortage:
    """Whether the system has killed a reader for its memory, and how many readers are allowed since then."""

    def __init__(self) -> None:
        self.has_occurred, self.max_workers = False, sys.maxsize


class Reader(Dataset):
    """A data set that returns whole batches; in a worker process an error comes back as a `FailedBatch`."""

    def __init__(self, dataset: Dataset, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate
        self.shortage: MemoryShortage = getattr(dataset, "shortage", None) or MemoryShortage()

    def __getitems__(self, indices: list[int]) -> Any:
        if torch.utils.data.get_worker_info() is None:
            return self._batch(indices)
        try:
            return self._batch(indices)
        except Exception as error:
            return FailedBatch(type(error).__name__, str(error), isinstance(error, RequestError))

    def _batch(self, indices: list[int]) -> Any:
        get_batch = getattr(self.dataset, "__getitems__", None)
        return self.collate(get_batch(indices) if get_batch else [self.dataset[index] for index in indices])


class FailedBatch(NamedTuple):
    """What a reader process returns in place of a batch where it raised an error."""

    kind: str
    message: str
    is_request_error: bool

    def pin_memory(self) -> "FailedBatch":
        return self

    @property
    def error(self) -> RequestError | Fault:
        if self.is_request_error:
            return RequestError(self.message)
        (last_line,) = self.message.strip().splitlines()[-1:] or [""]
        return Fault(f"a reader process failed: {self.kind}: {last_line}; --workers 0 reads in the main process")


def identity_collate(batch: Any) -> Any:
    """The `collate_fn` of a loader whose data set returns whole batches already."""
    return batch


def start_worker(use_pipes: bool, worker: int) -> None:
    """Set up a reader process: no signals, one thread, no tracebacks, shared memory or pipes (`worker_init_fn`)."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    # Errors while a batch is made come back as a FailedBatch; what is left is noise of torch's sharing thread when the
    # main process is gone.
    sys.excepthook = lambda *error: None
    configure_transfer(use_pipes)
