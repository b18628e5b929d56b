"""Files that are whole or not there, and clear words when the disk says no."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from openmae.errors import Fault

PARTIAL = ".partial-"  # begins the name of what is not finished; it keeps its extension


@contextmanager
def disk_faults(path: Path, is_resumable: bool = False) -> Iterator[None]:
    """Turn a full or read-only disk into one clear line; `is_resumable`: of a run that keeps checkpoints."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        full = number == errno.ENOSPC or "No space left" in str(error)
        what = "the disk is full: free some space" if full else f"it cannot be written ({error})"
        advice = "; earlier checkpoints are whole, go on with --resume auto" if is_resumable else ""
        raise Fault(f"{path} was not saved, {what}{advice}") from error


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write to; it becomes `path` when all of it is on the disk, so a reader sees the old file or the new."""
    partial = path.with_name(PARTIAL + path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def folder_written_aside(path: Path) -> Iterator[Path]:
    """A new, empty folder to write files to; it becomes `path`, new or an empty folder, when all is on the disk."""
    with _new_folder(path) as partial:
        yield partial
        _sync_all(partial)
        partial.rename(path)


@contextmanager
def files_written_aside(path: Path) -> Iterator[Path]:
    """A new, empty folder to write files to; they move beside `path`, it being the last of them, when all are there.

    For what names its own parts: they lie under their final names until then, too.
    """
    with _new_folder(path) as partial:
        yield partial
        _sync_all(partial)
        for file in sorted(partial.iterdir(), key=lambda file: file.name == path.name):
            file.replace(path.with_name(file.name))
        partial.rmdir()


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    partial = path.with_name(PARTIAL + path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _sync_all(folder: Path) -> None:
    for file in folder.iterdir():
        sync(file)
    sync(folder)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file aside and rename it, so that no reader finds half of one."""
    with written_aside(path) as partial:
        partial.write_bytes(json_bytes(values))


def json_bytes(values: dict[str, Any]) -> bytes:
    """As `write_json` writes them."""
    return (json.dumps(values, indent=1) + "\n").encode()


def link_or_copy(source: Path, target: Path) -> None:
    """Give a finished file a second name, atomically; a copy where the file system has no links."""
    partial = target.with_name(PARTIAL + target.name)
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
    partial.replace(target)


def make_readable(path: Path) -> None:
    """Give a file the mode that new files have: safetensors makes them for the owner's eyes only."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def sync(path: Path) -> None:
    """Wait until a file's or a folder's bytes are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_disk(run: Path, checkpoint_bytes: int, keep: int) -> None:
    """Make sure that the checkpoints will fit: the kept ones and the one being written.

    Raises:
        Fault: they will not.
    """
    there = sum(1 for _ in (run / "checkpoints").glob("step-*"))
    needed = max(1, keep + 1 - there) * checkpoint_bytes
    free = shutil.disk_usage(existing(run)).free
    if needed > free:
        raise Fault(
            f"{run} needs {size_words(needed)} for checkpoints and {size_words(free)} are free: "
            "free some space, give a smaller --keep or another --out"
        )


def size_words(count: float) -> str:
    """Bytes in words: 12 MB, 3.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def existing(path: Path) -> Path:
    """The nearest folder or file above a path, or the path itself, that exists."""
    path = path.absolute()
    return path if path.exists() else existing(path.parent)
