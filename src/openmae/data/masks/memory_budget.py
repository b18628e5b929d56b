"""Memory shared by threads: each takes what it needs and waits while there is too little left."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class MemoryBudget:
    """Bytes that threads take and give back.

    Args:
        size: bytes in all; None: no limit.
    """

    def __init__(self, size: int | None) -> None:
        self.size, self.taken = size, 0
        self._changed = Condition()

    @contextmanager
    def take(self, num_bytes: int) -> Iterator[None]:
        """Hold so many bytes; wait for others to give theirs back. What is more than all may be held alone."""
        with self._changed:
            self._changed.wait_for(lambda: self.size is None or not self.taken or self.taken + num_bytes <= self.size)
            self.taken += num_bytes
        try:
            yield
        finally:
            with self._changed:
                self.taken -= num_bytes
                self._changed.notify_all()
