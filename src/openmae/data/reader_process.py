"""What runs in a reader process: a data set read in whole batches, and what goes wrong as a message."""

import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from openmae.data.hand_over import hand_over
from openmae.errors import Fault, RequestError

# What a person or a cluster ends a run with. Readers never see them: the main process decides when they stop.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class MemoryShortage:
    """Whether the system killed a reader for its memory, and how many there may be since then."""

    def __init__(self) -> None:
        self.is_known, self.max_workers = False, sys.maxsize


class Reader(Dataset):
    """A data set read in whole batches, whose errors come back as what they say and not as a traceback."""

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
        at_once = getattr(self.dataset, "__getitems__", None)
        return self.collate(at_once(indices) if at_once else [self.dataset[index] for index in indices])


class FailedBatch(NamedTuple):
    """What went wrong in a reader process."""

    kind: str
    message: str
    is_request_error: bool

    def pin_memory(self) -> "FailedBatch":
        return self

    @property
    def error(self) -> RequestError | Fault:
        if self.is_request_error:
            return RequestError(self.message)
        said = self.message.strip().splitlines()[-1:] or [""]
        return Fault(f"a reader process failed: {self.kind}: {said[0]}; --workers 0 reads in the main process")


def identity_collate(batch: Any) -> Any:
    """The `collate_fn` of a loader whose data set returns whole batches: nothing is left to do."""
    return batch


def start_worker(use_pipes: bool, worker: int) -> None:
    """Prepare a reader process: no signals, one thread, no traceback, and the way in which batches are handed over."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    # What goes wrong while a batch is made is handed over; this is of the thread that shares memory, when the main
    # process is gone.
    sys.excepthook = lambda *error: None
    hand_over(use_pipes)
