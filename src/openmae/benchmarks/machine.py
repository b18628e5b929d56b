"""What benchmarks are measured on: hardware, versions, and the peak rate of matrix products on this machine."""

import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from openmae.config import MAEShape
from openmae.errors import RequestError
from openmae.model import cost
from openmae.version import __version__

PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "numpy", "pillow", "simplejpeg")


def hardware(device: torch.device, precision: str) -> dict[str, Any]:
    """Hardware and versions, to be stored with every table; nothing that identifies a person or host."""
    values: dict[str, Any] = {
        "openmae": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "device": str(device),
        "precision": precision,
    }
    if hasattr(os, "getloadavg"):
        values["load_before"] = round(os.getloadavg()[0], 2)
    if device.type == "cuda":
        values |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    for package in PACKAGES:
        try:
            values[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return values


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def synchronizer(device: torch.device) -> Callable[[], None]:
    """A function that waits until the device has finished all queued work."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else (lambda: None)


def ceiling(shape: MAEShape, visible: int, batch: int, device: torch.device, precision: str) -> Callable[[], float]:
    """Measures the best FLOP/s over the largest products of a step: the MLPs of encoder and decoder.

    One square product of 2048 (GPU: 8192) is among them, so that the ceiling is that of the machine, not of the shape.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    square = 8192 if device.type == "cuda" else 2048
    sizes = [(square, square, square)]
    for part, tokens in ((shape.encoder, 1 + visible), (shape.decoder, 1 + shape.encoder.num_patches)):
        sizes += [(batch * tokens, part.width, 4 * part.width), (batch * tokens, 4 * part.width, part.width)]
    if shape.encoder.width < 100:  # a case to try the command
        sizes = sizes[1:]
    pairs = [
        (torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype))
        for m, k, n in sizes
    ]
    wait = synchronizer(device)

    def measure() -> float:
        best = 0.0
        for (m, k, n), (left, right) in zip(sizes, pairs, strict=True):
            for _ in range(3):
                wait()
                start = time.perf_counter()
                left @ right
                wait()
                best = max(best, 2 * m * k * n / (time.perf_counter() - start))
        return best

    return measure


def share_of_ceiling(ceilings: list[float], seconds: list[float], shape: MAEShape, visible: int, batch: int) -> float:
    """The share of the measured ceiling that a step reaches (MFU), by the FLOPs of `cost.training_flops`."""
    median = sorted(seconds)[len(seconds) // 2]
    return cost.training_flops(shape, visible) * batch / median / max(ceilings)


def check_measurable(device: torch.device, precision: str) -> None:
    """Raise RequestError where openmae would not train in this precision."""
    if device.type == "mps" and precision == "bf16":
        raise RequestError("--precision bf16 on mps: openmae trains in fp32 there")
