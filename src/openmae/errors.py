"""The three ways a command ends early, each with its exit code; and paths made fit for their messages."""

import os
from pathlib import Path


class RequestError(ValueError):
    """The request or the data is wrong: exit 2. The message says what was got and what to do."""

    exit_code = 2


class Fault(RuntimeError):
    """The machine or the run failed (full disk, non-finite loss): exit 1."""

    exit_code = 1


class Interrupted(BaseException):
    """A signal asked the run to stop; it was saved and can be resumed: exit 3.

    No Exception, like KeyboardInterrupt: a decoder's `except Exception` must not take it for a bad image.
    """

    exit_code = 3


def shown(path: str | Path) -> str:
    """A path for a message of one line: bytes that are no UTF-8, and line ends, as escapes."""
    try:
        text = os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON can hold
        text = str(path)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
