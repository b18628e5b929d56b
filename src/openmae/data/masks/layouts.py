"""Finding the images and the mask files of each split below a folder, by the names of folders.

Paths are bytes, relative to the folder that was searched, as `scan` finds them.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from openmae.config import SPLITS
from openmae.data.sources.split_names import branch_of, find_layout, whole_layout
from openmae.errors import RequestError, shown

IMAGE_FOLDERS = (b"images", b"image", b"imgs")
MASK_FOLDERS = (b"masks", b"annotations", b"labels", b"semantic", b"mask")
# What follows the name of a split's image folder in that of its mask folder, as CamVid's train and trainannot.
_BESIDE = re.compile(rb"(.*?)[-_ ]?(?:annot|annotations?|labels?|masks?)", re.IGNORECASE | re.DOTALL)
LAYOUTS = (
    "images/ and masks/ (or annotations/, labels/, semantic/), each with train/ and val/ in it or not; "
    "train/images/ and train/masks/, val/images/ and val/masks/; train/ and trainannot/, val/ and valannot/"
)


@dataclass(frozen=True, kw_only=True)
class FoundPart:
    """The images and mask files of a split, not yet matched.

    Attributes:
        images, masks: path by key; what has one key belongs together. A key is a path without the parts that say
            split and kind.
        origin: the folders that they lie in, as text.
    """

    images: list[tuple[bytes, bytes]] = field(default_factory=list)
    masks: list[tuple[bytes, bytes]] = field(default_factory=list)
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class MaskLayout:
    """The splits below a folder.

    Attributes:
        parts: by split, in the order of `SPLITS`.
        beside: how many image files each folder holds that belong to no split.
    """

    parts: dict[str, FoundPart]
    beside: dict[bytes, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Level:
    """A folder, and what lies in it: the files below each of its folders, and how many lie in it directly."""

    path: bytes
    folders: dict[bytes, list[bytes]]
    num_files: int

    def beside(self, used: Iterable[bytes]) -> dict[bytes, int]:
        """How many images each of the folders holds that are not used."""
        unused = self.folders.keys() - set(used)
        counts = {_join(self.path, name): len(self.folders[name]) for name in sorted(unused)}
        return counts | ({self.path or b".": self.num_files} if self.num_files else {})


def find_mask_layout(root: Path, files: list[bytes]) -> MaskLayout:
    """Assign the image files below `root` to splits, and in each to images or mask files.

    `LAYOUTS` lists what is found. A single folder around everything is skipped; other folders are left alone.

    Raises:
        RequestError: the files are in none of these layouts, or it is not clear in which.
    """
    for level in _levels(files):
        found = _of_kinds(root, level, None) or _of_neighbours(root, level) or _of_splits(root, level)
        if found is not None:
            return found
    raise RequestError(
        f"no masks beside images in {shown(root)}, which holds {_what_is_in(level)}: put them as {LAYOUTS}; or name "
        "each part, with --train PATH --val PATH --test PATH"
    )


def find_whole(root: Path, files: list[bytes], split: str) -> MaskLayout:
    """All files below `root` as one split, as with `--train PATH`: images/ and masks/ in it.

    Raises:
        RequestError: there are no such folders, or by their names the files are several splits.
    """
    for level in _levels(files):
        found = _of_kinds(root, level, split)
        if found is not None:
            return found
    raise RequestError(
        f"no masks beside images in --{split} {shown(root)}, which holds {_what_is_in(level)}: put them in images/ and "
        "masks/ (or annotations/, labels/, semantic/) in it"
    )


def are_images_and_masks(files: Iterable[bytes]) -> bool:
    """Whether some folders of these paths are named as those of images, and others as those of masks."""
    names = {part.lower() for file in files for part in file.split(b"/")[:-1]}
    return bool(names & set(IMAGE_FOLDERS)) and bool(names & set(MASK_FOLDERS))


def _levels(files: list[bytes]) -> Iterator[_Level]:
    """The folder that was searched, then the one in it as long as that is around everything."""
    path = b""
    while True:
        folders: dict[bytes, list[bytes]] = {}
        num_files = 0
        for file in files:
            name, slash, _ = file[len(path) + bool(path) :].partition(b"/")
            if slash:
                folders.setdefault(name, []).append(file)
            else:
                num_files += 1
        yield _Level(path, folders, num_files)
        if num_files or len(folders) != 1:
            return
        path = _join(path, next(iter(folders)))


def _of_kinds(root: Path, level: _Level, only: str | None) -> MaskLayout | None:
    """The splits of images/ and masks/ in a folder; with `only`, all is that split. None where they are not there."""
    names = [[n for n in level.folders if n.lower() in kind] for kind in (IMAGE_FOLDERS, MASK_FOLDERS)]
    if not all(names):
        return None
    for same in names:
        if len(same) > 1:
            raise RequestError(
                f"{shown(root / os.fsdecode(level.path))} holds {' and '.join(map(_shown, sorted(same)))}: leave one "
                "of them, it is not clear which is meant"
            )
    (images,), (masks,) = names
    parts: dict[str, FoundPart] = {}
    for name in (images, masks):
        folder = _join(level.path, name)
        place, inner = root / os.fsdecode(folder), [file[len(folder) + 1 :] for file in level.folders[name]]
        found = find_layout(place, inner, False) if only is None else whole_layout(place, inner, False, only)
        for split, members in found.groups.items():
            named = found.names.get(split, [b""])
            # Several folders of one split may hold equal names, so that theirs are part of the key.
            depth = found.depth if len(named) == 1 else 0
            keyed = [(_stem(member.split(b"/", depth)[-1]), _join(folder, member)) for member in members]
            origin = _origin([_join(folder, n) for n in named])
            part = parts.get(split, FoundPart())
            parts[split] = (
                replace(part, images=keyed, origin=origin)
                if name == images
                else replace(part, masks=keyed, origin=" and ".join(filter(None, (part.origin, origin))))
            )
    return MaskLayout(parts=_sorted(parts), beside=level.beside((images, masks)))


def _of_neighbours(root: Path, level: _Level) -> MaskLayout | None:
    """The splits of folders such as train/ and trainannot/ beside each other; None where there are none."""
    mask_folders = {}
    for name in level.folders:
        match = _BESIDE.fullmatch(name)
        if match is not None and match[1] in level.folders and branch_of(match[1]):
            mask_folders[match[1]] = name
    if not mask_folders:
        return None
    named = {n for n in level.folders if branch_of(n) and n not in mask_folders.values()}
    parts: dict[str, FoundPart] = {}
    for split, names in _splits_by_name(root, level, named).items():
        images: list[tuple[bytes, bytes]] = []
        masks: list[tuple[bytes, bytes]] = []
        for name in names:
            within = name if len(names) > 1 else b""
            for folder, keyed in ((name, images), (mask_folders.get(name), masks)):
                if folder is not None:
                    start = len(_join(level.path, folder)) + 1
                    keyed += [(_stem(_join(within, file[start:])), file) for file in level.folders[folder]]
        folders = [_join(level.path, n) for name in names for n in (name, mask_folders.get(name)) if n is not None]
        parts[split] = FoundPart(images=images, masks=masks, origin=_origin(folders))
    return MaskLayout(parts=_sorted(parts), beside=level.beside({*named, *mask_folders.values()}))


def _of_splits(root: Path, level: _Level) -> MaskLayout | None:
    """The splits of folders such as train/ and val/ with images/ and masks/ in each; None where there are none."""
    named = {n for n in level.folders if branch_of(n)}
    parts: dict[str, FoundPart] = {}
    beside = level.beside(named)
    for split, names in _splits_by_name(root, level, named).items():
        images, masks, origins = [], [], []
        for name in names:
            place = _join(level.path, name)
            inner = [file[len(place) + 1 :] for file in level.folders[name]]
            whole = (_of_kinds(root / os.fsdecode(place), step, split) for step in _levels(inner))
            found = next((layout for layout in whole if layout is not None), None)
            within = name if len(names) > 1 else b""
            if found is None:  # a test split without masks has no need of a folder for images
                images += [(_stem(_join(within, file)), _join(place, file)) for file in inner]
                origins.append(place)
                continue
            part = found.parts[split]
            images += [(_join(within, key), _join(place, file)) for key, file in part.images]
            masks += [(_join(within, key), _join(place, file)) for key, file in part.masks]
            origins += [_join(place, os.fsencode(folder)) for folder in part.origin.split(" and ")]
            beside |= {_join(place, folder): count for folder, count in found.beside.items()}
        parts[split] = FoundPart(images=images, masks=masks, origin=_origin(origins))
    if not any(part.masks for part in parts.values()):
        return None
    return MaskLayout(parts=_sorted(parts), beside=beside)


def _splits_by_name(root: Path, level: _Level, named: set[bytes]) -> dict[str, list[bytes]]:
    """The split that each of the `named` folders is; none where by the rules of `find_layout` they are no splits."""
    if not named:
        return {}
    found = find_layout(root / os.fsdecode(level.path), [_join(name, b"0") for name in sorted(named)], False)
    return found.names if found.depth == 1 else {}


def _sorted(parts: dict[str, FoundPart]) -> dict[str, FoundPart]:
    return {split: parts[split] for split in SPLITS if split in parts}


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def _stem(path: bytes) -> bytes:
    return os.path.splitext(path)[0]


def _shown(name: bytes) -> str:
    return shown(os.fsdecode(name))


def _origin(folders: list[bytes]) -> str:
    named = [_shown(folder.rstrip(b"/")) for folder in folders]
    return " and ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "")


def _what_is_in(level: _Level) -> str:
    names = [_shown(_join(level.path, name)) + "/" for name in sorted(level.folders)]
    names += [f"{level.num_files} images"] if level.num_files else []
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
