"""A COCO JSON file as arrays: its images, its objects, its categories; ids replaced by positions."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmae.config.detector_shape import MAX_DETECT_CLASSES
from openmae.data.coco.files import AnnotationFile
from openmae.data.coco.remarks import Remarks
from openmae.data.coco.shapes import MAX_NUMBER, box_of, checked_segmentation
from openmae.errors import RequestError, shown

Id = int | str


@dataclass(frozen=True, kw_only=True)
class Table:
    """The images and objects of a COCO JSON file, in its order; nothing is left out but what names nothing.

    Attributes:
        file_names: of the images; each once.
        image_ids: the file's id of each image.
        sizes: (n, 2) the height and width that the file states; 0 where it states none.
        owners: (m,) of each object the position of its image.
        boxes: (m, 4) left, top, width and height; NaN where there is no box.
        labels: (m,) class ids, from 0.
        is_crowd: (m,).
        areas: (m,) in square pixels; NaN where the file states none.
        segmentations: of each object, checked; None where it has none or a wrong one.
        is_wrong: (m,) whether it has one that is wrong.
        numbers: the file's id of each object.
    """

    file_names: list[str]
    image_ids: list[Id]
    sizes: NDArray[np.int64]
    owners: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    segmentations: list[Any]
    is_wrong: NDArray[np.bool_]
    numbers: list[Any]

    def name(self, position: int) -> str:
        """What an object is called in messages."""
        return f"annotation {self.numbers[position]} of {self.file_names[self.owners[position]]}"


def read_categories(files: list[AnnotationFile]) -> dict[Id, str]:
    """The names of the categories by id, of all splits, in order of ids.

    Raises:
        RequestError: there is none, an id has two names or is a number here and text there, a name has two ids, or
            there are too many.
    """
    names, kinds = dict[Id, str](), dict[str, type]()
    for file in files:
        for category in file.content["categories"]:
            number = _id_of(category.get("id"))
            if number is None:
                raise RequestError(
                    f"{file.shown}: a category has no id that is a whole number or text "
                    f"({shown(str(category)[:60])}): give it one"
                )
            if kinds.setdefault(str(number), type(number)) is not type(number):
                raise RequestError(
                    f"{file.shown}: category {shown(str(number))} is a number in one place and text in another: write "
                    "all ids as numbers"
                )
            name = str(category.get("name") or f"class {number}")
            if names.setdefault(number, name) != name:
                raise RequestError(
                    f"{file.shown}: category {shown(str(number))} is {shown(name)} and {shown(names[number])}: give "
                    "each category an id of its own, the same in all files"
                )
    _check_names(files)
    if not 1 <= len(names) <= MAX_DETECT_CLASSES:
        raise RequestError(f"{files[0].shown} has {len(names)} categories: expected 1 to {MAX_DETECT_CLASSES}")
    ordered = sorted(names, key=lambda number: (isinstance(number, str), number))
    counts = Counter(names.values())
    return {i: f"{names[i]} ({i})" if counts[names[i]] > 1 else names[i] for i in ordered}


def _check_names(files: list[AnnotationFile]) -> None:
    """Raise RequestError where a class has one id in a file and another one in another: it would be two classes.

    A name that a file has twice says nothing.
    """
    found = dict[str, tuple[Id | None, str]]()
    for file in files:
        categories = [
            (str(one["name"]), _id_of(one.get("id"))) for one in file.content["categories"] if one.get("name")
        ]
        counts = Counter(name for name, _ in categories)
        for name, number in categories:
            first, where = found.setdefault(name, (number, file.shown)) if counts[name] == 1 else (number, "")
            if first != number:
                raise RequestError(
                    f"category {shown(name)} is {first} in {where} and {number} in {file.shown}: give it the same id "
                    "in all files"
                )


def read_table(file: AnnotationFile, categories: dict[Id, str], remarks: Remarks, boxes_only: bool = False) -> Table:
    """Read a file's images and objects; what names no image or no category is left out, and `remarks` are told.

    Args:
        boxes_only: look at segmentations of objects without a box alone.

    Raises:
        RequestError: there are no images or no objects that name one, two images have one id, or no category is known.
    """
    file_names, image_ids, sizes, positions = _images(file, remarks)
    labels_of = {number: label for label, number in enumerate(categories)}
    rows, seen = list[tuple[Any, ...]](), dict[Any, tuple[Any, ...]]()
    segmentations, numbers, unknown = list[Any](), list[Any](), [0, 0]
    for one in file.content["annotations"]:
        number, image, category = (_id_of(one.get(key)) for key in ("id", "image_id", "category_id"))
        owner = None if image is None else positions.get(image)
        label = None if category is None else labels_of.get(category)
        if owner is None or label is None:
            what = "images" if owner is None else "categories"
            remarks.add(f"annotations of {what} that the file does not list, dropped", f"annotation {number}")
            unknown[owner is not None] += 1
            continue
        name, same = f"annotation {number} of {file_names[owner]}", (owner, label, str(one.get("bbox")))
        if number is not None and seen.setdefault(number, same) == same and seen[number] is not same:
            remarks.add("annotations that stand there twice, taken once", name)
            continue
        box = _box(one.get("bbox"))
        is_read = box is None or not boxes_only
        segmentation, reason = checked_segmentation(one.get("segmentation")) if is_read else (None, "")
        if reason:
            remarks.add(f"{reason}, {'left out' if segmentation else 'dropped with their objects'}", name)
        if box is None and segmentation:
            left, top, right, bottom = box_of(segmentation)
            box = (left, top, right - left, bottom - top)
        area, is_crowd = _number(one.get("area")), one.get("iscrowd") in (1, True, "1")
        rows.append((owner, label, is_crowd, area, bool(reason) and not segmentation, *(box or (math.nan,) * 4)))
        segmentations.append(segmentation)
        numbers.append(number)
    _check_known(file, unknown, len(rows))
    values = np.array(rows, np.float64).reshape(-1, 9)
    return Table(
        file_names=file_names,
        image_ids=image_ids,
        sizes=sizes,
        owners=values[:, 0].astype(np.int64),
        boxes=values[:, 5:].copy(),
        labels=values[:, 1].astype(np.int64),
        is_crowd=values[:, 2] > 0,
        areas=values[:, 3].copy(),
        segmentations=segmentations,
        is_wrong=values[:, 4] > 0,
        numbers=numbers,
    )


def _images(file: AnnotationFile, remarks: Remarks) -> tuple[list[str], list[Id], NDArray[np.int64], dict[Id, int]]:
    """File names, ids and stated sizes of the images, and the position of each id."""
    names, ids, sizes = list[str](), list[Id](), list[tuple[int, int]]()
    positions, by_name = dict[Id, int](), dict[str, int]()
    for image in file.content["images"]:
        number, name = _id_of(image.get("id")), image.get("file_name")
        if number is None or not isinstance(name, str) or not name:
            remarks.add("images without id or file_name, left out", str(image)[:60])
            continue
        position = by_name.setdefault(name, len(names))
        if positions.setdefault(number, position) != position:
            raise RequestError(
                f"{file.shown}: {shown(names[positions[number]])} and {shown(name)} have one id, {number}: which "
                "objects are whose is not clear"
            )
        if position < len(names):
            remarks.add("images that are listed twice, taken once", name)
            continue
        names.append(name)
        ids.append(number)
        height, width = _number(image.get("height")), _number(image.get("width"))
        is_stated = height >= 1 and width >= 1
        sizes.append((int(height), int(width)) if is_stated else (0, 0))
    if not names:
        raise RequestError(f"{file.shown} lists no images: expected entries with id and file_name")
    return names, ids, np.array(sizes, np.int64).reshape(-1, 2), positions


def _check_known(file: AnnotationFile, unknown: list[int], num_known: int) -> None:
    """Raise RequestError where no object of a file has a known image and category."""
    if num_known or not any(unknown):
        return
    key = "image_id" if unknown[0] else "category_id"
    listed = "images" if unknown[0] else "categories"
    example = next((one.get(key) for one in file.content["annotations"]), None)
    there = next((one.get("id") for one in file.content[listed]), None)
    raise RequestError(
        f"{file.shown}: no annotation's {key} is the id of one of its {listed}: the first is {shown(repr(example))}, "
        f"the {listed}' first {shown(repr(there))}"
    )


def _id_of(value: Any) -> Id | None:
    """An id, of which 7 and 7.0 are the same; None for what is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _number(value: Any) -> float:
    """A finite number that is not negative; NaN for anything else."""
    return float(value) if _is_number(value) and value >= 0 else math.nan


def _is_number(value: Any) -> bool:
    """Whether it is a number of a size that means something in an image."""
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER


def _box(value: Any) -> tuple[float, float, float, float] | None:
    """Left, top, width, height; NaN for what are no four numbers, None where there is no box."""
    if value is None or value == []:
        return None
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        return (math.nan,) * 4
    left, top, width, height = map(float, value)
    return left, top, width, height
