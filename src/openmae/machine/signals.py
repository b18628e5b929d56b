"""SIGTERM, SIGINT and SIGUSR1 ask a run to save and stop; a second Ctrl-C leaves at once."""

import contextlib
import functools
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from openmae.errors import Interrupted

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
INTERRUPTED_AGAIN = 130  # the exit code of a program that Ctrl-C ended

# What else must end when a second Ctrl-C ends the process: a compiler's processes, say.
_at_once: list[Callable[[], None]] = []


def when_left_at_once(action: Callable[[], None]) -> None:
    """Call `action`, which must be quick, before a second Ctrl-C ends the process."""
    if action not in _at_once:
        _at_once.append(action)


class StopRequest:
    """A context in which stop signals, once `defer` was called, set `received` instead of ending the process.

    Before that they raise Interrupted. A second signal that is a Ctrl-C ends the process, whatever it is doing: a
    thread sees to that, for the main one may be in a call that no Python handler interrupts.

    Outside the main thread (a notebook's worker, say) handlers cannot be set: the context then does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.is_saving = False
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup: tuple[socket.socket, int] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
            self._watch_for_a_second()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._wakeup is not None:
            theirs, before = self._wakeup
            signal.set_wakeup_fd(before)
            theirs.close()  # ends the thread
            self._wakeup = None

    def defer(self) -> None:
        """From now on there is something to save: signals wait for the loop to look."""
        self.is_saving = True

    def is_received(self) -> bool:
        """Whether a stop signal came."""
        return self.received is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_first, self.received = self.received is None, signal.Signals(number).name
        if not self.is_saving:
            raise Interrupted(f"{self.received} before the first step: nothing was trained, nothing is lost")
        if is_first and os.environ.get("RANK", "0") == "0":  # under torchrun the first says it for all
            os.write(2, b"openmae: stopping as soon as this can be saved; a second Ctrl-C leaves at once, unsaved\n")

    def _watch_for_a_second(self) -> None:
        # Python's C code writes each signal's number into a socket the moment that it comes.
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        try:
            before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        except ValueError:  # an interpreter within the main one: signals are not ours there
            ours.close()
            theirs.close()
            return
        self._wakeup = (theirs, before)
        _forget_in_children()
        threading.Thread(target=_leave_at_a_second, args=(ours,), name="openmae-signals", daemon=True).start()


@functools.cache
def _forget_in_children() -> None:
    """A forked process (a reader that starts, say) has the socket, too; Ctrl-C reaches both, and would count twice."""

    def forget() -> None:
        with contextlib.suppress(ValueError):  # not its main thread
            signal.set_wakeup_fd(-1)

    os.register_at_fork(after_in_child=forget)


def _end_children() -> None:
    """Readers would notice by themselves, seconds later, and some with a traceback."""
    for child in multiprocessing.active_children():
        child.kill()


def _leave_at_a_second(numbers: socket.socket) -> None:
    """End the process when a Ctrl-C comes after another stop signal: even a hung save must not hold the person."""
    seen = False
    with numbers:
        while received := numbers.recv(64):
            for number in received:
                if seen and number == signal.SIGINT:
                    for action in (_end_children, *_at_once):
                        with contextlib.suppress(Exception):
                            action()
                    os._exit(INTERRUPTED_AGAIN)
                seen = seen or number in STOP_SIGNALS


class EvaluationStopped(Exception):
    """An evaluation ended early because the run was asked to stop."""
