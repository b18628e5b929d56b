"""Finding the COCO JSON file of each split of DATA, by the words in its name and in the names of its folders."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmae.config import SPLITS, Dataset, SplitPaths, paths_of
from openmae.data.coco.other_formats import EXTENSIONS_OF_OTHERS, formats_instead
from openmae.data.sources.folder import Ignored
from openmae.data.sources.named import EMBEDDED, folder_of, is_folder, is_json
from openmae.data.sources.scan import Scan, scan
from openmae.errors import RequestError, quoted, shown

LAYOUT = (
    "images and a COCO JSON file for each split, with train, val or test in its name or its folder's, beside or above "
    "the images: instances_train.json and instances_val.json, annotations/…, train/_annotations.coco.json"
)
_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing", "holdout"), "test"),
}
_NAMED = 3


class NoAnnotations(RequestError):
    """DATA has no COCO JSON with boxes; whatever else it holds may be data of another kind."""


@dataclass(frozen=True, kw_only=True)
class AnnotationFile:
    """The COCO JSON file of a split.

    Attributes:
        folder: in which images are looked for.
        path: of the JSON file, relative to the root.
        content: what it holds.
        root: what image paths are relative to; the name of an image begins with its path from there.
        images: the paths of all image files below the root, sorted.
        split: train, val or test.
    """

    folder: Path
    path: bytes
    content: dict[str, Any]
    root: Path
    images: list[bytes]
    split: str

    @property
    def shown(self) -> str:
        return shown(self.root / os.fsdecode(self.path))


@dataclass(frozen=True, kw_only=True)
class FoundFiles:
    """The JSON files of DATA's splits, in the order of `SPLITS`; what was left alone, a line each in `notes`."""

    parts: dict[str, AnnotationFile]
    ignored: Ignored
    notes: tuple[str, ...] = ()


def find_annotation_files(dataset: Dataset) -> FoundFiles:
    """Find and read the COCO JSON file of each split.

    DATA is a folder, in which the split is a word in the name of the JSON file or of a folder; or there is a path for
    each split, a folder or the JSON file itself. Of several JSON files of a split the one of instances is taken; JSON
    that holds no boxes (captions, labels, lists of images) is left alone.

    Raises:
        NoAnnotations: there is no COCO JSON with boxes in any of it; other formats are named, with how to convert them.
        RequestError: a split that is given has none, there is none of train, several may be a split's, or a path is
            not there.
    """
    notes, ignored = list[str](), Ignored()
    if isinstance(dataset, SplitPaths):
        parts = _files_of_paths(dataset, notes, ignored)
    else:
        parts = _files_of_folder(dataset, notes, ignored)
    if "train" not in parts:
        what = f", which has {' and '.join(parts)}" if parts else ""
        why = f": {notes[-1]}" if notes else ""
        raise RequestError(f"no train part with COCO annotations in {shown(str(dataset))}{what}{why}; give {LAYOUT}")
    return FoundFiles(parts=parts, ignored=ignored, notes=tuple(notes))


def has_annotations(dataset: Dataset) -> bool:
    """Whether DATA holds images and COCO JSON with objects, or names JSON.

    Raises:
        RequestError: it holds some, and cannot be used as it is (see `find_annotation_files`).
    """
    if any(map(is_json, paths_of(dataset))):  # which no other data is: what is wrong with it is said where it is opened
        return True
    try:
        find_annotation_files(dataset)
    except NoAnnotations:
        return False
    return True


def split_of(path: bytes) -> str | None:
    """The split that the words in a JSON file's name say, else those in its folders' names, the innermost first."""
    *folders, name = os.fsdecode(path).split("/")
    for part in (os.path.splitext(name)[0], *reversed(folders)):
        splits = [_WORDS[word] for word in _words(part) if word in _WORDS]
        if splits:
            return splits[0]
    return None


def _files_of_paths(dataset: SplitPaths, notes: list[str], ignored: Ignored) -> dict[str, AnnotationFile]:
    """The JSON file of each split that has a path. Raises NoAnnotations where none has one, else RequestError."""
    parts, missing = dict[str, AnnotationFile](), list[NoAnnotations]()
    for split, path in dataset.paths.items():
        try:
            parts[split] = _file_of_split(split, path, notes, ignored)
        except NoAnnotations as error:
            missing.append(error)
    if parts and missing:
        raise RequestError(str(missing[0]))
    if missing:
        raise missing[0]
    return parts


def _files_of_folder(path: str, notes: list[str], ignored: Ignored) -> dict[str, AnnotationFile]:
    _check_path(path, "")
    if not is_folder(path):
        raise NoAnnotations(f"{shown(path)} is a table: give {LAYOUT}")
    root, by_split = Path(path), dict[str | None, list[bytes]]()
    scanned = _scanned(root, ignored)
    jsons = [file for file in scanned.others if file.lower().endswith(b".json")]
    for file in jsons:
        by_split.setdefault(split_of(file), []).append(file)
    if set(by_split) == {None}:  # no name says a split: as elsewhere, all of it is train then
        by_split = {"train": jsons}
    parts = {}
    for split in SPLITS:
        found = _chosen(root, by_split.get(split, []), notes, f"{split} of {shown(path)}")
        if found is not None:
            parts[split] = AnnotationFile(
                folder=root, path=found[0], content=found[1], root=root, images=scanned.images, split=split
            )
    if not parts:
        raise NoAnnotations(f"no COCO JSON with boxes in {shown(path)}: {_instead(scanned, notes)}; give {LAYOUT}")
    if None in by_split:
        notes.append(f"left alone, for no name says which split it is: {_named(by_split[None])}")
    return parts


def _file_of_split(split: str, path: str, notes: list[str], ignored: Ignored) -> AnnotationFile:
    """The JSON file of `--split PATH`: this file, or the one in this folder."""
    flag = f"--{split} "
    _check_path(path, flag)
    if is_json(path):
        folder = Path(folder_of(path))
        own = Path(path).absolute().parent
        if folder != own and own.name != "annotations":
            notes.append(f"no image lies beside {shown(path)}: its images are looked for in {shown(folder)}")
        jsons = [os.fsencode(os.path.relpath(os.path.abspath(path), folder))]
        scanned = _scanned(folder, ignored)
    elif is_folder(path):
        folder = Path(path)
        scanned = _scanned(folder, ignored)
        jsons = [file for file in scanned.others if file.lower().endswith(b".json")]
        of_split = [file for file in jsons if split_of(file) == split]
        jsons = of_split or [file for file in jsons if split_of(file) is None] or jsons
    else:
        raise NoAnnotations(f"{flag}{shown(path)} is a table: give a folder of images and COCO JSON, or the JSON file")
    found = _chosen(folder, jsons, notes, f"{flag}{shown(path)}")
    if found is None:
        raise NoAnnotations(
            f"no COCO JSON with boxes in {flag}{shown(path)}: {_instead(scanned, notes)}; give {LAYOUT}"
        )
    # Names of images begin with the folder's, so that those of splits differ.
    parent, name = os.path.split(os.path.abspath(folder))
    within = [os.path.join(os.fsencode(name), file) for file in scanned.images]
    json_path = os.path.join(os.fsencode(name), found[0])
    return AnnotationFile(
        folder=folder, path=json_path, content=found[1], root=Path(parent), images=within, split=split
    )


def _check_path(path: str, flag: str) -> None:
    if path.startswith(EMBEDDED):
        raise NoAnnotations(f"{flag}{shown(path)}: the images in the wheels have no boxes: give {LAYOUT}")
    if not flag and is_json(path):
        raise RequestError(
            f"{shown(path)} is a file: give the folder around it and its images, or --train {quoted(path)}"
        )


def _scanned(root: Path, ignored: Ignored) -> Scan:
    """What lies below a folder; what is neither an image nor JSON is ignored."""
    found = scan(root, also=(".json", *EXTENSIONS_OF_OTHERS))
    for file in (*found.others, *found.tables):
        if not file.lower().endswith(b".json"):
            found.ignored.add_extension(os.fsdecode(os.path.splitext(file)[1].lower()))
    ignored.add(found.ignored)
    return found


def _chosen(root: Path, files: list[bytes], notes: list[str], where: str) -> tuple[bytes, dict[str, Any]] | None:
    """The JSON file of a split, and its content; None where none of the files holds boxes.

    Raises:
        RequestError: it is not clear which.
    """
    instances = [file for file in files if "instances" in _words(os.fsdecode(os.path.basename(file)))]
    read: dict[bytes, dict[str, Any]] = {}
    for file in instances or files:
        content = read_json(root, file)
        if isinstance(content, str):
            notes.append(f"left alone: {shown(os.fsdecode(file))} ({content})")
        else:
            read[file] = content
    plain = [file for file, content in read.items() if not _has_keypoints(content)] or list(read)
    if len(plain) > 1:
        raise RequestError(
            f"{' and '.join(_shown(file) for file in plain[:_NAMED])} may both be the annotations of {where}: leave "
            "one of them, or say which, with --train PATH --val PATH --test PATH"
        )
    return (plain[0], read[plain[0]]) if plain else None


def read_json(root: Path, file: bytes) -> dict[str, Any] | str:
    """The content of a COCO JSON file; the reason where it is no such file."""
    try:
        with open(os.path.join(os.fsencode(root), file), encoding="utf-8-sig") as opened:
            content = json.load(opened)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except json.JSONDecodeError as error:
        return f"is no JSON: line {error.lineno}, column {error.colno}"
    except (ValueError, RecursionError) as error:  # no UTF-8, or a number of thousands of digits
        return f"cannot be read as JSON: {str(error)[:100]}"
    if not isinstance(content, dict):
        return "is no COCO JSON, which is an object with images, annotations and categories"
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            return f"has no list of {key}"
        if not all(isinstance(entry, dict) for entry in content[key]):
            return f"has entries of {key} that are no objects"
    annotations = content["annotations"]
    if annotations and not any("bbox" in one or "segmentation" in one for one in annotations):
        return "its annotations have no bbox"
    return content


def _has_keypoints(content: dict[str, Any]) -> bool:
    return any("keypoints" in category for category in content["categories"])


def _instead(scanned: Scan, notes: Iterable[str]) -> str:
    """What was found in the place of COCO JSON, with how to convert it."""
    found = formats_instead(scanned.others)
    left_alone = "; ".join(notes)
    return found or left_alone or f"found {len(scanned.images):,} images and {scanned.ignored.line or 'nothing else'}"


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z]+", name.lower())


def _named(files: list[bytes]) -> str:
    return ", ".join(_shown(file) for file in files[:_NAMED]) + (", …" if len(files) > _NAMED else "")


def _shown(file: bytes) -> str:
    return shown(os.fsdecode(file))
