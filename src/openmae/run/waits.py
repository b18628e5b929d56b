"""Lines about what a run waits for: readers, the compiler, a save, an evaluation, another process."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

from openmae.training.telemetry import format_duration

FIRST_LINE = 5.0  # seconds of waiting before the first line
GROWTH = 4  # each further line comes after so many times as long
POLL_INTERVAL = 0.25  # seconds


class Waits:
    """A context whose thread prints what is waited for once that has taken 5 seconds, then 20, 80 and so on.

    Args:
        print_line: called from the thread.
    """

    def __init__(self, print_line: Callable[[str], None]) -> None:
        self._print_line = print_line
        self._waiting: list[_Wait] = []  # the innermost last
        self._is_over = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="openmae-waits", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()

    @contextlib.contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """A block that waits for `what`: while it lasts long, lines say so."""
        self._waiting.append(_Wait(what))
        try:
            yield
        finally:
            self._waiting.pop()

    def _watch(self) -> None:
        while not self._is_over.wait(POLL_INTERVAL):
            wait = self._waiting[-1:]
            if wait and (seconds := time.monotonic() - wait[0].since) >= wait[0].next_line:
                wait[0].next_line *= GROWTH
                self._print_line(f"waiting    for {wait[0].what}: {format_duration(seconds)} so far")


class _Wait:
    def __init__(self, what: str) -> None:
        self.what, self.since, self.next_line = what, time.monotonic(), FIRST_LINE
