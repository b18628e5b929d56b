"""The folder that `openmae inspect --out` makes: new, or empty before."""

import os
from pathlib import Path

from openmae.errors import RequestError, shown
from openmae.run.lock import check_place


def check_out(out: str, *protected: str) -> Path:
    """The folder to create.

    Args:
        protected: folders of a data set, into which no picture may be written.

    Raises:
        RequestError: it exists and is not empty, cannot be created, or is among the images.
    """
    path = Path(out)
    check_place(path)
    try:
        if path.is_dir() and any(path.iterdir()):
            raise RequestError(f"--out {shown(out)} exists already and is not empty: choose another")
    except OSError as error:
        raise RequestError(f"--out {shown(out)} cannot be looked into: {error.strerror}") from None
    if any(Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder)) for folder in protected):
        raise RequestError(f"--out {shown(out)} lies among the images to inspect: choose another")
    return path
