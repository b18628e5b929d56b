"""DATA: a folder of images, parquet in the Hugging Face layout, a pack, photographs inside the wheel; and their splits.

A source is an index -> sample table that is cheap to open, keeps no file open, and may be pickled or forked.
"""

import itertools
import os
import re
import stat
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from openmae.data.axes import decide_axes, shapes_of_bytes, shapes_of_files
from openmae.data.decode import EXTENSIONS, MAX_PIXELS
from openmae.data.embedded import embedded_source
from openmae.data.folder import FolderSource, Ignored, class_names, scan
from openmae.data.packed import PackedSource, read_pack
from openmae.data.parquet import ParquetSource, first_images, is_parquet
from openmae.errors import RequestError, shown

# A class; with several for an image, zeros and ones, one for each class; numbers to predict; None where unknown.
Label = int | NDArray[np.float32] | NDArray[np.float64] | None
SPLITS = ("train", "val", "test")
_SPLIT = re.compile(rb"(train(ing)?|val(id(ation)?)?|test(ing)?)([^a-z].*)?", re.IGNORECASE | re.DOTALL)


class Source(Protocol):
    """A table of samples.

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


def open_source(
    data: str,
    split: str = "train",
    *,
    background: float = 1.0,
    max_pixels: int = MAX_PIXELS,
    axes: str | None = None,
    usual_axes: str | None = None,
) -> Source | None:
    """Open the `split` (train, val or test) of DATA: a folder, parquet file or folder, a pack, `embedded:NAME`.

    Children called train*, val*, test* are splits if all children that hold data are called so; otherwise everything is
    `train`. One folder around them all is looked through. Returns None for a val or test that is not there.
    `axes` says the order of `.npy` files of three dimensions; None decides it for all splits alike, by the shapes of
    some and, where those do not tell, by `usual_axes`.
    Raises RequestError, one line, for DATA that cannot be used, has splits but no train, or has axes that do not tell.
    """
    if split not in SPLITS:
        raise RequestError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    if data.startswith("embedded:"):
        return embedded_source(data.removeprefix("embedded:"), split)
    options: dict[str, Any] = {"background": background, "max_pixels": max_pixels}
    try:
        mode = os.stat(data).st_mode
        if stat.S_ISREG(mode):
            if not is_parquet(data):
                what = "is a single file" if Path(data).suffix.lower() in EXTENSIONS else "is not a parquet file"
                raise RequestError(f"{shown(data)} {what}: give the folder that holds the images, or a .parquet file")
            if split != "train":
                return None
            options["axes"] = decide_axes(shapes_of_bytes(first_images(Path(data))), axes, usual_axes)
            return ParquetSource([Path(data)], **options)
        if not stat.S_ISDIR(mode):
            raise RequestError(f"{shown(data)} is neither a folder nor a file: give the folder that holds the images")
    except FileNotFoundError:
        raise RequestError(f"no such file or folder: {shown(data)}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"cannot open {shown(data)}: {getattr(error, 'strerror', None) or error}") from None
    manifest = read_pack(Path(data))
    if manifest is not None:
        return _open_pack(Path(data), manifest, split, options)
    return _open_folder(Path(data), split, options, (axes, usual_axes))


def _open_pack(root: Path, manifest: dict[str, Any], split: str, options: dict[str, Any]) -> Source | None:
    if split in manifest["splits"]:
        return PackedSource(root, manifest, split, **options)
    if split == "train":
        raise RequestError(f"{shown(root)} holds {' and '.join(manifest['splits'])} but no train")
    return None


def _open_folder(root: Path, split: str, options: dict[str, Any], axes: tuple[str | None, str | None]) -> Source | None:
    images, tables, ignored = scan(root)
    files = images or tables
    if not files:
        if ignored.count == 0:
            raise RequestError(f"{shown(root)} is empty: give a folder of images or parquet files")
        raise RequestError(f"no images in {shown(root)}: found {ignored}; .jpg, .png, .tif, .npy and .parquet are read")
    groups, depth = _split_groups(files, is_table=not images)
    if "train" not in groups and split == "train":
        raise RequestError(f"{shown(root)} holds {' and '.join(groups)} but no train: give the split's folder itself")
    if split not in groups:
        return None
    if not images:
        options["axes"] = decide_axes(shapes_of_bytes(first_images(root / os.fsdecode(tables[0]))), *axes)
        return ParquetSource([root / os.fsdecode(file) for file in groups[split]], root=root, **options)
    for table in tables:  # a metadata.parquet beside images
        ignored.add_extension(os.fsdecode(os.path.splitext(table)[1].lower()))
    options["axes"] = decide_axes(shapes_of_files(root, images), *axes)
    # One list of classes for all splits, so that a class absent from one of them shifts no label.
    per_split = [class_names(group, depth) for group in groups.values()]
    classes = sorted({name for names in per_split for name in names or ()})
    return FolderSource(root, groups[split], class_depth=depth, classes=classes or None, ignored=ignored, **options)


def _split_groups(files: list[bytes], is_table: bool) -> tuple[dict[str, list[bytes]], int]:
    """Files by split, and the depth at which their class folders would be; without splits all are train, at depth 0."""
    for depth in itertools.count():
        heads = _heads(files, depth)
        names = {head: _split_name(head, is_file) for head, is_file in heads.items()}
        # Image files, unlike folders and tables, need two splits among them: test_001.png ... alone are no test set.
        convincing = is_table or not all(heads.values()) or len(set(names.values())) > 1
        if all(names.values()) and convincing:
            groups: dict[str, list[bytes]] = {}
            for file in files:
                groups.setdefault(str(names[file.split(b"/", depth + 1)[depth]]), []).append(file)
            return {split: groups[split] for split in SPLITS if split in groups}, depth + 1
        found = {split for split in names.values() if split}
        if "train" in found and len(found) > 1:  # or held-out images would be trained on, because of one stray file
            strange = [shown(os.fsdecode(head)) for head, split in names.items() if split is None]
            raise RequestError(
                f"beside {' and '.join(sorted(found))} lie {', '.join(strange[:3])}: move what is no split "
                "elsewhere, or give the folder of one split"
            )
        if len(heads) > 1 or any(heads.values()):
            break
    return {"train": files}, 0


def _heads(files: list[bytes], depth: int) -> dict[bytes, bool]:
    """The names at `depth` of the files' paths, each with whether it is a file."""
    return {parts[depth]: len(parts) == depth + 1 for parts in (file.split(b"/", depth + 1) for file in files)}


def _split_name(name: bytes, is_file: bool) -> str | None:
    match = _SPLIT.fullmatch(os.path.splitext(name)[0] if is_file else name)
    return next(split for split in SPLITS if match[1].lower().startswith(split.encode())) if match else None
