"""Formats of boxes that are not read: named where they are found in place of COCO JSON, with how to convert them."""

import os
from collections.abc import Sequence

from openmae.errors import shown

EXTENSIONS_OF_OTHERS = (".xml", ".txt", ".yaml", ".yml")


def formats_instead(files: Sequence[bytes]) -> str:
    """What annotations in other formats are among files, with how to convert them; empty where there are none.

    Args:
        files: paths of files with `EXTENSIONS_OF_OTHERS`.
    """
    for extension, what, advice in (
        (
            b".xml",
            "Pascal VOC's XML",
            "convert it: an image entry for each file, and for each object a bbox [xmin - 1, ymin - 1, xmax - xmin + "
            "1, ymax - ymin + 1]",
        ),
        (
            b".txt",
            "YOLO's text files",
            "convert them: from a line's class, x, y, w, h (shares of the image's width W and height H, x and y the "
            "centre's) a bbox [(x - w/2) W, (y - h/2) H, w W, h H]",
        ),
    ):
        found = [file for file in files if file.lower().endswith(extension) and _is_of_an_image(file)]
        if found:
            count = f"{len(found):,} {extension.decode()} file{'s' * (len(found) > 1)}"
            return f"found {count}, such as {shown(os.fsdecode(found[0]))}, which may be {what}: {advice}"
    return ""


def _is_of_an_image(file: bytes) -> bool:
    """Whether a file may be the annotation of one image, by its name."""
    return os.path.basename(file).lower() not in (b"classes.txt", b"readme.txt", b"requirements.txt")
