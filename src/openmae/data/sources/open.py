"""DATA: a folder of images, parquet in the Hugging Face layout, a pack, photographs inside the wheel; and their splits.

A source is an index -> sample table that is cheap to open, keeps no file open, and may be pickled or forked.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from openmae.config import SPLITS, DataParts, Dataset
from openmae.config.checks import OFF
from openmae.data.decoding.decode import EXTENSIONS, MAX_PIXELS
from openmae.data.sources.axes import decide_axes, shapes_of_bytes
from openmae.data.sources.embedded import embedded_source
from openmae.data.sources.folder import FolderSource as FolderSource
from openmae.data.sources.folder import Ignored
from openmae.data.sources.folder_part import FolderPart, leak_warning, leak_warnings
from openmae.data.sources.packed import PackedSource, read_pack
from openmae.data.sources.parquet import ParquetSource, first_images, is_parquet
from openmae.data.sources.scan import Scan, scan, without_repeats
from openmae.data.sources.split_names import SPLIT_RULES, Layout, branch_of, find_layout, split_origin, whole_layout
from openmae.errors import RequestError, shown

# A class; with several for an image, zeros and ones, one for each class; numbers to predict; None where unknown.
Label = int | NDArray[np.float32] | NDArray[np.float64] | None


class Source(Protocol):
    """Images by index, each with a name and perhaps a label: what every loader reads from.

    `classes` are the class names where they are known; a source may have labels without them.
    """

    classes: tuple[str, ...] | None
    ignored: Ignored

    def __len__(self) -> int: ...
    def name(self, index: int) -> str:
        """A stable, unique name: the path within the data, or `file.parquet#row`. May hold any character."""
        ...

    def label(self, index: int) -> Label: ...
    def read(self, index: int) -> np.ndarray:
        """The decoded sample, H x W x C. Raises BadImage, also for a file that has vanished."""
        ...

    def fingerprint(self) -> str:
        """A hash that changes when the data does; cheap, so it looks at names and sizes, not at contents."""
        ...


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The parts of a data set, and what was taken for what.

    Attributes:
        sources: by part, those that were asked for and are there.
        taken: by part, opened or not: what it was taken from, for a person.
        note: what else should be said of that.
        ignored: what was left out, a line for each folder that was gone through.
        warnings: what makes a figure worth less than it seems.
    """

    sources: dict[str, Source]
    origins: dict[str, str]
    note: str = ""
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """What was taken for what, for a person."""
        counts = {s: f" ({len(of):,} image{'s' * (len(of) != 1)})" for s, of in self.sources.items()}
        told = ", ".join(f"{split} from {what}{counts.get(split, '')}" for split, what in self.origins.items())
        return told + self.note

    @property
    def lines(self) -> list[str]:
        """All that is said of it before it is used."""
        lines = [f"parts      {self.line}", *(f"ignored    {line}" for line in self.ignored)]
        return lines + [f"warning: {line}" for line in self.warnings]


def open_source(
    data: Dataset,
    split: str = "train",
    *,
    background: float = 1.0,
    max_pixels: int = MAX_PIXELS,
    axes: str | None = None,
    default_axes: str | None = None,
    nodata: float | str = OFF,
    split_rules: int | None = None,
) -> Source | None:
    """Open the `split` (train, val or test) of a data set, see `open_splits`; None where it is not there."""
    if split not in SPLITS:
        raise RequestError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    options: dict[str, Any] = {"background": background, "max_pixels": max_pixels, "nodata": nodata}
    options |= {"axes": axes, "default_axes": default_axes}
    return open_splits(data, (split,), split_rules=split_rules, **options).sources.get(split)


def open_splits(
    data: Dataset,
    wanted: Sequence[str] = SPLITS,
    *,
    background: float = 1.0,
    max_pixels: int = MAX_PIXELS,
    axes: str | None = None,
    default_axes: str | None = None,
    nodata: float | str = OFF,
    split_rules: int | None = None,
) -> Splits:
    """Open the `wanted` parts of a data set, those that are there.

    DATA is a folder, parquet file or folder, a pack, or `embedded:NAME`; its parts are found by the names of what lies
    in it, see `find_layout`. Parts that are named outright are each wholly what they were said to be.

    Args:
        axes: the order of channels, rows and columns in `.npy` files of three dimensions; None decides it for all parts
            alike, wanted or not, by the shapes of some.
        default_axes: the order where those do not tell.
        nodata: which values stand for none, as of `decode`.
        split_rules: how parts are found, the newest way by default; a run keeps its own (`SPLIT_RULES`).

    Raises:
        RequestError: in one line, for data that cannot be used, that has parts but no train, if that is wanted, or
            that has axes that do not tell.
    """
    options: dict[str, Any] = {"background": background, "max_pixels": max_pixels, "nodata": nodata}
    if isinstance(data, DataParts):
        return _open_named(data.paths, wanted, options, (axes, default_axes))
    if data.startswith("embedded:"):
        opened = {split: embedded_source(data.removeprefix("embedded:"), split) for split in wanted}
        sources: dict[str, Source] = {split: source for split, source in opened.items() if source is not None}
        return Splits(sources=sources, origins=dict.fromkeys(sources, shown(data)))
    root = Path(data)
    if not _is_folder(data):
        if "train" not in wanted:
            return Splits(sources={}, origins={"train": shown(root)})
        options["axes"] = decide_axes(shapes_of_bytes(first_images(root)), axes, default_axes)
        return Splits(sources={"train": ParquetSource([root], **options)}, origins={"train": shown(root)})
    manifest = read_pack(root)
    if manifest is not None:
        there = list(manifest["splits"])
        _check_train(root, there, wanted)
        packs: dict[str, Source] = {s: PackedSource(root, manifest, s, **options) for s in wanted if s in there}
        return Splits(sources=packs, origins={split: f"the pack {shown(root)}" for split in there})
    rules = SPLIT_RULES if split_rules is None else split_rules
    files, is_table, found = _scanned(root, by_part=rules >= 2)
    layout = find_layout(root, files, is_table, rules)
    _check_train(root, list(layout.groups), wanted)
    parts = {
        split: FolderPart(
            root=root,
            files=without_repeats(group, found),
            depth=layout.depth,
            is_table=is_table,
            ignored=found.ignored,
        )
        for split, group in layout.groups.items()
    }
    measured = {split: part for split, part in parts.items() if split == "train" or split in wanted}
    # One list of classes for all splits, so that a class absent from one of them shifts no label.
    classes = sorted({name for part in parts.values() for name in part.class_names})
    if any(split in wanted for split in parts):
        whole = FolderPart(root=root, files=files, depth=0, is_table=is_table, ignored=found.ignored)
        options["axes"] = decide_axes(whole.shapes(), axes, default_axes)
    return Splits(
        sources={split: part.open(classes, options) for split, part in parts.items() if split in wanted},
        origins={split: split_origin(layout, split, root) for split in layout.groups},
        note=_note(layout),
        ignored=(found.ignored.line,) if found.ignored.line else (),
        warnings=tuple(leak_warnings(measured)) if found.has_links else (),
    )


def _note(layout: Layout) -> str:
    names = [shown(os.fsdecode(name)) for name in layout.classes_like_splits]
    if not names:
        return ""
    told = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"; {told} are no parts but classes, for no train is among them (--train, --val and --test say otherwise)"


def _open_named(
    paths: dict[str, str], wanted: Sequence[str], options: dict[str, Any], axes: tuple[str | None, str | None]
) -> Splits:
    """Each part wholly from its own path. Images are named with the folder's name, so that parts differ."""
    found: dict[str, Source | FolderPart] = {}
    beside: list[FolderPart] = []
    for split, path in paths.items():
        if split in wanted:
            found[split] = _find_part(split, path, options)
        elif axes[0] is None:
            with suppress(RequestError):  # whoever wants it is told
                part = _find_part(split, path, options)
                beside += [part] if isinstance(part, FolderPart) else []
    parts = {split: part for split, part in found.items() if isinstance(part, FolderPart)}
    warnings = leak_warnings(parts)
    if parts:
        shapes = chain.from_iterable(part.shapes() for part in (*parts.values(), *beside))
        options = {**options, "axes": decide_axes(shapes, *axes)}
    sources = {split: part for split, part in found.items() if not isinstance(part, FolderPart)}
    for split, source in sources.items():
        if split != "train" and "train" in sources and source.fingerprint() == sources["train"].fingerprint():
            warnings.append(leak_warning(split, f"all images of {split} are"))
    names = {name for part in parts.values() for name in part.class_names}
    sources |= {split: part.open([], options) for split, part in parts.items() if part.is_table}
    # Names that come with a table or a pack have their order, and their labels follow it.
    order = (sources[split] for split in found if split in sources)
    given = next((list(s.classes) for s in order if s.classes and names <= set(s.classes)), None)
    sources |= {split: part.open(given or sorted(names), options) for split, part in parts.items() if not part.is_table}
    return Splits(
        sources={split: sources[split] for split in found},
        origins={split: shown(paths[split]) for split in found},
        ignored=tuple(f"of {split}: {line}" for split in found if (line := sources[split].ignored.line)),
        warnings=tuple(warnings),
    )


def _find_part(split: str, path: str, options: dict[str, Any]) -> "Source | FolderPart":
    if path.startswith("embedded:"):
        source = embedded_source(path.removeprefix("embedded:"), split)
        if source is None:
            raise RequestError(f"--{split} {shown(path)}: it has no {split} part")
        return source
    root = Path(path)
    parent, name = os.path.split(os.path.abspath(root))
    if not _is_folder(path):
        return FolderPart(root=Path(parent), files=[os.fsencode(name)], depth=0, is_table=True, ignored=Ignored())
    manifest = read_pack(root)
    if manifest is not None:
        there = list(manifest["splits"])
        if split not in there and len(there) > 1:
            raise RequestError(f"--{split} {shown(path)}: the pack holds {' and '.join(there)} but no {split}")
        return PackedSource(root, manifest, split if split in there else there[0], **options)
    files, is_table, found = _scanned(root)
    depth = whole_layout(root, files, is_table, split).depth
    if name:  # of all but the root of a disk
        files, depth = [os.path.join(os.fsencode(name), file) for file in files], depth + 1
    return FolderPart(root=Path(parent), files=files, depth=depth, is_table=is_table, ignored=found.ignored)


def _is_folder(data: str) -> bool:
    """Whether it is a folder rather than a parquet file. Raises RequestError where it is neither."""
    try:
        mode = os.stat(data).st_mode
    except FileNotFoundError:
        raise RequestError(f"no such file or folder: {shown(data)}") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot open {shown(data)}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(mode):
        return True
    if not stat.S_ISREG(mode):
        raise RequestError(f"{shown(data)} is neither a folder nor a file: give the folder that holds the images")
    try:
        if is_parquet(data):
            return False
    except OSError as error:
        raise RequestError(f"cannot open {shown(data)}: {error.strerror or error}") from None
    what = "is a single file" if Path(data).suffix.lower() in EXTENSIONS else "is not a parquet file"
    raise RequestError(f"{shown(data)} {what}: give the folder that holds the images, or a .parquet file")


def _check_train(root: Path, there: list[str], wanted: Sequence[str]) -> None:
    if "train" in wanted and "train" not in there:
        raise RequestError(
            f"{shown(root)} holds {' and '.join(there)} but no train: say what each part is, with --train PATH --val "
            "PATH --test PATH in place of it"
        )


def _scanned(root: Path, by_part: bool = False) -> tuple[list[bytes], bool, Scan]:
    """The images below a folder or, where there are none, its tables; whether they are tables; what was left out.

    Args:
        by_part: a folder that is reached from several parts is gone through for each.
    """
    found = scan(root, branch_of) if by_part else scan(root)
    if not found.images and not found.tables:
        if not found.ignored.line:
            raise RequestError(f"{shown(root)} is empty: give a folder of images or parquet files")
        raise RequestError(
            f"no images in {shown(root)}: found {found.ignored.line}; .jpg, .png, .tif, .npy and .parquet are read"
        )
    if not found.images:
        return found.tables, True, found
    for table in found.tables:  # a metadata.parquet beside images
        found.ignored.add_extension(os.fsdecode(os.path.splitext(table)[1].lower()))
    return found.images, False, found
