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
    come last. Where there is a folder of the split, a base name never means an image in the folder of another: images
    are numbered alike in many, and the boxes would be another image's.

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
        self._has_own_folder = any(_split_of_folder(folder) == split for folder in set(map(posixpath.dirname, images)))

    def find(self, file_name: str) -> tuple[bytes | None, str]:
        """The path of an image; or None and the reason."""
        name = os.fsencode(file_name.encode("utf-8", "surrogatepass").decode("utf-8", "replace").replace("\\", "/"))
        name = posixpath.normpath(name).lstrip(b"/")
        while name.startswith(b"../"):
            name = name[3:]
        same_base = self._by_base.get(posixpath.basename(name), [])
        named = [path for path in same_base if path == name or path.endswith(b"/" + name)]
        candidates = named or same_base
        if self._has_own_folder and not (named and b"/" in name):
            candidates = [path for path in candidates if not self._is_of_another_split(path)]
            if same_base and not candidates:
                other = shown(os.fsdecode(same_base[0]))
                return None, f"no such file in a folder of {self._split}; file_name needs its folder if {other} is it"
        if not candidates:
            return None, "no such file"
        ranks = [self._rank(path, name) for path in candidates]
        best = [path for path, rank in zip(candidates, ranks, strict=True) if rank == min(ranks)]
        if len(best) > 1:
            return None, f"{' and '.join(shown(os.fsdecode(path)) for path in best[:2])} may both be it"
        return best[0], ""

    def _is_of_another_split(self, path: bytes) -> bool:
        folder = posixpath.dirname(path)
        return folder != self._beside and _split_of_folder(folder) not in (None, self._split)

    def _rank(self, path: bytes, name: bytes) -> tuple[int, ...]:
        """How likely a file is the one that is meant, the lowest first."""
        if path == posixpath.join(self._beside, name):
            return (0,)
        folders = path.lower().split(b"/")[:-1]
        split = _split_of_folder(posixpath.dirname(path))
        common = len(posixpath.commonprefix([self._beside.split(b"/"), path.split(b"/")])) if self._beside else 0
        return (
            1 + any(folder in MASK_FOLDERS for folder in folders),  # masks may be called as their images
            0 if split == self._split else 1 if split is None else 2,
            not any(folder in IMAGE_FOLDERS for folder in folders),
            -common,
        )


def _split_of_folder(folder: bytes) -> str | None:
    """The split that the names of a folder and those around it say."""
    return split_of(posixpath.join(folder, b"_"))
