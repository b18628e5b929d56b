"""A split of annotated images, matched with its files: which can be used, with which objects."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openmae.data.coco.clean import check_format, clean
from openmae.data.coco.files import AnnotationFile
from openmae.data.coco.lookup import ImageLookup
from openmae.data.coco.objects import Objects
from openmae.data.coco.remarks import Remarks
from openmae.data.coco.source import AnnotatedSource, Id
from openmae.data.coco.table import Table, read_table
from openmae.data.decoding.decode import BadImage
from openmae.data.sources.folder import FolderSource, Ignored
from openmae.errors import RequestError, shown
from openmae.machine.device import num_cores
from openmae.machine.parallel import Processes


@dataclass(frozen=True, kw_only=True)
class AnnotatedSplit:
    """The images of a COCO file that can be used, and what was found wrong.

    Attributes:
        file: the path of the JSON file, for messages.
        root, images: the image files, sorted; each is listed in the JSON file and can be read as far as its header.
        image_ids, objects: of these images.
        bad: the reason, by name, for each other image of the JSON file.
        without_mask: the names of objects that are no crowds and have no segmentation.
        remarks: what was dropped, clipped, or listed twice.
    """

    file: str
    root: Path
    images: list[bytes]
    image_ids: list[Id]
    objects: Objects
    bad: dict[str, str]
    without_mask: list[str]
    remarks: Remarks

    def open(self, classes: tuple[str, ...], ignored: Ignored, reading: dict[str, Any]) -> AnnotatedSource:
        """The source of its images."""
        return AnnotatedSource(
            self.root, self.images, self.objects, self.image_ids, classes=classes, ignored=ignored, **reading
        )


def match_split(
    file: AnnotationFile,
    categories: dict[Id, str],
    reading: dict[str, Any],
    boxes_only: bool = False,
    processes: Processes | None = None,
) -> AnnotatedSplit:
    """Find the image files of a split's COCO file, compare their sizes with it, and clean its objects.

    An image is bad where its file is missing, its header cannot be read, or its size is another than the COCO file
    says: the pixels of the file count, turned as its EXIF says, and boxes of another frame would be wrong on them.

    Args:
        reading: what `FolderSource` takes to read images.
        boxes_only: leave segmentations out.
        processes: each reads its share of headers, and all get the same; None: this one reads all.

    Raises:
        RequestError: none of the images can be used, the boxes seem to be in another format, or see `read_table`.
    """
    remarks = Remarks()
    table = read_table(file, categories, remarks, boxes_only)
    lookup, bad, positions = ImageLookup(file.images, file.path, file.split), dict[str, str](), dict[bytes, int]()
    for position, file_name in enumerate(table.file_names):
        path, reason = lookup.find(file_name)
        if path is None:
            bad[file_name] = reason
        elif positions.setdefault(path, position) != position:
            bad[file_name] = "the file of another image of the list"
    images = sorted(positions)
    source = FolderSource(file.root, images, **reading)
    sizes = np.zeros((len(table.file_names), 2), np.int64)
    kept, order = list[bytes](), list[int]()
    for index, (path, size) in enumerate(zip(images, _sizes(source, processes), strict=True)):
        position = positions[path]
        reason = size if isinstance(size, str) else _size_reason(source, index, size, table.sizes[position].tolist())
        if reason:
            bad[source.name(index)] = reason
        else:
            sizes[position] = size
            kept.append(path)
            order.append(position)
    if not kept:
        name, reason = next(iter(bad.items()))
        raise RequestError(
            f"none of the {len(table.file_names):,} images that {file.shown} lists can be used of those in "
            f"{shown(file.folder)}: {shown(name)}: {reason}"
        )
    check_format(file.shown, table, sizes)
    objects, without_mask = clean(_in_order(table, order), sizes[order], remarks, boxes_only)
    return AnnotatedSplit(
        file=file.shown,
        root=file.root,
        images=kept,
        image_ids=[table.image_ids[position] for position in order],
        objects=objects,
        bad=bad,
        without_mask=without_mask,
        remarks=remarks,
    )


def _sizes(source: FolderSource, processes: Processes | None) -> list[tuple[int, int] | str]:
    """Height and width of each image from its header, turned as EXIF says; or the reason why it cannot be read."""

    def size_of(index: int) -> tuple[int, int] | str:
        try:
            return source.size(index)
        except BadImage as error:
            return str(error)

    share: Iterable[int] = range(len(source)) if processes is None else processes.share(len(source))
    with ThreadPoolExecutor(max(1, num_cores() // (1 if processes is None else processes.local_count))) as pool:
        sizes = list(pool.map(size_of, share, chunksize=64))
    if processes is None:
        return sizes
    return [size for of_process in processes.gather(sizes) for size in of_process]  # in the order of ranks


def _size_reason(source: FolderSource, index: int, size: tuple[int, int], stated: list[int]) -> str:
    """Why an image cannot be used with boxes of an image of the `stated` size; empty where it can."""
    if list(size) == stated or 0 in stated:
        return ""
    turned = ", which EXIF turns" if list(size) == stated[::-1] and source.header(index).orientation != 1 else ""
    return f"annotated at {stated[0]} x {stated[1]} pixels, but the file has {size[0]} x {size[1]}{turned}"


def _in_order(table: Table, order: list[int]) -> Table:
    """The table of the images at these positions, in this order, and of their objects."""
    places = np.full(len(table.file_names), -1, np.int64)
    places[order] = np.arange(len(order))
    kept = np.flatnonzero(places[table.owners] >= 0)
    return Table(
        file_names=[table.file_names[position] for position in order],
        image_ids=[table.image_ids[position] for position in order],
        sizes=table.sizes[order],
        owners=places[table.owners[kept]],
        boxes=table.boxes[kept],
        labels=table.labels[kept],
        is_crowd=table.is_crowd[kept],
        areas=table.areas[kept],
        segmentations=[table.segmentations[i] for i in kept.tolist()],
        is_wrong=table.is_wrong[kept],
        numbers=[table.numbers[i] for i in kept.tolist()],
    )
