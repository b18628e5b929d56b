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
        RequestError, Fault: that of this process; or that of another one, where there is no `stop` or it is a
            RequestError, of which the first process speaks for all.
        EvaluationStopped: a signal came to one of the processes, or another one had a Fault.
    """
    own: ShareT | None = None
    failure: RequestError | Fault | None = None
    try:
        own = work()
    except (RequestError, Fault) as error:  # the other processes wait for this one
        failure = error
    ends = processes.gather((failure, stop is not None and stop.is_received()))
    first = next((error for error, _ in ends if error is not None), None)
    if failure is not None:
        raise failure
    if first is not None and (stop is None or isinstance(first, RequestError)):
        raise first
    if first is not None or any(is_stopped for _, is_stopped in ends):
        raise EvaluationStopped
    assert own is not None
    return processes.gather(own)
