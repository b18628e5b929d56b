"""The micro-batches of a run's steps: read, and made ready on the device."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from openmae.data.batch import Batch
from openmae.data.hand_over import needs_pipes
from openmae.data.loader import Stream, training_loader
from openmae.data.readers import iterate_batches
from openmae.machine.parallel import Processes
from openmae.machine.signals import StopRequest
from openmae.run.model_input import ModelInput
from openmae.training.prefetch import StepInputs, inputs_of_steps


@dataclass(frozen=True)
class Batches:
    """Where a run's batches come from.

    Attributes:
        read_from: the micro-batches of each step from one on, of at most so many images, made ready for the model.
        names_of_step: the inputs of a step's batch.
    """

    read_from: Callable[[int, int], Generator[StepInputs[Batch, Any], None, None]]
    names_of_step: Callable[[int], list[str]]


def stream_batches(
    stream: Stream,
    prepare: Callable[[Batch], ModelInput],
    *,
    batch_size: int,
    workers: int,
    num_steps: int,
    device: torch.device,
    processes: Processes,
    stop: StopRequest,
    is_paired: bool = False,
    size_of_micro_batch: Callable[[int], int] = lambda size: size,
) -> Batches:
    """The micro-batches of a stream of samples, read by reader processes."""

    def read_from(step: int, micro_batch_size: int) -> Generator[StepInputs[Batch, ModelInput], None, None]:
        steps = read_steps(
            stream,
            batch_size,
            size_of_micro_batch(micro_batch_size),
            workers,
            range(step, num_steps),
            processes,
            pin=device.type == "cuda",
            is_paired=is_paired,
            should_stop=stop.is_received,
        )
        return inputs_of_steps(steps, prepare, device)

    return Batches(read_from, lambda step: names_of_step(stream, step, batch_size))


def read_steps(
    stream: Stream,
    batch_size: int,
    micro_batch_size: int,
    workers: int,
    steps: range,
    processes: Processes,
    pin: bool,
    is_paired: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Generator[list[Batch], None, None]:
    """The micro-batches of each of `steps` that are this process's.

    Args:
        pin: whether they are brought into page-locked memory.
        should_stop: see `openmae.data.readers.iterate_batches`: where it says so, there are no more steps.
        is_paired: no micro-batch parts samples 2j and 2j + 1 of a batch, which are mixed with each other.

    Raises:
        RequestError: hardly anything can be read.
        Fault: a reader process died or hung.
    """
    share = processes.share(batch_size)
    if is_paired:
        pairs = processes.share(batch_size // 2)
        share = range(2 * pairs.start, 2 * pairs.stop)
    parts, num_parts = list[Batch](), -(-len(share) // micro_batch_size)
    # Of a step that is trained on and of the next, unless they were copied into page-locked memory.
    held = 2 if pin else 2 * num_parts
    per_batch = min(micro_batch_size, len(share)) * stream.bytes_per_sample
    loader = training_loader(
        stream,
        steps=steps,
        batch_size=batch_size,
        share=share,
        micro_batch_size=micro_batch_size,
        workers=workers,
        pin=pin,
        use_pipes=needs_pipes(per_batch, workers, held),
    )
    with closing(iterate_batches(loader, should_stop)) as batches:
        for batch in batches:
            parts.append(batch)
            if len(parts) == num_parts:
                yield parts
                parts = []


def names_of_step(stream: Stream, step: int, batch_size: int) -> list[str]:
    """The inputs that a step trained on, in the order of the batch."""
    indices, _ = stream.locate(range(step * batch_size, (step + 1) * batch_size))
    return [stream.source.name(index) for index in indices.tolist()]
