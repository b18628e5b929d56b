"""The micro-batch: the images at a time that fit the device's memory."""

from collections.abc import Callable

from openmae.errors import RequestError
from openmae.planning.decisions import Decisions, Machine

MEMORY_SHARE = 0.6  # of the device, that a micro-batch may plan to fill


def decide_micro_batch(
    decisions: Decisions, needed: Callable[[int], float], machine: Machine, *, smallest: int = 1, is_even: bool = False
) -> None:
    """The largest of batch, batch / 2, … down to `smallest` that fits the device, where the person left it open.

    Args:
        needed: bytes that so many images at a time need.
        is_even: whether each of them must be even, but the batch itself.
    """
    if decisions.config.micro_batch_size is not None:
        return
    batch = micro = decisions.get("batch_size")
    while micro > smallest and needed(micro) > MEMORY_SHARE * machine.memory:
        micro = max(2, micro // 4 * 2) if is_even else micro // 2
    decisions.set("micro_batch_size", micro, "all at once" if micro == batch else "what fits into memory")


def check_memory(micro: int, needed: float, machine: Machine, advice: str) -> None:
    """Raise RequestError where the device has less than the bytes needed for `micro` images at a time."""
    if needed > machine.memory:
        raise RequestError(
            f"{micro} images at a time need about {needed / 1e9:.3g} GB of memory, {machine.device} has "
            f"{machine.memory / 1e9:.3g}: {advice}"
        )
