"""Devices: which to use, what precision is fast there, cores and memory."""

import contextlib
import ctypes
import importlib.util
import math
import os
import platform
import resource
import sys
from pathlib import Path

import torch

from openmae.errors import RequestError
from openmae.machine.device_name import check_device

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
MEMORY, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def pick_device(name: str | None, local_rank: int = 0) -> torch.device:
    """The device of that name, or the best available. A GPU always has its index, which torch's CUDA calls need.

    Args:
        name: cpu, mps, cuda (the current GPU) or cuda:N; None: the best available.
        local_rank: of this process on this machine; the GPU taken is this many after the named one.

    Raises:
        RequestError: there is no such device here.
    """
    if name is None:
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    check_device(name)
    try:
        device = torch.device(name)
        if device.type == "cuda":
            first = torch.cuda.current_device() if device.index is None and local_rank == 0 else device.index or 0
            device = torch.device("cuda", first + local_rank)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        if local_rank and torch.cuda.is_available():
            raise RequestError(
                f"--device got {name!r} for {local_rank + 1} or more processes on this machine, which has "
                f"{torch.cuda.device_count()} GPUs: start as many as there are (torchrun --nproc-per-node)"
            ) from None
        raise RequestError(f"--device got {name!r}: there is no such device here; cpu always is") from None
    return device


def use_device(name: str | None, local_rank: int) -> torch.device:
    """`pick_device`, and make it the current device of this process's CUDA calls."""
    device = pick_device(name, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a step frees for the next one, instead of returning it to the system.

    A step of ViT-B at batch 16 otherwise has 190,000 page faults, a twelfth of its time. Peak memory and results are
    the same. Nothing is done where glibc's own MALLOC_ variables are set, nor on other systems.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library: none of these settings
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware has fast bf16 matrix products (a CPU without them is 13× slower than in fp32)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and "amx_bf16" in _cpu_flags()


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works there: for a GPU it needs triton, which needs compute capability 7.0."""
    if device.type != "cuda":
        return True
    return importlib.util.find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (7, 0)


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Autocast for `bf16` (parameters stay float32); a null context for `fp32`."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def num_cores() -> int:
    """Cores that this process may use, by its CPU affinity and a container's quota (cgroup 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return cores


def default_workers(device: torch.device, processes: int = 1) -> int:
    """The default number of reader processes for each of `processes` on this machine.

    Most of the cores where a GPU trains, a quarter of them where the CPU itself does.
    """
    cores = num_cores() // processes
    if device.type == "cpu":
        return max(1, cores // 4)
    return max(1, min(cores - 1, 16))


def total_memory(device: torch.device) -> int:
    """Bytes of memory of the device; for the CPU, of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory() -> int | None:
    """Bytes of main memory available without swapping, within a container's limit (cgroup 2).

    None where the system does not say.
    """
    try:
        lines = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return None
    with contextlib.suppress(OSError, ValueError, KeyError):  # no such file, or "max": no limit
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        free = min(free, max(0, limit - used + int(counts["inactive_file"])))  # cached files, which can go
    return free


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has allocated on the device so far (on a CPU: its resident memory)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means too little memory, also where the compiler wrapped it."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return True
    cause = getattr(error, "inner_exception", None) or error.__cause__
    return isinstance(cause, torch.OutOfMemoryError)


def describe_device(device: torch.device) -> str:
    """The device's name, for plans and benchmark tables."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"
