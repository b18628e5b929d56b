"""Moving micro-batches to the device: to a GPU ahead of time, on a CUDA stream of its own, while the model computes."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor


class OnDevice(Protocol):
    """A micro-batch on the device, ready for the model."""

    def tensors(self) -> list[Tensor]:
        """All its tensors; those on a GPU were made on the prefetching stream."""
        ...


HostT = TypeVar("HostT")  # a micro-batch as it was read, on the CPU
DeviceT = TypeVar("DeviceT", bound=OnDevice)


class StepInputs(Generic[HostT, DeviceT]):
    """The micro-batches of a step, each prepared for the model when it is needed.

    With a prefetcher the next one is prepared while the current one computes; after the last, the first one of the
    next step.
    """

    def __init__(
        self,
        micro_batches: Sequence[HostT],
        prepare: Callable[[HostT], DeviceT],
        prefetcher: "_Prefetcher[HostT, DeviceT] | None" = None,
        following: Any = None,
    ) -> None:
        self.micro_batches, self._prepare, self._prefetcher, self._following = (
            micro_batches,
            prepare,
            prefetcher,
            following,
        )

    def __len__(self) -> int:
        return len(self.micro_batches)

    def __getitem__(self, number: int) -> DeviceT:
        """Prepare one of them, outside the iteration: to compile, for example, before the step."""
        return self._prepare(self.micro_batches[number])

    def __iter__(self) -> Iterator[DeviceT]:
        if self._prefetcher is None:
            yield from map(self._prepare, self.micro_batches)
            return
        next_ones = [*self.micro_batches[1:], self._following]
        for micro_batch, next_one in zip(self.micro_batches, next_ones, strict=True):
            ready = self._prefetcher.take(micro_batch)
            if next_one is not None:
                self._prefetcher.start(next_one)
            yield ready


def inputs_of_steps(
    steps: Generator[Sequence[HostT], None, None],
    prepare: Callable[[HostT], DeviceT],
    device: torch.device,
    *,
    is_ahead: bool | None = None,
) -> Generator[StepInputs[HostT, DeviceT], None, None]:
    """The inputs of each step. With prefetching the next step's are read before a step begins.

    Args:
        steps: the micro-batches of each step, in page-locked memory where they go to a GPU.
        prepare: moves one to the device, where it may do more, like cropping.
        is_ahead: whether micro-batches are prefetched; None: on a GPU.
    """
    with closing(steps):
        if not (device.type == "cuda" if is_ahead is None else is_ahead):
            for micro_batches in steps:
                yield StepInputs(micro_batches, prepare)
            return
        prefetcher, current = _Prefetcher(prepare, device), next(steps, None)
        while current is not None:
            following = next(steps, None)
            yield StepInputs(current, prepare, prefetcher, None if following is None else following[0])
            current = following


class _Prefetcher(Generic[HostT, DeviceT]):
    """Prepares one micro-batch on a CUDA stream of its own while the device computes on another."""

    def __init__(self, prepare: Callable[[HostT], DeviceT], device: torch.device) -> None:
        self._prepare, self._device = prepare, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._started: tuple[HostT, DeviceT, torch.cuda.Event | None] | None = None

    def start(self, micro_batch: HostT) -> None:
        """Begin to prepare a micro-batch."""
        self._started = self._prepared(micro_batch)

    def take(self, micro_batch: HostT) -> DeviceT:
        """The prepared micro-batch; the computing stream waits for it, the CPU does not."""
        started, self._started = self._started, None
        if started is None or started[0] is not micro_batch:  # the iteration over a step was broken off
            started = self._prepared(micro_batch)
        _, ready, copied = started
        if copied is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(copied)
            for tensor in ready.tensors():
                if tensor.is_cuda:
                    tensor.record_stream(computing)  # or its memory would be reused while it is read
        return ready

    def _prepared(self, micro_batch: HostT) -> tuple[HostT, DeviceT, torch.cuda.Event | None]:
        if self._stream is None:
            return micro_batch, self._prepare(micro_batch), None
        with torch.cuda.stream(self._stream):
            return micro_batch, self._prepare(micro_batch), self._stream.record_event()
