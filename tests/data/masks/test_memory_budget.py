"""Threads wait for memory, and what is larger than all of it is taken alone."""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from time import sleep

import pytest

from openmae.data.masks.memory_budget import MemoryBudget


@pytest.mark.parametrize(("size", "most"), [(10, 2), (3, 1), (None, 6)])
def test_no_more_are_taken_than_there_are(size, most):
    budget, lock, held, highest = MemoryBudget(size), Lock(), 0, 0

    def work(_: int) -> None:
        nonlocal held, highest
        with budget.take(5):
            with lock:
                held += 1
                highest = max(highest, held)
            sleep(0.01)
            with lock:
                held -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(24)))
    assert highest <= most
    assert budget.taken == 0


def test_an_error_gives_back():
    budget = MemoryBudget(10)
    with pytest.raises(KeyError), budget.take(10):
        raise KeyError
    assert budget.taken == 0
