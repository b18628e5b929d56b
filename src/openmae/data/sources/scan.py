"""All data files below a folder: links are followed, cycles end, and what is ignored is counted and named."""

import os
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from pathlib import Path

from openmae.data.decoding.extensions import EXTENSIONS
from openmae.data.sources.folder import Ignored

Identity = tuple[int, int]  # of a file or folder, whatever name it is reached by: device and inode


@dataclass(kw_only=True)
class Scan:
    """The files below a folder, by paths relative to it.

    Attributes:
        images, tables: image and parquet files, sorted by bytes.
        others: files of the other kinds that were asked for, sorted by bytes.
        ignored: what was left out.
        entered: the paths by which each folder was entered, in that order.
        has_links: whether anything was reached through a link.
    """

    images: list[bytes] = field(default_factory=list)
    tables: list[bytes] = field(default_factory=list)
    others: list[bytes] = field(default_factory=list)
    ignored: Ignored = field(default_factory=Ignored)
    entered: dict[Identity, list[bytes]] = field(default_factory=dict)
    has_links: bool = False


@dataclass(frozen=True)
class _Folder:
    """A folder that is still to be read, and the folders that contain it."""

    path: bytes
    within: tuple[Identity, ...]
    is_link: bool = False


def scan(root: Path, branch_of: Callable[[bytes], Hashable] = lambda folder: None, also: Collection[str] = ()) -> Scan:
    """Find all images and parquet files below `root`, and what is left out.

    Names that start with a dot are skipped. Links are followed, except to a folder that contains them. A folder is
    entered once, by its own path rather than a link, so that no image counts twice. Only regular files are taken.

    Args:
        branch_of: maps the path of a folder to a branch; a folder is entered once for each branch.
        also: extensions, such as .json, of files to list rather than to count as ignored.
    """
    found = Scan()
    names: dict[tuple[Identity, Hashable], bytes] = {}
    folders, links = [_Folder(b"", ())], list[_Folder]()
    while folders or links:
        if not folders:
            links.sort(key=lambda link: link.path, reverse=True)
            folders.append(links.pop())
        folder = folders.pop()
        try:
            here = os.path.join(os.fsencode(root), folder.path)
            status = os.stat(here)
            identity = (status.st_dev, status.st_ino)
            key = (identity, branch_of(folder.path))
            if identity in folder.within:
                found.ignored.add_unusable(folder.path, "a link to a folder that it lies in")
                continue
            if key in names:
                found.ignored.add_unusable(folder.path, already_read_reason(names[key]))
                continue
            names[key] = folder.path
            found.entered.setdefault(identity, []).append(folder.path)
            found.has_links |= folder.is_link
            with os.scandir(here) as entries:
                for entry in entries:
                    _sort_entry(entry, folder, (*folder.within, identity), found, folders, links, also)
        except OSError as error:  # a folder that may not be read costs its files, not the run
            found.ignored.add_unusable(folder.path or b".", error.strerror)
    found.images.sort()
    found.tables.sort()
    found.others.sort()
    return found


def already_read_reason(name: bytes) -> str:
    """The reason for ignoring a folder that was read by another path, `name`."""
    return f"the same folder as {os.fsdecode(name) or '.'}, which is read"


def without_repeats(files: list[bytes], found: Scan) -> list[bytes]:
    """The files of one split without those of folders that it contains by another path; these are recorded."""
    repeated = [names for names in found.entered.values() if len(names) > 1]
    if not repeated:
        return files
    folders = {os.path.dirname(file) for file in files}
    dropped: dict[bytes, bytes] = {}
    for names in repeated:
        first, *others = [name for name in names if name in folders] or [b""]
        dropped |= dict.fromkeys(others, first)
    for name, first in dropped.items():
        if os.path.dirname(name) not in dropped:
            found.ignored.add_unusable(name, already_read_reason(first))
    return [file for file in files if os.path.dirname(file) not in dropped]


def _sort_entry(
    entry: os.DirEntry[bytes],
    folder: _Folder,
    within: tuple[Identity, ...],
    found: Scan,
    folders: list[_Folder],
    links: list[_Folder],
    also: Collection[str],
) -> None:
    """Add an entry of `folder` to the files, to the folders to read, or to what is ignored."""
    if entry.name.startswith(b"."):
        found.ignored.hidden += 1
        return
    path = os.path.join(folder.path, entry.name)
    extension = os.fsdecode(os.path.splitext(entry.name)[1].lower())
    try:
        is_link = entry.is_symlink()
        if entry.is_dir():
            (links if is_link else folders).append(_Folder(path, within, is_link))
        elif extension != ".parquet" and extension not in EXTENSIONS and extension not in also:
            found.ignored.add_extension(extension)
        elif entry.is_file():
            kinds = {".parquet": found.tables} | dict.fromkeys(also, found.others)
            kinds.get(extension, found.images).append(path)
            found.has_links |= is_link
        else:
            found.ignored.add_unusable(path, "dangling link" if is_link else "not a regular file")
    except OSError as error:
        found.ignored.add_unusable(path, error.strerror)
