"""The text of a small file that a flag names."""

import os
import stat

from openmae.errors import RequestError, shown

_MAX_BYTES = 16 << 20


def read_text(path: str, flag: str) -> str:
    """Read a file in UTF-8. Raises RequestError, which names the `flag`, where it cannot be read or is no text."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
            raise RequestError(f"{flag} {shown(path)} is no file: give a text file")
        if found.st_size > _MAX_BYTES:
            raise RequestError(f"{flag} {shown(path)} has {found.st_size} bytes, such a list at most {_MAX_BYTES}")
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except RequestError:
        raise
    except UnicodeDecodeError:
        raise RequestError(f"{flag} {shown(path)} is not UTF-8: save it as text in UTF-8") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise RequestError(f"{flag} {shown(path)} cannot be read: {why}") from None
