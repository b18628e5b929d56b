"""Which image file a COCO file's `file_name` means: by its path, else by its base name."""

import os
import posixpath

from openmae.data.coco.files import split_of
from openmae.data.masks.layouts import IMAGE_FOLDERS, MASK_FOLDERS
from openmae.errors import shown


class ImageLookup:
    """The image files of a split's root, by name.

    A `file_name` is a path that ends an image's path, or where there is none such, a base name. Of several such files
    the one beside the JSON file is meant, else the one in a folder that is named like the split, else one in a folder
    that is named like no split, else one in a folder of images, else one that is near the JSON file; folders of masks
    come last.

    Args:
        images: paths relative to the root.
        json_path: of the JSON file.
        split: whose images they are.
    """

    def __init__(self, images: list[bytes], json_path: bytes, split: str) -> None:
        self._by_base: dict[bytes, list[bytes]] = {}
        for image in images:
            self._by_base.setdefault(posixpath.basename(image), []).append(image)
        self._beside, self._split = posixpath.dirname(json_path), split

    def find(self, file_name: str) -> tuple[bytes | None, str]:
        """The path of an image; or None and the reason."""
        name = os.fsencode(file_name.encode("utf-8", "surrogatepass").decode("utf-8", "replace").replace("\\", "/"))
        name = posixpath.normpath(name).lstrip(b"/")
        while name.startswith(b"../"):
            name = name[3:]
        same_base = self._by_base.get(posixpath.basename(name), [])
        candidates = [path for path in same_base if path == name or path.endswith(b"/" + name)] or same_base
        if not candidates:
            return None, "no such file"
        ranks = [self._rank(path, name) for path in candidates]
        best = [path for path, rank in zip(candidates, ranks, strict=True) if rank == min(ranks)]
        if len(best) > 1:
            return None, f"{' and '.join(shown(os.fsdecode(path)) for path in best[:2])} may both be it"
        return best[0], ""

    def _rank(self, path: bytes, name: bytes) -> tuple[int, ...]:
        """How likely a file is the one that is meant, the lowest first."""
        if path == posixpath.join(self._beside, name):
            return (0,)
        folders = path.lower().split(b"/")[:-1]
        split = split_of(posixpath.join(posixpath.dirname(path), b"_"))
        common = len(posixpath.commonprefix([self._beside.split(b"/"), path.split(b"/")])) if self._beside else 0
        return (
            1 + any(folder in MASK_FOLDERS for folder in folders),  # masks may be called as their images
            0 if split == self._split else 1 if split is None else 2,
            not any(folder in IMAGE_FOLDERS for folder in folders),
            -common,
        )
