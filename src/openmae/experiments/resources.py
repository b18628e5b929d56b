"""What an experiment runs on: how many trials at a time, on which devices, whether they fit, how long they take."""

import math
import time
from collections.abc import Callable

import torch

from openmae.config import ExperimentConfig, MAEShape
from openmae.errors import RequestError
from openmae.experiments.trials.side_by_side import Resources
from openmae.machine.device import num_cores, pick_device
from openmae.machine.files import format_bytes
from openmae.model.mae import MAE
from openmae.model.masking import random_masking
from openmae.planning.decisions import Machine
from openmae.planning.micro_batch import MEMORY_SHARE

MAX_IMAGES, TIMED_STEPS = 64, 3
TIMED_FLOPS = 5e10  # of a step: a second or so on a laptop


def resources_of(config: ExperimentConfig, device: torch.device, threads: int) -> Resources:
    """The devices, and how many trials at a time where the person left that open.

    Raises:
        RequestError: there is no such device.
    """
    devices = tuple(str(pick_device(name)) for name in config.devices) or (str(device),)
    by_cores = max(1, num_cores() // threads)
    jobs = config.jobs or (1 if config.is_timed else by_cores if device.type == "cpu" else len(devices))
    workers = config.workers
    if workers is None and not config.is_timed:  # else as pre-training decides, so that data is no bottleneck
        workers = 0 if device.type == "cpu" else max(1, min(4, num_cores() // jobs))
    return Resources(jobs=jobs, devices=devices, threads=threads, workers=workers)


def check_memory(resources: Resources, bytes_needed: int, machine: Machine, is_given: bool) -> Resources:
    """The resources, with fewer jobs where that many do not fit into memory and the person named no number.

    Args:
        bytes_needed: by the largest trial.
        is_given: whether the person gave `--jobs`.

    Raises:
        RequestError: `--jobs` beyond memory.
    """
    per_device = math.ceil(resources.jobs / len(resources.devices))
    fitting = int(MEMORY_SHARE * machine.memory // bytes_needed) * len(resources.devices)
    if resources.jobs <= max(1, fitting):
        return resources
    if not is_given:
        return Resources(
            jobs=max(1, fitting), devices=resources.devices, threads=resources.threads, workers=resources.workers
        )
    raise RequestError(
        f"--jobs got {resources.jobs}: {per_device} on {machine.name or machine.device} need about "
        f"{format_bytes(per_device * bytes_needed)}, and {MEMORY_SHARE:.0%} of its {format_bytes(machine.memory)} are "
        f"planned with: give at most {max(1, fitting)}"
    )


def measured_rate(shape: MAEShape, ratio: float, flops: float, device: torch.device, threads: int) -> float:
    """FLOPs a second of one trial on this machine, from a few steps of the default row's model, a second or so."""
    count = images_to_time(flops)
    model = MAE.from_shape(shape).to(device)
    images = torch.zeros(count, shape.encoder.channels, *shape.encoder.image_size, device=device)

    def step() -> None:
        masking = random_masking(torch.rand(count, shape.encoder.num_patches, device=device), ratio)
        loss = model(images, masking).loss
        loss.backward()
        loss.item()  # waits for the device

    return flops_a_second(step, flops * count, threads)


def images_to_time(flops: float) -> int:
    """How many images a timed step takes, each of so many FLOPs."""
    return max(1, min(MAX_IMAGES, int(TIMED_FLOPS / flops)))


def flops_a_second(step: Callable[[], None], flops: float, threads: int) -> float:
    """FLOPs a second of a step that takes so many: the fastest of a few."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        times = []
        for _ in range(TIMED_STEPS):
            started = time.monotonic()
            step()
            times.append(time.monotonic() - started)
    finally:
        torch.set_num_threads(before)
    return flops / min(times)
