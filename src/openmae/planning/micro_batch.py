"""The micro-batch size: how many images at a time fit into the device's memory."""

from collections.abc import Callable

from openmae.errors import RequestError
from openmae.planning.decisions import Decisions, Machine

MEMORY_SHARE = 0.6  # of the device's memory, up to which a micro-batch is planned


def decide_micro_batch(
    decisions: Decisions,
    bytes_needed: Callable[[int], float],
    machine: Machine,
    *,
    smallest: int = 1,
    is_even: bool = False,
) -> None:
    """The largest of batch, batch / 2, … down to `smallest` that fits the device, where the user left it open.

    Args:
        bytes_needed: from a micro-batch size to the bytes that it needs.
        is_even: whether the size must be even, unless it is that of the whole batch.
    """
    if decisions.config.micro_batch_size is not None:
        return
    batch = micro = decisions.get("batch_size")
    while micro > smallest and bytes_needed(micro) > MEMORY_SHARE * machine.memory:
        micro = max(2, micro // 4 * 2) if is_even else micro // 2
    decisions.set("micro_batch_size", micro, "all at once" if micro == batch else "what fits into memory")


def check_memory(micro_batch_size: int, bytes_needed: float, machine: Machine, advice: str) -> None:
    """Raise RequestError, with the advice, where the device has less memory than a micro-batch needs."""
    if bytes_needed > machine.memory:
        raise RequestError(
            f"{micro_batch_size} images at a time need about {bytes_needed / 1e9:.3g} GB of memory, "
            f"{machine.device} has {machine.memory / 1e9:.3g}: {advice}"
        )
