"""The three ways a command ends early, each with its exit code; and paths, commands and names within their messages."""

import os
import shlex
from pathlib import Path


class RequestError(ValueError):
    """The request or the data is wrong: exit code 2. The message says what was given and what to do."""

    exit_code = 2


class Fault(RuntimeError):
    """The machine or the run failed (full disk, non-finite loss): exit code 1."""

    exit_code = 1


class Interrupted(BaseException):
    """A signal ended the command: exit code 3. The message says whether anything was saved that can be resumed.

    Like KeyboardInterrupt no subclass of Exception: a decoder's `except Exception` must not take it for a bad image.
    """

    exit_code = 3


def shown(path: str | Path) -> str:
    """A path for a one-line message, with bytes that are no UTF-8 and unprintable characters escaped."""
    try:
        text = os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON can hold
        text = str(path)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def quoted(*words: str | Path) -> str:
    """Words of a command that a message proposes, each quoted where a shell needs it.

    What `shown` escapes is no longer what it names: such a word must be typed by hand.
    """
    return shown(shlex.join(map(str, words)))


def shorten(name: str, length: int = 60) -> str:
    """A name of at most `length` characters, cut in the middle, since names differ at both ends."""
    return name if len(name) <= length else f"{name[: length * 3 // 5]}...{name[len(name) - length * 2 // 5 + 3 :]}"
