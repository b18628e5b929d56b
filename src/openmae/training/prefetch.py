"""Bringing batches to the device: to a GPU one step early, on a stream of its own, while the step before computes."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor


class OnDevice(Protocol):
    """A micro-batch on the device, ready for the model."""

    def tensors(self) -> list[Tensor]:
        """All its tensors; those on a GPU were made on the copying stream."""
        ...


H = TypeVar("H")  # a micro-batch as it was read
D = TypeVar("D", bound=OnDevice)


class StepInputs(Generic[H, D]):
    """The micro-batches of a step, each made ready for the model when it is its turn.

    With a copier the next one is on its way while this one computes: behind the last, the first of the next step.
    """

    def __init__(
        self,
        parts: Sequence[H],
        prepare: Callable[[H], D],
        copier: "_Copier[H, D] | None" = None,
        following: Any = None,
    ) -> None:
        self.parts, self._prepare, self._copier, self._following = parts, prepare, copier, following

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> D:
        """One of them, without going on: for what is tried before the step."""
        return self._prepare(self.parts[number])

    def __iter__(self) -> Iterator[D]:
        if self._copier is None:
            yield from map(self._prepare, self.parts)
            return
        upcoming = [*self.parts[1:], self._following]
        for part, later in zip(self.parts, upcoming, strict=True):
            ready = self._copier.take(part)
            if later is not None:
                self._copier.start(later)
            yield ready


def inputs_of_steps(
    steps: Generator[Sequence[H], None, None],
    prepare: Callable[[H], D],
    device: torch.device,
    *,
    is_ahead: bool | None = None,
) -> Generator[StepInputs[H, D], None, None]:
    """The inputs of each step. Where copies go ahead, the next step's are read before a step begins.

    Args:
        steps: of each step its micro-batches, in page-locked memory where they go to a GPU.
        prepare: brings one to the device; there may be work there, too, like cropping.
        is_ahead: whether the next micro-batch is on its way early; None: on a GPU.
    """
    with closing(steps):
        if not (device.type == "cuda" if is_ahead is None else is_ahead):
            for parts in steps:
                yield StepInputs(parts, prepare)
            return
        copier, current = _Prefetcher(prepare, device), next(steps, None)
        while current is not None:
            following = next(steps, None)
            yield StepInputs(current, prepare, copier, None if following is None else following[0])
            current = following


class _Prefetcher(Generic[H, D]):
    """Prepares one micro-batch on a stream of its own while the device computes on another."""

    def __init__(self, prepare: Callable[[H], D], device: torch.device) -> None:
        self._prepare, self._device = prepare, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._started: tuple[H, D, torch.cuda.Event | None] | None = None

    def start(self, part: H) -> None:
        if self._stream is None:
            self._started = (part, self._prepare(part), None)
            return
        with torch.cuda.stream(self._stream):
            self._started = (part, self._prepare(part), self._stream.record_event())

    def take(self, part: H) -> D:
        """What was started of this micro-batch; the computing stream waits for it, the CPU does not."""
        if self._started is None or self._started[0] is not part:  # a step that was not gone through to its end
            self.start(part)
        assert self._started is not None
        (_, ready, copied), self._started = self._started, None
        if copied is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(copied)
            for tensor in ready.tensors():
                if tensor.is_cuda:
                    tensor.record_stream(computing)  # or its memory would be used again while it is read
        return ready
