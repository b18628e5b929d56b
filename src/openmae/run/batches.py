"""The micro-batches of a run's steps: read, and made ready on the device."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch

from openmae.data.loader import Batch, Stream
from openmae.machine.parallel import Processes
from openmae.machine.signals import StopRequest
from openmae.run.model_input import ModelInput
from openmae.run.training_data import names_of_step, read_steps
from openmae.training.copy_ahead import StepInputs, inputs_of_steps


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
    """Those of a stream of samples, by reader processes."""

    def read_from(step: int, micro_batch_size: int) -> Generator[StepInputs[Batch, ModelInput], None, None]:
        read = read_steps(
            stream,
            batch_size,
            size_of_micro_batch(micro_batch_size),
            workers,
            range(step, num_steps),
            processes,
            pin=device.type == "cuda",
            is_paired=is_paired,
            is_given_up=stop.is_received,
        )
        return inputs_of_steps(read, prepare, device)

    return Batches(read_from, lambda step: names_of_step(stream, step, batch_size))
