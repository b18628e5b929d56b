"""Work that is divided among processes: what all get, and what the others are told of a failure."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from openmae.errors import Fault, RequestError
from openmae.machine.parallel import Processes
from openmae.machine.shared_work import gather_work
from openmae.machine.signals import EvaluationStopped, StopRequest

from .threads import two_processes


def outcomes(works, stops=(None, None)):
    """What each of two processes gets or raises."""
    with ThreadPoolExecutor(2) as threads:
        futures = [
            threads.submit(gather_work, work, one, stop)
            for work, one, stop in zip(works, two_processes(), stops, strict=True)
        ]
    return [future.exception() or future.result() for future in futures]


def failing(error):
    def work():
        raise error

    return work


def test_every_process_gets_all_in_the_order_of_ranks():
    assert gather_work(lambda: 3, Processes()) == [3]
    assert outcomes([lambda: 3, lambda: 4]) == [[3, 4], [3, 4]]


@pytest.mark.parametrize("error", [Fault("readers were killed"), RequestError("out of memory")])
def test_a_failure_is_raised_where_it_was_and_stops_the_other(error):
    own, other = outcomes([failing(error), lambda: 4])
    assert own is error
    assert str(other) == str(error)
    own, other = outcomes([failing(error), lambda: 4], [StopRequest(), StopRequest()])
    assert own is error
    assert isinstance(other, EvaluationStopped if isinstance(error, Fault) else RequestError)


def test_a_stop_of_one_ends_both_and_hides_no_failure():
    stopped = StopRequest()
    stopped.received = "SIGTERM"
    assert all(isinstance(end, EvaluationStopped) for end in outcomes([lambda: 3] * 2, [stopped, StopRequest()]))
    fault = Fault("no space left")
    own, other = outcomes([failing(fault), lambda: 4], [stopped, StopRequest()])
    assert own is fault
    assert isinstance(other, EvaluationStopped)
