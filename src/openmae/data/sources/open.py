"""Opening DATA and its splits: an image folder, parquet in the Hugging Face layout, a pack, or embedded photographs.

A source is a map-style data set that is cheap to open, keeps no file open, and may be pickled or forked.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from openmae.config import SPLITS, Dataset, SplitPaths
from openmae.config.checks import OFF
from openmae.data.decoding.decode import MAX_PIXELS
from openmae.data.sources.axes import decide_axes, shapes_of_bytes
from openmae.data.sources.embedded import embedded_source
from openmae.data.sources.folder import FolderSource as FolderSource
from openmae.data.sources.folder import Ignored
from openmae.data.sources.folder_part import FolderPart, leak_warning, leak_warnings
from openmae.data.sources.manifest import read_pack
from openmae.data.sources.named import EMBEDDED, is_folder
from openmae.data.sources.packed import PackedSource
from openmae.data.sources.parquet import ParquetSource, first_images
from openmae.data.sources.scan import Scan, scan, without_repeats
from openmae.data.sources.split_names import SPLIT_RULES, Layout, branch_of, find_layout, split_origin, whole_layout
from openmae.errors import RequestError, shown

# A class id; multi-label: zeros and ones, one for each class; regression: the targets; None where unknown.
Label = int | NDArray[np.float32] | NDArray[np.float64] | None


class Source(Protocol):
    """Images by index, each with a name and perhaps a label: what all loaders read from.

    `classes` are the class names where they are known (a source may have labels without them); `ignored` says which
    files were left out.
    """

    classes: tuple[str, ...] | None
    ignored: Ignored

    def __len__(self) -> int: ...
    def name(self, index: int) -> str:
        """A stable, unique name: the path within the data, or `file.parquet#row`. May contain any character."""
        ...

    def label(self, index: int) -> Label: ...
    def read(self, index: int) -> np.ndarray:
        """The decoded image, H x W x C, see `decode`. Raises BadImage, also for a file that has vanished."""
        ...

    def fingerprint(self) -> str:
        """A hash that changes with the data; cheap, so of names and sizes, not of file contents."""
        ...


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The splits of a data set ("parts" in messages), and where they were found.

    Attributes:
        sources: by split, those that were requested and exist.
        origins: by split, opened or not: the folders or files it was taken from, as text.
        note: a remark that follows the origins.
        ignored: files that were left out, a line for each folder that was searched.
        warnings: reasons to distrust a metric, such as training images in the validation split.
    """

    sources: dict[str, Source]
    origins: dict[str, str]
    note: str = ""
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The splits, their origins and sizes in one line."""
        counts = {s: f" ({len(src):,} image{'s' * (len(src) != 1)})" for s, src in self.sources.items()}
        text = ", ".join(f"{split} from {what}{counts.get(split, '')}" for split, what in self.origins.items())
        return text + self.note

    @property
    def lines(self) -> list[str]:
        """What is printed about the splits: origins, ignored files, warnings."""
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
    """Open the `split` (train, val or test) of a data set, see `open_splits`; None where there is none.

    Raises:
        RequestError: see `open_splits`; or an unknown split.
    """
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
    """Open those of the `wanted` splits of a data set that exist.

    DATA is a folder, a parquet file or folder, a pack, or `embedded:NAME`; its splits are found by the names of folders
    and files in it, see `find_layout`. Each path of `SplitPaths` (--train PATH --val PATH --test PATH) is a split.

    Args:
        background: what alpha is composited on, 0 black to 1 white.
        max_pixels: larger images are unreadable.
        axes: the order of channels, rows and columns in `.npy` files of three dimensions; None: it is decided for all
            splits alike, wanted or not, from the shapes of some files.
        default_axes: the order where the shapes are ambiguous.
        nodata: which values are nodata, see `decode`.
        split_rules: version of the rules by which splits are found (`SPLIT_RULES`), which runs store; None: the newest.

    Raises:
        RequestError: the data cannot be used, has splits but no train split although that is wanted, or the order of
            its axes is ambiguous.
    """
    options: dict[str, Any] = {"background": background, "max_pixels": max_pixels, "nodata": nodata}
    if isinstance(data, SplitPaths):
        return _open_named(data.paths, wanted, options, (axes, default_axes))
    if data.startswith(EMBEDDED):
        opened = {split: embedded_source(data.removeprefix(EMBEDDED), split) for split in wanted}
        sources: dict[str, Source] = {split: source for split, source in opened.items() if source is not None}
        return Splits(sources=sources, origins=dict.fromkeys(sources, shown(data)))
    root = Path(data)
    if not is_folder(data):
        if "train" not in wanted:
            return Splits(sources={}, origins={"train": shown(root)})
        options["axes"] = decide_axes(shapes_of_bytes(first_images(root)), axes, default_axes)
        return Splits(sources={"train": ParquetSource([root], **options)}, origins={"train": shown(root)})
    manifest = read_pack(root)
    if manifest is not None:
        existing = list(manifest["splits"])
        _check_train(root, existing, wanted)
        packs: dict[str, Source] = {s: PackedSource(root, manifest, s, **options) for s in wanted if s in existing}
        return Splits(sources=packs, origins={split: f"the pack {shown(root)}" for split in existing})
    rules = SPLIT_RULES if split_rules is None else split_rules
    files, is_table, scanned = _scan_data(root, by_part=rules >= 2)
    layout = find_layout(root, files, is_table, rules)
    _check_train(root, list(layout.groups), wanted)
    parts = {
        split: FolderPart(
            root=root,
            files=without_repeats(group, scanned),
            depth=layout.depth,
            is_table=is_table,
            ignored=scanned.ignored,
        )
        for split, group in layout.groups.items()
    }
    used = {split: part for split, part in parts.items() if split == "train" or split in wanted}
    # One list of classes for all splits, so that a class absent from one of them shifts no label.
    classes = sorted({name for part in parts.values() for name in part.class_names})
    if any(split in wanted for split in parts):
        whole = FolderPart(root=root, files=files, depth=0, is_table=is_table, ignored=scanned.ignored)
        options["axes"] = decide_axes(whole.shapes(), axes, default_axes)
    return Splits(
        sources={split: part.open(classes, options) for split, part in parts.items() if split in wanted},
        origins={split: split_origin(layout, split, root) for split in layout.groups},
        note=_note(layout),
        ignored=(scanned.ignored.line,) if scanned.ignored.line else (),
        warnings=tuple(leak_warnings(used)) if scanned.has_links else (),
    )


def _note(layout: Layout) -> str:
    """The remark about folders that are named like splits but are classes."""
    names = [shown(os.fsdecode(name)) for name in layout.classes_like_splits]
    if not names:
        return ""
    text = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"; {text} are no parts but classes, for no train is among them (--train, --val and --test say otherwise)"


def _open_named(
    paths: dict[str, str], wanted: Sequence[str], options: dict[str, Any], axes: tuple[str | None, str | None]
) -> Splits:
    """Open each split from its own path. Image names begin with the folder's name, so that those of splits differ."""
    found: dict[str, Source | FolderPart] = {}
    beside: list[FolderPart] = []
    for split, path in paths.items():
        if split in wanted:
            found[split] = _find_part(split, path, options)
        elif axes[0] is None:
            with suppress(RequestError):  # reported when this split is wanted
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
    # Class names of a table or a pack come in an order that its labels index.
    opened = (sources[split] for split in found if split in sources)
    class_list = next((list(s.classes) for s in opened if s.classes and names <= set(s.classes)), None)
    sources |= {
        split: part.open(class_list or sorted(names), options) for split, part in parts.items() if not part.is_table
    }
    return Splits(
        sources={split: sources[split] for split in found},
        origins={split: shown(paths[split]) for split in found},
        ignored=tuple(f"of {split}: {line}" for split in found if (line := sources[split].ignored.line)),
        warnings=tuple(warnings),
    )


def _find_part(split: str, path: str, options: dict[str, Any]) -> "Source | FolderPart":
    """The split at its own path: opened, or for files, a `FolderPart` that is opened when all class names are known."""
    if path.startswith(EMBEDDED):
        source = embedded_source(path.removeprefix(EMBEDDED), split)
        if source is None:
            raise RequestError(f"--{split} {shown(path)}: it has no {split} part")
        return source
    root = Path(path)
    parent, name = os.path.split(os.path.abspath(root))
    if not is_folder(path):
        return FolderPart(root=Path(parent), files=[os.fsencode(name)], depth=0, is_table=True, ignored=Ignored())
    manifest = read_pack(root)
    if manifest is not None:
        existing = list(manifest["splits"])
        if split not in existing and len(existing) > 1:
            raise RequestError(f"--{split} {shown(path)}: the pack holds {' and '.join(existing)} but no {split}")
        return PackedSource(root, manifest, split if split in existing else existing[0], **options)
    files, is_table, scanned = _scan_data(root)
    depth = whole_layout(root, files, is_table, split).depth
    if name:  # empty only for the root directory
        files, depth = [os.path.join(os.fsencode(name), file) for file in files], depth + 1
    return FolderPart(root=Path(parent), files=files, depth=depth, is_table=is_table, ignored=scanned.ignored)


def _check_train(root: Path, existing: list[str], wanted: Sequence[str]) -> None:
    if "train" in wanted and "train" not in existing:
        raise RequestError(
            f"{shown(root)} holds {' and '.join(existing)} but no train: say what each part is, with --train PATH "
            "--val PATH --test PATH in place of it"
        )


def _scan_data(root: Path, by_part: bool = False) -> tuple[list[bytes], bool, Scan]:
    """The images below a folder or, where there are none, its parquet files; whether they are these; the whole scan.

    Args:
        by_part: a folder that is linked from several splits is searched for each of them.
    """
    scanned = scan(root, branch_of) if by_part else scan(root)
    if not scanned.images and not scanned.tables:
        if not scanned.ignored.line:
            raise RequestError(f"{shown(root)} is empty: give a folder of images or parquet files")
        raise RequestError(
            f"no images in {shown(root)}: found {scanned.ignored.line}; .jpg, .png, .tif, .npy and .parquet are read"
        )
    if not scanned.images:
        return scanned.tables, True, scanned
    for table in scanned.tables:  # a metadata.parquet beside images
        scanned.ignored.add_extension(os.fsdecode(os.path.splitext(table)[1].lower()))
    return scanned.images, False, scanned
