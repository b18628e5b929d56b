"""DataLoader worker processes ("readers"): start, batches, timeouts, shutdown, and one-line errors."""

import functools
import itertools
import multiprocessing
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import wait
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from openmae.data.hand_over import PREFETCHED
from openmae.data.reader_process import SIGNALS, FailedBatch, MemoryShortage, Reader, identity_collate, start_worker
from openmae.errors import Fault

TIMEOUT = 300  # seconds without a batch after which a reader counts as hung
POLL_SECONDS = 1  # how often `should_stop` is asked while a batch is waited for
SHUTDOWN_SECONDS = 3  # that readers get to exit by themselves
_KILLED = (
    "was killed, most likely because the machine is short of memory: give fewer --workers; --workers 0 reads in the "
    "main process"
)


def make_loader(
    dataset: Dataset,
    batches: Iterable[list[int]],
    collate: Callable[[list[Any]], Any],
    *,
    workers: int,
    pin_memory: bool,
    use_pipes: bool = False,
) -> DataLoader:
    """A loader of `batches` of the data set, in their order, whatever the number of workers.

    Args:
        batches: the indices of each batch, like a batch sampler.
        collate: stacks the items of a batch.
        workers: reader processes; 0 reads in the main process.
        pin_memory: copy batches to page-locked memory.
        use_pipes: send batches through pipes instead of shared memory; a reader that finds no free shared memory does
            so by itself.
    """
    reader = Reader(dataset, collate)
    workers = min(workers, reader.shortage.max_workers)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="This DataLoader will create"
        )  # more workers than cores: as requested
        return DataLoader(
            reader,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=identity_collate,
            pin_memory=pin_memory,
            timeout=POLL_SECONDS if workers else 0,
            worker_init_fn=functools.partial(start_worker, use_pipes),
            prefetch_factor=PREFETCHED if workers else None,
            generator=torch.Generator(),  # or DataLoader would draw a seed from the global generator
        )


def iterate_batches(loader: DataLoader, should_stop: Callable[[], bool] = lambda: False) -> Generator[Any, None, None]:
    """Iterate over a loader once; closing the generator ends its reader processes.

    The first time that the system kills a reader (out of memory), half as many readers go on with the remaining
    batches. Readers ignore SIGTERM, and Python waits for its children at exit, so a hung reader must be killed here.

    Args:
        should_stop: called before each batch and every second while one is waited for; once true, iteration ends.

    Raises:
        RequestError: a reader raised it.
        ReaderKilled: the system killed a reader for the second time.
        Fault: a reader failed, died or hung.
    """
    done, shortage = 0, loader.dataset.shortage  # type: ignore[attr-defined]
    while True:
        try:
            with closing(_read_once(loader, should_stop)) as batches:
                for batch in batches:
                    done += 1
                    yield batch
                    batch = None  # frees its shared memory while the next is waited for
            return
        except ReaderKilled:
            if shortage.has_occurred:
                raise
            workers = loader.num_workers
            shortage.has_occurred, shortage.max_workers = True, max(1, workers // 2)
            remedy = f"{shortage.max_workers} instead of {workers}" if workers > 1 else "one that reads no batch ahead"
            print(f"readers    the system killed one, most likely for lack of memory: now {remedy}", flush=True)
            loader, done = _remaining_loader(loader, done, shortage), 0


class ReaderKilled(Fault):
    """The system killed a reader process (SIGKILL), most likely because it ran out of memory."""


def _remaining_loader(loader: DataLoader, done: int, shortage: MemoryShortage) -> DataLoader:
    """A loader of the batches after the first `done`, with fewer readers or, if it has only one, less prefetching."""
    return DataLoader(
        loader.dataset,
        batch_sampler=_RemainingBatches(loader.batch_sampler, done),  # type: ignore[arg-type]
        num_workers=shortage.max_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        prefetch_factor=loader.prefetch_factor if shortage.max_workers < loader.num_workers else 1,
        generator=torch.Generator(),
    )


class _RemainingBatches:
    """The batches after the first `done`."""

    def __init__(self, batches: Iterable[list[int]], done: int) -> None:
        self.batches, self.done = batches, done

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(iter(self.batches), self.done, None)


def _read_once(loader: DataLoader, should_stop: Callable[[], bool]) -> Generator[Any, None, None]:
    existing, batches = set(multiprocessing.active_children()), None
    readers: set[Any] = set()
    try:
        with _signals_blocked(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            try:
                batches = iter(loader)
            finally:
                readers = set(multiprocessing.active_children()) - existing
        if readers:
            _stop_watching(batches)
        while (batch := _next(batches, readers, should_stop)) is not _END:
            if isinstance(batch, FailedBatch):
                raise batch.error
            yield batch
            batch = None
    except (RuntimeError, OSError, EOFError) as error:
        raise _fault_of(error, readers) or error from None
    finally:
        if readers:
            _shut_down(batches, readers)


_END = object()


def _next(batches: Iterator[Any], readers: set[Any], should_stop: Callable[[], bool]) -> Any:
    """The next batch; `_END` where there is none, or where `should_stop`."""
    waited = 0
    while not should_stop():
        try:
            with _watching_readers(batches, readers):
                return next(batches, _END)
        except RuntimeError as error:  # a timeout leaves the iterator as it was, so `next` may be called again
            waited += POLL_SECONDS
            if "timed out" not in str(error) or waited >= TIMEOUT:
                raise
    return _END


@contextmanager
def _watching_readers(batches: Any, readers: set[Any]) -> Iterator[None]:
    """Within the context, a reader that dies raises RuntimeError at once.

    DataLoader's SIGCHLD handler raises wherever the main process happens to be, such as in the middle of an optimiser
    step, after which no run can continue. So readers are registered with it only while a batch is waited for.
    """
    if not readers:
        yield
        return
    signal_handling._set_worker_pids(id(batches), tuple(reader.pid for reader in readers))  # type: ignore[attr-defined]
    batches._worker_pids_set = True
    try:
        dead = [reader for reader in readers if not reader.is_alive() and reader.exitcode]
        if dead:
            raise RuntimeError(f"DataLoader worker (pid {dead[0].pid}) exited with code {dead[0].exitcode}")
        yield
    finally:
        _stop_watching(batches)


def _stop_watching(batches: Any) -> None:
    if batches is not None and batches._worker_pids_set:
        signal_handling._remove_worker_pids(id(batches))  # type: ignore[attr-defined]
        batches._worker_pids_set = False


def _fault_of(error: RuntimeError | OSError | EOFError, readers: set[Any]) -> Fault | None:
    """The fault of a reader that caused the error; None where another error is meant."""
    fault = reader_fault(error)
    if isinstance(error, OSError | EOFError):  # perhaps of a batch whose reader died after making it
        exited = wait([reader.sentinel for reader in readers], timeout=1)
        dead = [reader for reader in readers if reader.sentinel in exited]
        for reader in dead:
            reader.join(SHUTDOWN_SECONDS)  # a process closes its files some time before it exits
        fault = Fault(f"a reader process died ({type(error).__name__})") if dead else None
    if fault is not None and any(reader.exitcode == -signal.SIGKILL for reader in readers):
        return ReaderKilled(f"a reader process {_KILLED}")
    return fault


def reader_fault(error: BaseException) -> Fault | None:
    """DataLoader's error about a reader that died or hung, in plain words; None for any other error.

    DataLoader's own signal handler may raise it anywhere in the main process.
    """
    message = str(error).strip()
    if not isinstance(error, RuntimeError) or isinstance(error, Fault):
        return None
    if "DataLoader" not in message and "in pin memory thread" not in message:
        return None
    if "timed out" in message:
        what = f"hung: no batch came for {TIMEOUT} s (a disk or server that does not answer?)"
    elif "Bus error" in message:
        what = "met the end of its memory or of a file (shared memory: docker run --shm-size; a file cut short?)"
    elif "Killed" in message:
        return ReaderKilled(f"a reader process {_KILLED}")
    elif "Original Traceback" in message:
        what = f"failed: {message.splitlines()[-1]}"
    else:
        what = f"died ({' '.join(message.split())})"
    return Fault(f"a reader process {what}; --workers 0 reads in the main process")


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes started within the context never receive `SIGNALS`, not even before they can ignore them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _shut_down(batches: Any, readers: set[Any]) -> None:
    """End the readers: orderly where that is quick, else by SIGKILL.

    `_shutdown_workers` is private, but a traceback may keep `batches` alive, and then nothing else ends the readers. It
    runs in a thread because it waits for each reader in turn, and for its own pinning thread without a timeout.
    """
    shutdown = threading.Thread(target=batches._shutdown_workers if batches is not None else bool, daemon=True)
    shutdown.start()
    shutdown.join(SHUTDOWN_SECONDS)
    _stop_watching(batches)  # or their exit would be reported as a failure
    for reader in readers:
        if reader.is_alive():
            reader.kill()
    shutdown.join(SHUTDOWN_SECONDS)
