"""The folder that `openmae inspect --out` makes: new, or empty before."""

import os
from pathlib import Path

from openmae.errors import RequestError, shown
from openmae.run.lock import check_run_folder


def check_out(out: str, *protected: str) -> Path:
    """The folder to make.

    Args:
        spare: folders of a data set, among whose images no picture must come to lie.

    Raises:
        RequestError: something is there already, or nothing can be.
    """
    path = Path(out)
    check_run_folder(path)
    try:
        if path.is_dir() and any(path.iterdir()):
            raise RequestError(f"--out {shown(out)} exists already and is not empty: choose another")
    except OSError as error:
        raise RequestError(f"--out {shown(out)} cannot be looked into: {error.strerror}") from None
    if any(Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder)) for folder in protected):
        raise RequestError(f"--out {shown(out)} lies among the images to inspect: choose another")
    return path
