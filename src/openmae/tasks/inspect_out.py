"""The folder that `openmae inspect --out` makes: new or empty before, and there only when it is whole."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openmae.errors import RequestError, shown
from openmae.tasks.place import check_place
from openmae.training.files import PARTIAL, disk_faults


def check_out(out: str, spare: str | None = None) -> Path:
    """The folder to make.

    Args:
        spare: a data set, among whose images no picture must come to lie.

    Raises:
        RequestError: something is there already, or nothing can be.
    """
    path = Path(out)
    check_place(path)
    try:
        if path.is_dir() and any(path.iterdir()):
            raise RequestError(f"--out {shown(out)} exists already and is not empty: choose another")
    except OSError as error:
        raise RequestError(f"--out {shown(out)} cannot be looked into: {error.strerror}") from None
    if spare is not None and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(spare)):
        raise RequestError(f"--out {shown(out)} lies among the images to inspect: choose another")
    return path


@contextmanager
def made_whole(out: Path) -> Iterator[Path]:
    """A folder to write into; it becomes `out` at the end. After an error nothing is left.

    Raises:
        Fault: the disk is full or cannot be written.
    """
    with disk_faults(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=out.parent))
        try:
            mask = os.umask(0)
            os.umask(mask)
            partial.chmod(0o777 & ~mask)
            yield partial
            partial.rename(out)  # also onto an empty folder
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
