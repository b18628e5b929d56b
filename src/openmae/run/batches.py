"""The micro-batches of a run's steps: read by workers and prepared on the device."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from openmae.data.batch import Batch
from openmae.data.hand_over import needs_pipes
from openmae.data.loader import training_loader
from openmae.data.readers import iterate_batches
from openmae.data.sample_stream import SampleStream
from openmae.machine.parallel import Processes
from openmae.machine.signals import StopRequest
from openmae.run.model_input import ModelInput
from openmae.training.prefetch import StepInputs, inputs_of_steps


@dataclass(frozen=True)
class Batches:
    """Where a run's batches come from.

    Attributes:
        read_from: (step, micro_batch_size) -> the prepared micro-batches of that step and of each one after it.
        names_of_step: step -> the names of the inputs in its batch.
    """

    read_from: Callable[[int, int], Generator[StepInputs[Batch, Any], None, None]]
    names_of_step: Callable[[int], list[str]]


def stream_batches(
    stream: SampleStream,
    prepare: Callable[[Batch], ModelInput],
    *,
    batch_size: int,
    workers: int,
    num_steps: int,
    device: torch.device,
    processes: Processes,
    stop: StopRequest,
    is_paired: bool = False,
    adjust_micro_batch_size: Callable[[int], int] = lambda size: size,
) -> Batches:
    """The micro-batches of a stream of samples, read by worker processes.

    Args:
        prepare: from a micro-batch as it was read to the model's input, on the device.
        is_paired: see `read_steps`.
        adjust_micro_batch_size: from the requested size to the nearest that the task can use.
    """

    def read_from(step: int, micro_batch_size: int) -> Generator[StepInputs[Batch, ModelInput], None, None]:
        steps = read_steps(
            stream,
            batch_size,
            adjust_micro_batch_size(micro_batch_size),
            workers,
            range(step, num_steps),
            processes,
            pin_memory=device.type == "cuda",
            is_paired=is_paired,
            should_stop=stop.is_received,
        )
        return inputs_of_steps(steps, prepare, device)

    return Batches(read_from, lambda step: names_of_step(stream, step, batch_size))


def read_steps(
    stream: SampleStream,
    batch_size: int,
    micro_batch_size: int,
    workers: int,
    steps: range,
    processes: Processes,
    pin_memory: bool,
    is_paired: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Generator[list[Batch], None, None]:
    """This process's micro-batches of each of `steps`.

    Args:
        pin_memory: whether they are copied into page-locked memory.
        is_paired: samples 2j and 2j + 1 of a batch, which are mixed with each other, stay in one micro-batch.
        should_stop: see `openmae.data.readers.iterate_batches`: once it returns True, there are no more steps.

    Raises:
        RequestError: hardly anything can be read.
        Fault: a reader process died or hung.
    """
    share = processes.share(batch_size)
    if is_paired:
        pairs = processes.share(batch_size // 2)
        share = range(2 * pairs.start, 2 * pairs.stop)
    micro_batches, num_micro_batches = list[Batch](), -(-len(share) // micro_batch_size)
    # Alive at once: those of the current step and of the next, unless they were copied into page-locked memory.
    num_alive = 2 if pin_memory else 2 * num_micro_batches
    bytes_per_batch = min(micro_batch_size, len(share)) * stream.bytes_per_sample
    loader = training_loader(
        stream,
        steps=steps,
        batch_size=batch_size,
        share=share,
        micro_batch_size=micro_batch_size,
        workers=workers,
        pin_memory=pin_memory,
        use_pipes=needs_pipes(bytes_per_batch, workers, num_alive),
    )
    with closing(iterate_batches(loader, should_stop)) as batches:
        for batch in batches:
            micro_batches.append(batch)
            if len(micro_batches) == num_micro_batches:
                yield micro_batches
                micro_batches = []


def names_of_step(stream: SampleStream, step: int, batch_size: int) -> list[str]:
    """The inputs that a step trained on, in the order of the batch."""
    indices, _ = stream.locate(range(step * batch_size, (step + 1) * batch_size))
    return [stream.source.name(index) for index in indices.tolist()]
