"""SIGTERM, SIGINT and SIGUSR1 ask a run to save and stop; a second Ctrl-C leaves at once."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

from openmae.errors import Interrupted

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """A context in which stop signals, once `defer` was called, set `received` instead of ending the process.

    Before that they raise Interrupted.

    Outside the main thread (a notebook's worker, say) handlers cannot be set: the context then does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.is_saving = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """From now on there is something to save: signals wait for the loop to look."""
        self.is_saving = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            os._exit(130)  # the person insists: even a hung save must not hold them
        self.received = signal.Signals(number).name
        if not self.is_saving:
            raise Interrupted(f"{self.received} before the first step: nothing was trained, nothing is lost")
        os.write(2, b"openmae: stopping after this step; a second Ctrl-C leaves at once, unsaved\n")
