"""Reader processes: started, asked for batches, given up, ended; what goes wrong in one, in a line."""

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

TIMEOUT = 300  # seconds until a reader that hangs is given up
POLL_SECONDS = 1  # seconds after which a wait looks whether it is still wanted
SHUTDOWN_SECONDS = 3  # that readers get to end by themselves
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
    pin: bool,
    use_pipes: bool = False,
) -> DataLoader:
    """A loader of `batches` of the data set, in their order, whatever the number of workers.

    Args:
        use_pipes: hand batches over through pipes, not in shared memory; a reader that finds no room there does
            so unasked.
    """
    reader = Reader(dataset, collate)
    workers = min(workers, reader.shortage.max_workers)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # more than cores: as asked for
        return DataLoader(
            reader,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=identity_collate,
            pin_memory=pin,
            timeout=POLL_SECONDS if workers else 0,
            worker_init_fn=functools.partial(start_worker, use_pipes),
            prefetch_factor=PREFETCHED if workers else None,
            generator=torch.Generator(),  # or it would draw from the global one, though nothing here uses its numbers
        )


def read(loader: DataLoader, should_stop: Callable[[], bool] = lambda: False) -> Generator[Any, None, None]:
    """Go through a loader once; when the generator is closed, its reader processes are gone.

    Where the system kills a reader, half as many go on with the batches that are still to come: the first time.

    Readers ignore SIGTERM, and Python waits for its children at exit: one that hangs would hang the program.

    Args:
        should_stop: asked before each batch and, every second, while one is waited for: if so, there are no more.

    Raises:
        RequestError: as a reader raised it.
        ReaderKilled: the system killed a reader, the second time.
        Fault: a reader failed, died or hung.
    """
    done, shortage = 0, loader.dataset.shortage  # type: ignore[attr-defined]
    while True:
        try:
            with closing(_read_once(loader, should_stop)) as batches:
                for batch in batches:
                    done += 1
                    yield batch
                    batch = None  # or a batch in shared memory would stay while the next is waited for
            return
        except ReaderKilled:
            if shortage.is_known:
                raise
            workers = loader.num_workers
            shortage.is_known, shortage.max_workers = True, max(1, workers // 2)
            fewer = f"{shortage.max_workers} instead of {workers}" if workers > 1 else "one that reads no batch ahead"
            print(f"readers    the system killed one, most likely for lack of memory: now {fewer}", flush=True)
            loader, done = _rest_of(loader, done, shortage), 0


class ReaderKilled(Fault):
    """The system killed a reader process, most likely for its memory."""


def _rest_of(loader: DataLoader, done: int, shortage: MemoryShortage) -> DataLoader:
    """A loader of what is left after so many batches, with fewer readers, or with one that does less at a time."""
    return DataLoader(
        loader.dataset,
        batch_sampler=_Rest(loader.batch_sampler, done),  # type: ignore[arg-type]
        num_workers=shortage.max_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        prefetch_factor=loader.prefetch_factor if shortage.max_workers < loader.num_workers else 1,
        generator=torch.Generator(),
    )


class _Rest:
    """The batches behind the first `done`."""

    def __init__(self, batches: Iterable[list[int]], done: int) -> None:
        self.batches, self.done = batches, done

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(iter(self.batches), self.done, None)


def _read_once(loader: DataLoader, should_stop: Callable[[], bool]) -> Generator[Any, None, None]:
    before, batches = set(multiprocessing.active_children()), None
    readers: set[Any] = set()
    try:
        with _signals_kept_from_children(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            try:
                batches = iter(loader)
            finally:
                readers = set(multiprocessing.active_children()) - before
        if readers:
            _forget_readers(batches)
        while (batch := _next(batches, readers, should_stop)) is not _END:
            if isinstance(batch, FailedBatch):
                raise batch.error
            yield batch
            batch = None
    except (RuntimeError, OSError, EOFError) as error:
        raise _fault_of(error, readers) or error from None
    finally:
        if readers:
            _end(batches, readers)


_END = object()


def _next(batches: Iterator[Any], readers: set[Any], should_stop: Callable[[], bool]) -> Any:
    waited = 0
    while not should_stop():
        try:
            with _noticing_deaths(batches, readers):
                return next(batches, _END)
        except RuntimeError as error:  # raised before anything of the iterator changes: asking again is right
            waited += POLL_SECONDS
            if "timed out" not in str(error) or waited >= TIMEOUT:
                raise
    return _END


@contextmanager
def _noticing_deaths(batches: Any, readers: set[Any]) -> Iterator[None]:
    """Within, a reader that dies or is dead is an error at once.

    DataLoader's handler raises wherever the main process happens to be: in the middle of an optimiser's step, say,
    after which no run can go on. So it is told of the readers only while they are waited for.
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
        _forget_readers(batches)


def _forget_readers(batches: Any) -> None:
    if batches is not None and batches._worker_pids_set:
        signal_handling._remove_worker_pids(id(batches))  # type: ignore[attr-defined]
        batches._worker_pids_set = False


def _fault_of(error: RuntimeError | OSError | EOFError, readers: set[Any]) -> Fault | None:
    """What became of a reader; None where the error is another."""
    fault = reader_fault(error)
    if isinstance(error, OSError | EOFError):  # perhaps a batch that one made before it died
        ending = wait([reader.sentinel for reader in readers], timeout=1)
        dead = [reader for reader in readers if reader.sentinel in ending]
        for reader in dead:
            reader.join(SHUTDOWN_SECONDS)  # its files are closed some time before it is gone
        fault = Fault(f"a reader process died ({type(error).__name__})") if dead else None
    if fault is not None and any(reader.exitcode == -signal.SIGKILL for reader in readers):
        return ReaderKilled(f"a reader process {_KILLED}")
    return fault


def reader_fault(error: BaseException) -> Fault | None:
    """What DataLoader says of a reader that died or hung, as a person needs it; None where it is another error.

    DataLoader's own signal handler raises it wherever the main process happens to be.
    """
    said = str(error).strip()
    if not isinstance(error, RuntimeError) or isinstance(error, Fault):
        return None
    if "DataLoader" not in said and "in pin memory thread" not in said:
        return None
    if "timed out" in said:
        what = f"hung: no batch came for {TIMEOUT} s (a disk or server that does not answer?)"
    elif "Bus error" in said:
        what = "met the end of its memory or of a file (shared memory: docker run --shm-size; a file cut short?)"
    elif "Killed" in said:
        return ReaderKilled(f"a reader process {_KILLED}")
    elif "Original Traceback" in said:
        what = f"failed: {said.splitlines()[-1]}"
    else:
        what = f"died ({' '.join(said.split())})"
    return Fault(f"a reader process {what}; --workers 0 reads in the main process")


@contextmanager
def _signals_kept_from_children() -> Iterator[None]:
    """What is started within never gets them: not even before it can say that it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(batches: Any, readers: set[Any]) -> None:
    """End the readers: in order if they do so at once, else by force.

    Private, but a traceback may keep `batches` alive, and then nothing else ends them. In a thread, for with many
    readers, or one that hangs, it waits for each in turn, and for its own thread without an end.
    """
    ending = threading.Thread(target=batches._shutdown_workers if batches is not None else bool, daemon=True)
    ending.start()
    ending.join(SHUTDOWN_SECONDS)
    _forget_readers(batches)  # or their death would be reported as a failure
    for reader in readers:
        if reader.is_alive():
            reader.kill()
    ending.join(SHUTDOWN_SECONDS)
