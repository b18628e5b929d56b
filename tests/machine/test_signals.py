"""Stop signals ask once and insist the second time."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from openmae.errors import Interrupted
from openmae.machine.signals import STOP_SIGNALS, StopRequest

# Nothing of Python runs in the main thread meanwhile: no handler is called.
DEAF = """
import hashlib, threading
from openmae.machine.signals import StopRequest
with StopRequest() as stop:
    stop.defer()
    threading.Timer(0.2, print, ["ready"], {"flush": True}).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""

STUBBORN = """
import time
from openmae.errors import Interrupted
from openmae.machine.signals import StopRequest
with StopRequest() as stop:
    stop.defer()
    print("ready", flush=True)
    while not stop.received:
        time.sleep(0.01)
    print(stop.received, flush=True)
    time.sleep(60)  # a save that hangs
"""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_recorded_and_does_not_end_the_process(number):
    with StopRequest() as stop:
        stop.defer()
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number.name


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_before_there_is_something_to_save_a_signal_interrupts(number):
    with pytest.raises(Interrupted, match=f"{number.name} before the first step"), StopRequest():
        signal.raise_signal(number)


def test_handlers_are_put_back_even_after_an_error():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]

    def fail():
        with StopRequest():
            assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_repeated_sigterm_is_patient():
    with StopRequest() as stop:
        stop.defer()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.received == "SIGUSR1"


def test_a_thread_without_handlers_is_left_alone():
    before, received = signal.getsignal(signal.SIGTERM), []

    def work():
        with StopRequest() as stop:
            received.append((stop.received, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert received == [(None, before)]


def test_a_second_ctrl_c_leaves_a_process_that_runs_no_python():
    process = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
        process.stdout.close()


def test_a_process_that_was_forked_does_not_speak_for_this_one():
    """It has the same socket: Ctrl-C reaches both, and would count twice."""
    with StopRequest() as stop:
        stop.defer()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, lambda *_: None)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        time.sleep(0.2)  # for the thread to end this process, if it would
        assert stop.received is None


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_leaves_at_once(first):
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stdout.readline() == f"{first.name}\n"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
        process.stdout.close()
