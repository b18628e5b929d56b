"""The pairs of image and mask file of each split of DATA, and what was left out."""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

from openmae.config import Dataset, SplitPaths
from openmae.data.masks.layouts import LAYOUTS, FoundPart, MaskLayout, find_mask_layout, find_whole
from openmae.data.sources.folder import Ignored
from openmae.data.sources.folder_part import FolderPart, leak_warnings
from openmae.data.sources.named import EMBEDDED, is_folder
from openmae.data.sources.scan import Scan, scan, without_repeats
from openmae.data.sources.split_names import branch_of
from openmae.errors import RequestError, shown

_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The images of a split that have a mask, with these: what has one position belongs together.

    Attributes:
        root: what the paths are relative to.
        images, masks: sorted by the paths of images; equally many, at least one.
        origin: the folders that they lie in, as text.
    """

    root: Path
    images: list[bytes]
    masks: list[bytes]
    origin: str


@dataclass(frozen=True, kw_only=True)
class Unpaired:
    """The files of a split without a partner: images without masks, masks without images; sorted."""

    images: list[bytes]
    masks: list[bytes]


@dataclass(frozen=True, kw_only=True)
class FoundPairs:
    """The splits of DATA in which images have masks.

    Attributes:
        parts: by split; train is among them.
        unpaired: by split, also those that are no part for want of masks.
        ignored: the files that were left out by their kind or name.
        notes: which images have no mask, which masks no image, which splits no masks; a line each.
        warnings: reasons to distrust a metric.
    """

    parts: dict[str, Pairs]
    unpaired: dict[str, Unpaired]
    ignored: Ignored
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def find_pairs(dataset: Dataset) -> FoundPairs:
    """Find the images and masks of each split, and match them by their paths without extension.

    DATA is a folder, see `find_mask_layout`; or there is a path for each split, see `find_whole`.

    Raises:
        RequestError: it is no such folder, train has no image with a mask, or several files may be one's image or mask.
    """
    named = dataset.paths if isinstance(dataset, SplitPaths) else {None: dataset}
    parts: dict[str, Pairs] = {}
    unpaired: dict[str, Unpaired] = {}
    notes: list[str] = []
    ignored = Ignored()
    for only, path in named.items():
        root, prefix, layout, scanned = _layout_of(path, only)
        ignored.add(scanned.ignored)
        notes += _beside_note(layout, path)
        for split, part in layout.parts.items():
            pairs, unpaired[split] = _matched(root, prefix, split, part, scanned, notes)
            if pairs is not None:
                parts[split] = pairs
    if "train" not in parts:
        raise RequestError(
            f"no train images with masks in {shown(str(dataset))}"
            + (f", which has {' and '.join(parts)}" if parts else "")
            + f": {notes[-1] if notes else f'put them as {LAYOUTS}'}; --train PATH says which folder is train"
        )
    links = {
        split: FolderPart(root=pairs.root, files=pairs.images, depth=0, is_table=False, ignored=ignored)
        for split, pairs in parts.items()
    }
    return FoundPairs(
        parts=parts,
        unpaired=unpaired,
        ignored=ignored,
        notes=tuple(notes),
        warnings=tuple(leak_warnings(links)),
    )


def has_masks(dataset: Dataset) -> bool:
    """Whether DATA, or what is given as its train split, lies in one of the known layouts of images and masks."""
    path, only = (dataset.train, "train") if isinstance(dataset, SplitPaths) else (dataset, None)
    try:
        return path is not None and any(part.masks for part in _layout_of(path, only)[2].parts.values())
    except RequestError:
        return False


def training_folder(dataset: Dataset) -> Path:
    """The folder that holds the training images and nothing else, for what trains on images alone.

    Raises:
        RequestError: DATA is in none of the known layouts, or the training images lie in several folders.
    """
    path, only = (dataset.train, "train") if isinstance(dataset, SplitPaths) else (dataset, None)
    assert path is not None
    root, prefix, layout, scanned = _layout_of(path, only)
    part = layout.parts.get("train", FoundPart())
    if not part.images:
        raise RequestError(f"no train images in {shown(str(dataset))}: put them as {LAYOUTS}")
    images = {file for _, file in part.images}
    folder = os.path.commonpath([os.path.dirname(file) for file in images])
    others = [file for file in scanned.images if file not in images and (not folder or file.startswith(folder + b"/"))]
    if others:
        raise RequestError(
            f"the training images lie in {part.origin}, with others between them ({_shown(others[0])}): put them in "
            "one folder of their own, such as images/train/, for pre-training sees images alone"
        )
    return root / os.fsdecode(prefix) / os.fsdecode(folder)


def _layout_of(path: str, only: str | None) -> tuple[Path, bytes, MaskLayout, Scan]:
    """The root of its paths, what is put before them, the layout, and the scan of a folder."""
    flag = "" if only is None else f"--{only} "
    if path.startswith(EMBEDDED):
        raise RequestError(f"{flag}{shown(path)}: the images in the wheels have no masks: give a folder, as {LAYOUTS}")
    if not is_folder(path):
        raise RequestError(f"{flag}{shown(path)} is a file: give a folder of images and masks, as {LAYOUTS}")
    root = Path(path)
    scanned = scan(root, branch_of) if only is None else scan(root)
    if not scanned.images:
        there = scanned.ignored.line or "nothing"
        raise RequestError(f"no images in {flag}{shown(root)}: found {there}; give images and masks, as {LAYOUTS}")
    for table in scanned.tables:
        scanned.ignored.add_extension(os.fsdecode(os.path.splitext(table)[1].lower()))
    if only is None:
        return root, b"", find_mask_layout(root, scanned.images), scanned
    layout = find_whole(root, scanned.images, only)
    parent, name = os.path.split(os.path.abspath(root))  # names begin with the folder's, so that those of splits differ
    return Path(parent), os.fsencode(name), layout, scanned


def _matched(
    root: Path, prefix: bytes, split: str, part: FoundPart, scanned: Scan, notes: list[str]
) -> tuple[Pairs | None, Unpaired]:
    """The pairs of a split, None where it has none, and what has no partner, which `notes` are told.

    Raises:
        RequestError: see `find_pairs`.
    """
    of_kind = []
    for entries in (part.images, part.masks):
        kept = set(without_repeats([file for _, file in entries], scanned))
        by_key: dict[bytes, list[bytes]] = {}
        for key, file in entries:
            if file in kept:
                by_key.setdefault(key, []).append(file)
        of_kind.append(by_key)
    images, masks = of_kind
    if not masks:
        notes.append(f"{split} has no masks ({len(images):,} images in {part.origin}): left out")
        return None, Unpaired(images=sorted(file for files in images.values() for file in files), masks=[])
    place = root / os.fsdecode(prefix)
    pairs = []
    for key in images.keys() & masks.keys():
        pngs = [file for file in masks[key] if file.lower().endswith(b".png")]
        candidates = pngs or masks[key]  # what is no PNG beside one is a preview
        image = _only(place, images[key], "images", f"mask, {_shown(candidates[0])}")
        pairs.append((image, _only(place, candidates, "masks", f"image, {_shown(image)}")))
    alone = [
        sorted(file for key in own.keys() - others.keys() for file in own[key])
        for own, others in ((images, masks), (masks, images))
    ]
    for files, what in zip(alone, ("images have no mask", "masks have no image"), strict=True):
        notes += [f"{split}: {_counted(files, what)}; left out"] if files else []
    unpaired = Unpaired(images=alone[0], masks=alone[1])
    if not pairs:
        return None, unpaired
    pairs.sort()
    found = Pairs(
        root=root,
        images=[_within(prefix, image) for image, _ in pairs],
        masks=[_within(prefix, mask) for _, mask in pairs],
        origin=part.origin if not prefix else shown(place),
    )
    return found, unpaired


def _only(place: Path, files: list[bytes], what: str, other: str) -> bytes:
    """The file of a list of one. Raises RequestError for more."""
    if len(files) > 1:
        names = " and ".join(map(_shown, sorted(files)[:_NAMED]))
        raise RequestError(f"{names} in {shown(place)} are {what} for one {other}: leave the one that is meant")
    return files[0]


def _beside_note(layout: MaskLayout, path: str) -> list[str]:
    if not layout.beside:
        return []
    named = [f"{_shown(name)} ({count:,} images)" for name, count in itertools.islice(layout.beside.items(), _NAMED)]
    more = f" and {len(layout.beside) - _NAMED} more folders" if len(layout.beside) > _NAMED else ""
    return [f"left alone in {shown(path)}: {', '.join(named)}{more}"]


def _counted(files: list[bytes], what: str) -> str:
    named = ", ".join(map(_shown, files[:_NAMED])) + (", …" if len(files) > _NAMED else "")
    one = what.replace("images have", "image has").replace("masks have", "mask has")
    return f"{len(files):,} {what if len(files) > 1 else one} ({named})"


def _within(prefix: bytes, file: bytes) -> bytes:
    return prefix + b"/" + file if prefix else file


def _shown(file: bytes) -> str:
    return shown(os.fsdecode(file))
