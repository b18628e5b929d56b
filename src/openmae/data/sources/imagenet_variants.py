"""ImageNet-C, -A, -R and -Sketch (paper, table 13): their classes, their folders, and the mean corruption error."""

import difflib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from openmae.config.checks import OFF
from openmae.data.decoding.decode import MAX_PIXELS
from openmae.data.decoding.extensions import EXTENSIONS
from openmae.data.sources.axes import decide_axes, shapes_of_files
from openmae.data.sources.folder import FolderSource, class_names
from openmae.data.sources.named import names_in
from openmae.data.sources.scan import scan
from openmae.errors import Fault, RequestError, shown

SYNSET = re.compile(r"n\d{8}")
SEVERITIES = (1, 2, 3, 4, 5)
# AlexNet's error on each corruption, mean of the five severities (Hendrycks & Dietterich, 2019).
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # for tuning; not part of the mean
GROUPS = ("noise", "blur", "weather", "digital", "extra")  # as the archives are named
MAX_NAMED = 5  # examples in a message


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A set of images for classifiers of ImageNet's 1000 classes.

    Attributes:
        flag: of the command line, and the set's name in tables.
        synsets: timm's list of its classes.
        num_images: of the released set; of ImageNet-C, of each corruption and severity.
    """

    flag: str
    title: str
    synsets: str
    num_images: int

    @property
    def classes(self) -> tuple[str, ...]:
        """WordNet ids in the standard order."""
        return standard_classes(self.synsets)


IMAGENET = "imagenet_synsets.txt"
IMAGENET_C = Variant(flag="--imagenet-c", title="ImageNet-C", synsets=IMAGENET, num_images=50_000)
IMAGENET_A = Variant(flag="--imagenet-a", title="ImageNet-A", synsets="imagenet_a_synsets.txt", num_images=7_500)
IMAGENET_R = Variant(flag="--imagenet-r", title="ImageNet-R", synsets="imagenet_r_synsets.txt", num_images=30_000)
IMAGENET_SKETCH = Variant(flag="--imagenet-sketch", title="ImageNet-Sketch", synsets=IMAGENET, num_images=50_889)


@dataclass(frozen=True, kw_only=True)
class VariantPart:
    """Class folders that are evaluated together: a set, or one corruption and severity of ImageNet-C."""

    variant: Variant
    folder: Path
    classes: tuple[str, ...]
    corruption: str | None = None
    severity: int | None = None

    @property
    def name(self) -> str:
        """A stable name: imagenet-a, imagenet-c/fog/3."""
        steps = (self.variant.title.lower(), self.corruption, self.severity)
        return "/".join(str(step) for step in steps if step is not None)


@cache
def standard_classes(synsets: str) -> tuple[str, ...]:
    """A list of WordNet ids from timm's files, without importing timm. Raises Fault where timm is not installed."""
    spec = importlib.util.find_spec("timm")
    try:
        if spec is None or spec.origin is None:
            raise FileNotFoundError("timm is not installed")
        names = tuple((Path(spec.origin).parent / "data" / "_info" / synsets).read_text().split())
    except OSError as error:
        raise Fault(f"the classes of ImageNet come with timm, and are not there ({error}): install timm") from None
    assert names and all(SYNSET.fullmatch(name) for name in names), synsets
    return names


def synsets_of(classes: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """The WordNet id of each of a classifier's classes, and whether it follows from their order only.

    1000 classes with other names are assumed to be ImageNet's in the standard order.

    Raises:
        RequestError: the classes are not ImageNet's, or one occurs twice.
    """
    if len(set(classes)) < len(classes):
        raise RequestError("--init has a class twice: a classifier whose classes are WordNet ids is needed")
    if all(SYNSET.fullmatch(name) for name in classes):
        return tuple(classes), False
    standard = standard_classes(IMAGENET)
    if len(classes) == len(standard) and not any(SYNSET.fullmatch(name) for name in classes):
        return standard, True
    unknown = next(name for name in classes if not SYNSET.fullmatch(name))
    raise RequestError(
        f"--init has {len(classes)} classes, one named {shown(unknown)!r}: a classifier is needed that was trained on "
        "class folders named by WordNet ids (n01440764 ...), or one of ImageNet's 1000 classes in their order"
    )


def known_classes(variant: Variant, synsets: Sequence[str], parts: Sequence[VariantPart]) -> tuple[str, ...]:
    """The set's classes that a classifier of these synsets knows, to which predictions are restricted.

    Raises:
        RequestError: a class folder is not a class of the set, or not of the classifier.
    """
    set_classes, model_classes = set(variant.classes), set(synsets)
    known = tuple(name for name in variant.classes if name in model_classes)
    for part in parts:
        for name in part.classes:
            where = f"{variant.flag} holds {shown(part.folder / name)}"
            if name not in set_classes:
                raise RequestError(
                    f"{where}, which is none of {variant.title}'s {len(set_classes)} classes: is it another set's "
                    "folder?"
                )
            if name not in model_classes:
                raise RequestError(
                    f"{where}, a class that the classifier was not trained on (it knows {len(known)} of the set's "
                    f"{len(set_classes)}): take a classifier of all of them, or leave such folders out of a copy of "
                    "the set"
                )
    return known


def class_parts(variant: Variant, root: str) -> list[VariantPart]:
    """A set that is one folder of class folders, as a single part.

    Raises:
        RequestError: there are no class folders, or there are images beside them.
    """
    folder = _unwrapped(Path(root), variant, lambda name: SYNSET.fullmatch(name) is not None)
    return [VariantPart(variant=variant, folder=folder, classes=_class_folders(folder, variant))]


def corruption_parts(root: str, variant: Variant = IMAGENET_C) -> tuple[list[VariantPart], list[str]]:
    """The corruptions and severities of ImageNet-C in the order of `ALEXNET`, and the names of extra ones.

    Raises:
        RequestError: a folder is no corruption, group or severity, or a corruption occurs twice.
    """
    known = (*ALEXNET, *EXTRA)
    top = _unwrapped(Path(root), variant, lambda name: name in (*known, *GROUPS))
    folders: dict[str, Path] = {}
    for group in _folders(top, variant):
        for folder in _folders(group, variant) if group.name in GROUPS else [group]:
            if folder.name not in known:
                near = difflib.get_close_matches(folder.name, known, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise RequestError(
                    f"{variant.flag} holds {shown(folder)}, which is no corruption: {hint}expected are "
                    "corruption/severity/class folders"
                )
            if folder.name in folders:
                raise RequestError(f"{variant.flag} holds {folder.name} twice: {shown(folder)} and elsewhere")
            folders[folder.name] = folder
    parts = []
    for corruption in ALEXNET:
        severities = _folders(folders[corruption], variant) if corruption in folders else []
        for folder in sorted(severities, key=lambda path: path.name):
            if folder.name not in map(str, SEVERITIES):
                raise RequestError(f"{variant.flag} holds {shown(folder)}: severities are folders named 1 to 5")
            classes = _class_folders(folder, variant)
            part = VariantPart(
                variant=variant, folder=folder, classes=classes, corruption=corruption, severity=int(folder.name)
            )
            parts.append(part)
    if not parts:
        raise RequestError(f"{variant.flag} {shown(root)} holds none of the {len(ALEXNET)} corruptions")
    return parts, [name for name in EXTRA if name in folders]


def open_part(
    part: VariantPart,
    classes: Sequence[str],
    *,
    background: float = 1.0,
    max_pixels: int = MAX_PIXELS,
    axes: str | None = None,
    default_axes: str | None = None,
    nodata: float | str = OFF,
) -> FolderSource:
    """The images of a part; labels index `classes`.

    Raises:
        RequestError: there are no images, or the class folders have changed since they were listed.
    """
    scanned = scan(part.folder)
    files, ignored = scanned.images, scanned.ignored
    if not files:
        raise RequestError(f"no images in {shown(part.folder)}: found {ignored}")
    if not (class_names(files, 0) or {""}) <= set(part.classes):
        raise RequestError(f"{shown(part.folder)} has changed while it was read: run it again")
    return FolderSource(
        part.folder,
        files,
        classes=classes,
        ignored=ignored,
        background=background,
        max_pixels=max_pixels,
        axes=decide_axes(shapes_of_files(part.folder, files), axes, default_axes),
        nodata=nodata,
    )


def corruption_errors(errors: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """The corruption error (CE) in per cent, of each corruption for which all five severities are given.

    CE = Σ error / Σ AlexNet's error over the severities; the mean of the fifteen is the mCE (Hendrycks & Dietterich).

    Args:
        errors: by corruption and severity, 0..1.
    """
    return {
        corruption: 100 * sum(errors[corruption, s] for s in SEVERITIES) / (len(SEVERITIES) * alexnet)
        for corruption, alexnet in ALEXNET.items()
        if all((corruption, s) in errors for s in SEVERITIES)
    }


def missing_corruptions(found: Mapping[tuple[str, int], object]) -> list[str]:
    """The missing corruptions and severities: `fog` or `fog 3 5`."""
    lines = []
    for corruption in ALEXNET:
        absent = [severity for severity in SEVERITIES if (corruption, severity) not in found]
        if absent:
            lines.append(corruption if len(absent) == len(SEVERITIES) else " ".join(map(str, (corruption, *absent))))
    return lines


def _class_folders(folder: Path, variant: Variant) -> tuple[str, ...]:
    stray = [path for path in _entries(folder, variant) if path.suffix.lower() in EXTENSIONS and not path.is_dir()]
    if stray:
        raise RequestError(f"{variant.flag} holds {shown(stray[0])}, an image outside the class folders: move it away")
    names = tuple(path.name for path in _folders(folder, variant))
    if not names:
        raise RequestError(f"{variant.flag} {shown(folder)} holds no class folders (n01440764 ...)")
    return names


def _unwrapped(root: Path, variant: Variant, is_known: Callable[[str], bool]) -> Path:
    """Skip folders that contain nothing but one folder, as unpacked archives do."""
    while len(inside := _folders(root, variant)) == 1 and not is_known(inside[0].name):
        root = inside[0]
    return root


def _folders(folder: Path, variant: Variant) -> list[Path]:
    return [path for path in _entries(folder, variant) if path.is_dir()]


def _entries(folder: Path, variant: Variant) -> list[Path]:
    return [folder / name for name in names_in(folder, variant.flag)]
