"""Several processes working as one: who this one is, its share of each batch, and agreeing.

`torchrun` starts them and says in the environment who is who; without it there is one process and every
function here does nothing. Models and loops know of no process group: distribution is put on from outside.
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

from openmae.machine.compiler import compiled

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=10)


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: this one's number; the first, 0, is the one that writes.
        count: how many there are.
        local_rank, local_count: the same among those of this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, batch_size: int) -> range:
        """This process's samples of a global batch; shares differ by one at most."""
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
        """Go on when all have come here."""
        if self.count > 1:
            dist.barrier()


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun started, joined into a group; one alone without torchrun.

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
    """Join the process group. Processes that torchrun started again must not find the dead ones' addresses.

    torch 2.15 keeps one store over all attempts (`TORCHELASTIC_USE_AGENT_STORE`); on one machine all processes
    count the attempts alike, and each gets its own part of the store. On several they do not: there
    `launch/several-nodes.sh` asks torchrun for a new store each time.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if attempt is None or os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
        return
    store, rank, count = next(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    store = PrefixStore(f"attempt-{attempt}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=COLLECTIVE_TIMEOUT)


def parallelise(
    model: nn.Module, processes: Processes, device: torch.device, *, is_compiled: bool = False
) -> nn.Module:
    """The model as the training step calls it: itself, or wrapped so that gradients are averaged.

    Args:
        is_compiled: through torch.compile.
    """
    if is_compiled:
        model = compiled(model)
    if processes.count == 1:
        return model
    # A 1-channel patch projection's gradient has other strides than its bucket: copied, and not worth a word.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def accumulating(model: nn.Module, is_last: bool) -> contextlib.AbstractContextManager:
    """Gradients of all but the last micro-batch stay in the process."""
    if is_last or not isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()
