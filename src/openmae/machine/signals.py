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

# Called before a second Ctrl-C ends the process: to kill compile workers, for example.
_at_once: list[Callable[[], None]] = []


def before_immediate_exit(action: Callable[[], None]) -> None:
    """Register `action`, which must be quick, to be called before a second Ctrl-C ends the process."""
    if action not in _at_once:
        _at_once.append(action)


class StopRequest:
    """A context in which stop signals, once `defer` was called, set `received` instead of ending the process.

    Before `defer` they raise Interrupted. A Ctrl-C after a first signal ends the process at once; a thread does that,
    for the main thread may be in a call that no Python handler interrupts.

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
            self._watch_for_second_signal()
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
        """From now on there is something to save: signals only set `received`, which the training loop checks."""
        self.is_saving = True

    def is_received(self) -> bool:
        """Whether a stop signal came."""
        return self.received is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_first, self.received = self.received is None, signal.Signals(number).name
        if not self.is_saving:
            raise Interrupted(f"{self.received} before the first step: nothing was trained, nothing is lost")
        if is_first and os.environ.get("RANK", "0") == "0":  # under torchrun the first process prints it for all
            os.write(2, b"openmae: stopping as soon as this can be saved; a second Ctrl-C leaves at once, unsaved\n")

    def _watch_for_second_signal(self) -> None:
        # Python's C code writes the number of each signal into a socket as soon as it arrives.
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        try:
            before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        except ValueError:  # a sub-interpreter, which may not handle signals
            ours.close()
            theirs.close()
            return
        self._wakeup = (theirs, before)
        _reset_wakeup_in_children()
        threading.Thread(target=_exit_at_second_signal, args=(ours,), name="openmae-signals", daemon=True).start()


@functools.cache
def _reset_wakeup_in_children() -> None:
    """A forked process (a starting reader, say) shares the socket; a Ctrl-C reaches both, and would count twice."""

    def reset_wakeup() -> None:
        with contextlib.suppress(ValueError):  # not its main thread
            signal.set_wakeup_fd(-1)

    os.register_at_fork(after_in_child=reset_wakeup)


def _end_children() -> None:
    """Kill the readers, which would end seconds later by themselves, some with a traceback."""
    for child in multiprocessing.active_children():
        child.kill()


def _exit_at_second_signal(numbers: socket.socket) -> None:
    """End the process when a Ctrl-C follows another stop signal, even during a save that hangs."""
    is_stopping = False
    with numbers:
        while received := numbers.recv(64):
            for number in received:
                if is_stopping and number == signal.SIGINT:
                    for action in (_end_children, *_at_once):
                        with contextlib.suppress(Exception):
                            action()
                    os._exit(INTERRUPTED_AGAIN)
                is_stopping = is_stopping or number in STOP_SIGNALS


class EvaluationStopped(Exception):
    """An evaluation ended early because the run was asked to stop."""
