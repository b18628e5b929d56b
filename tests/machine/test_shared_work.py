"""Work that is divided among processes: what all get, and what the others are told of a failure."""

from dataclasses import dataclass

import pytest

from openmae.errors import Fault
from openmae.machine.parallel import Processes
from openmae.machine.shared_work import work_of_all
from openmae.machine.signals import EvaluationStopped, StopRequest


@dataclass(frozen=True)
class OneOfTwo(Processes):
    """A process whose sibling fails or not, and does the same work."""

    count: int = 2
    other_fails: bool = False

    def any(self, flag):
        return flag or self.other_fails

    def gather(self, value):
        return [value, value + 1]


def test_every_process_gets_all():
    assert work_of_all(lambda: 3, Processes(), None) == [3]
    assert work_of_all(lambda: 3, OneOfTwo(), StopRequest()) == [3, 4]


def test_a_failure_is_raised_where_it_was_and_stops_the_others():
    asked = []

    class Asking(OneOfTwo):
        def any(self, flag):
            asked.append(flag)
            return super().any(flag)

    def fail():
        raise Fault("out of memory")

    with pytest.raises(Fault, match="out of memory"):
        work_of_all(fail, Asking(), None)
    assert asked == [True]  # the others were told before this one went
    with pytest.raises(EvaluationStopped):
        work_of_all(lambda: 3, OneOfTwo(other_fails=True), None)


def test_a_stop_ends_it():
    stop = StopRequest()
    stop.received = "SIGTERM"
    with pytest.raises(EvaluationStopped):
        work_of_all(lambda: 3, Processes(), stop)
