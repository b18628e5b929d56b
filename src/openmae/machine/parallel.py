"""Distributed training: this process's rank, its share of each batch, and collectives.

`torchrun` starts the processes and sets their ranks in the environment; without it there is one process, and every
function here does nothing. Models know of no process group: distribution is put on from outside.
"""

import contextlib
import datetime
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from openmae.errors import RequestError
from openmae.machine.compiler import compile_model

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=10)


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: of this process; rank 0 writes the files.
        count: the world size.
        local_rank, local_count: the same among the processes of this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, batch_size: int) -> range:
        """This process's samples of a global batch; the shares differ by one sample at most."""
        share, rest = divmod(batch_size, self.count)
        start = self.rank * share + min(self.rank, rest)
        return range(start, start + share + (self.rank < rest))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes of a small tensor."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait for all processes (a barrier)."""
        if self.count > 1:
            dist.barrier()


@contextlib.contextmanager
def join_processes() -> Iterator[Processes]:
    """Join the process group of torchrun, and leave it at the end; without torchrun there is one process.

    CPU tensors go through gloo and CUDA tensors through NCCL.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield Processes()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    _join(backend)
    try:
        yield Processes(
            rank=dist.get_rank(),
            count=dist.get_world_size(),
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            local_count=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        )
    finally:
        dist.destroy_process_group()


def _join(backend: str) -> None:
    """Join the process group. Processes that torchrun restarted must not find the addresses of the dead ones.

    torch 2.15 keeps one store over all attempts (`TORCHELASTIC_USE_AGENT_STORE`). On one machine all processes agree
    on the number of the attempt, which becomes a prefix in the store. On several they do not: there
    `launch/several-nodes.sh` has torchrun make a new store each time.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if attempt is None or os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
        return
    store, rank, count = next(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    store = PrefixStore(f"attempt-{attempt}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=COLLECTIVE_TIMEOUT)


def check_even_shares(batch_size: int, num_processes: int) -> None:
    """Raise RequestError where processes would take different numbers of images.

    Batch norms sum over all processes, which must therefore call them equally often.
    """
    if batch_size % num_processes:
        nearest = max(1, round(batch_size / num_processes)) * num_processes
        raise RequestError(
            f"--batch-size {batch_size} for {num_processes} processes: batch norms are over all of them, give a "
            f"multiple, such as {nearest}"
        )


def parallelise(
    model: nn.Module, processes: Processes, device: torch.device, *, is_compiled: bool = False
) -> nn.Module:
    """The model as the training step calls it: with several processes, wrapped so that gradients are averaged (DDP).

    Args:
        is_compiled: compile it, before wrapping.
    """
    if is_compiled:
        model = compile_model(model)
    if processes.count == 1:
        return model
    # The gradient of a 1-channel patch projection has other strides than its bucket and is copied: harmless.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def accumulating(model: nn.Module, is_last: bool) -> contextlib.AbstractContextManager:
    """DDP's `no_sync` for all micro-batches but the last, whose backward pass averages the accumulated gradients."""
    if is_last or not isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()
