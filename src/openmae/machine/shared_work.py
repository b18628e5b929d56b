"""Work that is divided among processes, where a failure or a stop of one must not leave the others waiting."""

from collections.abc import Callable
from typing import TypeVar

from openmae.errors import Fault, RequestError
from openmae.machine.parallel import Processes
from openmae.machine.signals import EvaluationStopped, StopRequest

ShareT = TypeVar("ShareT")


def gather_work(work: Callable[[], ShareT], processes: Processes, stop: StopRequest | None = None) -> list[ShareT]:
    """Do this process's share of a work, and gather what all of them did, in the order of ranks.

    Args:
        work: the share of this process; it ends early where `stop` is received.

    Raises:
        RequestError, Fault: that of this process.
        EvaluationStopped: a signal came to one of the processes, or another one failed.
        Fault: another one failed, and there is no `stop`.
    """
    own: ShareT | None = None
    failure: RequestError | Fault | None = None
    try:
        own = work()
    except (RequestError, Fault) as error:  # the other processes wait for this one
        failure = error
    if processes.any(failure is not None or (stop is not None and stop.is_received())):
        other = Fault("another process failed: its own message says why") if stop is None else EvaluationStopped()
        raise other if failure is None else failure
    assert own is not None
    return processes.gather(own)
