"""Whether what `--label-file` names can be one. Imports no torch: it is asked before that is loaded."""

import os
import stat

from openmae.errors import RequestError, shown

MAX_BYTES = 1 << 30


def check_label_file(path: str) -> None:
    """Raise RequestError where it is not there, is no file, or is too large to be one."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise label_file_error(path, error) from None
    if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
        raise RequestError(f"{shown(path)} is no file: --label-file takes a CSV")
    if found.st_size > MAX_BYTES:
        raise RequestError(f"{shown(path)} has {found.st_size} bytes, a label file at most {MAX_BYTES}")


def label_file_error(path: str, error: Exception) -> RequestError:
    """The error for a `--label-file` that cannot be opened."""
    return RequestError(f"--label-file {shown(path)} cannot be read: {getattr(error, 'strerror', None) or error}")
