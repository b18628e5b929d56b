"""torch.compile, with its worker processes kept from stop signals and ended with this process."""

import atexit
import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import cast

import torch
from torch import nn

from openmae.machine.signals import STOP_SIGNALS, before_immediate_exit


def compile_model(model: nn.Module) -> nn.Module:
    """The model through torch.compile; `model` itself keeps its parameter names and evaluates eagerly.

    Nothing is compiled before the first call. Each new batch size is compiled anew: shapes are static. Methods that a
    module names in `not_compiled` are left out: in that module they are replaced by ones that the compiler calls as
    they are.
    """
    start_processes()
    # It warns that checkpointed code must not change anything in place; ours does not.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    for module in model.modules():
        for name in getattr(module, "not_compiled", ()):  # not by a decorator, which would load the compiler at once
            setattr(module, name, torch.compiler.disable(getattr(module, name)))
    return cast(nn.Module, torch.compile(model, dynamic=False))


def start_processes() -> None:
    """Start inductor's compile workers so that they never receive a stop signal.

    Ctrl-C, `timeout` and Slurm signal the whole process group. Where that ends the workers, torch 2.11 waits for them
    for ever; where it does not, each prints a traceback. Processes started while signals are blocked inherit the block.

    This uses private parts of torch; where a version has others, torch starts the workers itself, as usual.
    """
    with contextlib.suppress(Exception):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            from torch._inductor.async_compile import AsyncCompile

            AsyncCompile.warm_pool()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # It logs an error where the workers are gone at exit, and we end them first.
        logging.getLogger("torch._inductor.compile_worker.subproc_pool").setLevel(logging.CRITICAL)
        atexit.unregister(_end_workers)
        atexit.register(_end_workers)  # before torch's own, which would wait for them
        before_immediate_exit(end_processes)


def end_processes() -> None:
    """Kill inductor's compile workers and their parent, whatever they are doing."""
    pid = _pool_process()
    for process in [*_children_of(pid), pid] if pid is not None else []:
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)


def _end_workers() -> None:
    """Kill inductor's compile workers; their parent, which waits for commands, then ends by itself."""
    pid = _pool_process()
    for process in _children_of(pid) if pid is not None else []:
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)


def _pool_process() -> int | None:
    """The id of the process whose children inductor's workers are; None where there is none."""
    with contextlib.suppress(Exception):
        from torch._inductor.async_compile import AsyncCompile

        if AsyncCompile.process_pool.cache_info().currsize:
            process = AsyncCompile.process_pool().process  # type: ignore[union-attr]
            return process.pid if process.poll() is None else None
    return None


def _children_of(pid: int) -> list[int]:
    ids = list[int]()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError, ValueError):
            ids += map(int, children.read_text().split())
    return ids
