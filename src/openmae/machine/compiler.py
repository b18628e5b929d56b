"""torch.compile, whose own processes leave signals to this one and end with it."""

import atexit
import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import cast

import torch
from torch import nn

from openmae.machine.signals import STOP_SIGNALS, when_left_at_once


def compiled(model: nn.Module) -> nn.Module:
    """The model through torch.compile; `model` itself stays as it is, with its names and for whoever measures.

    Nothing is compiled before the first call; each further size of batch is compiled once more, not made a symbol.
    """
    start_processes()
    # That recomputed parts must change nothing in place: they do not, and a person could do nothing about it.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    return cast(nn.Module, torch.compile(model, dynamic=False))


def start_processes() -> None:
    """Start the processes in which inductor compiles so that they never see a stop signal.

    Ctrl-C, `timeout` and Slurm signal the whole group. Where that ends these processes, torch 2.11 waits for them for
    ever; where it does not, each prints a traceback. What starts while signals are blocked keeps them blocked.

    Private parts of torch: where they are others, it starts its processes itself, as it always did.
    """
    with contextlib.suppress(Exception):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            from torch._inductor.async_compile import AsyncCompile

            AsyncCompile.warm_pool()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # It says so where they are gone at the end; we end them.
        logging.getLogger("torch._inductor.compile_worker.subproc_pool").setLevel(logging.CRITICAL)
        atexit.unregister(_end_workers)
        atexit.register(_end_workers)  # before torch's own, which would wait for them
        when_left_at_once(end_processes)


def end_processes() -> None:
    """End the processes in which inductor compiles, whatever they are doing."""
    pid = _pool_process()
    for process in [*_children_of(pid), pid] if pid is not None else []:
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)


def _end_workers() -> None:
    """Their own parent, which waits for commands, ends in order."""
    pid = _pool_process()
    for process in _children_of(pid) if pid is not None else []:
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)


def _pool_process() -> int | None:
    """The process that inductor's workers are children of; None where there is none."""
    with contextlib.suppress(Exception):
        from torch._inductor.async_compile import AsyncCompile

        if AsyncCompile.process_pool.cache_info().currsize:
            process = AsyncCompile.process_pool().process  # type: ignore[union-attr]
            return process.pid if process.poll() is None else None
    return None


def _children_of(pid: int) -> list[int]:
    found = list[int]()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError, ValueError):
            found += map(int, children.read_text().split())
    return found
