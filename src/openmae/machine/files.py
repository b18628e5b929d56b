"""Atomic file writes, and clear messages where the disk fails."""

import csv
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from openmae.errors import Fault

PARTIAL_PREFIX = ".partial-"  # begins the names of unfinished files; their extension stays


@contextmanager
def disk_faults(path: Path, is_resumable: bool = False) -> Iterator[None]:
    """Turn errors of writing (a full or read-only disk) into a Fault.

    Args:
        is_resumable: of a run with checkpoints; the message then says how to resume.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        is_full = number == errno.ENOSPC or "No space left" in str(error)
        problem = "the disk is full: free some space" if is_full else f"it cannot be written ({error})"
        advice = "; earlier checkpoints are whole, go on with --resume auto" if is_resumable else ""
        raise Fault(f"{path} was not saved, {problem}{advice}") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, renamed to `path` at the end: readers see the old file or the new."""
    partial = path.with_name(PARTIAL_PREFIX + path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_write_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to write files to; it is renamed to `path`, new or an empty folder, at the end."""
    with _new_folder(path) as partial:
        yield partial
        _sync_all(partial)
        partial.rename(path)


@contextmanager
def staged_write_files(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to write files to; they are moved beside `path`, that one last, at the end.

    For a file that refers to others by name, as ONNX with external data: in the folder they have their final names.
    """
    with _new_folder(path) as partial:
        yield partial
        _sync_all(partial)
        for file in sorted(partial.iterdir(), key=lambda file: file.name == path.name):
            file.replace(path.with_name(file.name))
        partial.rmdir()


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    partial = path.with_name(PARTIAL_PREFIX + path.name)
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
    """Write a JSON file atomically."""
    with atomic_write(path) as partial:
        partial.write_bytes(json_bytes(values))


def json_bytes(values: dict[str, Any]) -> bytes:
    """The bytes that `write_json` writes."""
    return (json.dumps(values, indent=1) + "\n").encode()


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write a table (RFC 4180, UTF-8) whole or not at all; bytes in names that are not Unicode are escaped.

    Raises:
        Fault: it cannot be written.
    """
    with (
        disk_faults(path),
        atomic_write(path) as partial,
        open(partial, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        csv.writer(file).writerows(rows)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a finished file to a second path, atomically; copy it where the file system has no links."""
    partial = target.with_name(PARTIAL_PREFIX + target.name)
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
    partial.replace(target)


def make_readable(path: Path) -> None:
    """Give a file the mode of new files, by the umask: safetensors makes files that only their owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def sync(path: Path) -> None:
    """Wait until a file's or folder's content is on disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_disk(run: Path, checkpoint_bytes: int, keep: int) -> None:
    """Check that the checkpoints fit on the disk: the `keep` kept ones and the one being written.

    Raises:
        Fault: they do not fit.
    """
    num_existing = sum(1 for _ in (run / "checkpoints").glob("step-*"))
    needed = max(1, keep + 1 - num_existing) * checkpoint_bytes
    free = shutil.disk_usage(nearest_existing(run)).free
    if needed > free:
        raise Fault(
            f"{run} needs {format_bytes(needed)} for checkpoints and {format_bytes(free)} are free: "
            "free some space, give a smaller --keep or another --out"
        )


def format_bytes(count: float) -> str:
    """A number of bytes with its unit: 12 MB, 3.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest parent that exists."""
    path = path.absolute()
    return path if path.exists() else nearest_existing(path.parent)
