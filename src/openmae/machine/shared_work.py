"""Work that is divided among processes, where a failure or a stop of one must not leave the others waiting."""

from collections.abc import Callable
from typing import TypeVar

from openmae.errors import Fault
from openmae.machine.parallel import Processes
from openmae.machine.signals import EvaluationStopped, StopRequest

ShareT = TypeVar("ShareT")


def work_of_all(work: Callable[[], ShareT], processes: Processes, stop: StopRequest | None) -> list[ShareT]:
    """What `work` gives in each process, in the order of ranks; every process gets all of it.

    Args:
        work: the share of this process; it ends early where `stop` is received.

    Raises:
        EvaluationStopped: a signal came to one of the processes, or another one failed.
        Fault: that of this process.
    """
    own: ShareT | None = None
    failure: Fault | None = None
    try:
        own = work()
    except Fault as error:  # the other processes wait for this one
        failure = error
    if processes.any(failure is not None or (stop is not None and stop.is_received())):
        raise EvaluationStopped if failure is None else failure
    assert own is not None
    return processes.gather(own)
