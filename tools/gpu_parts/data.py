"""The data of the parts: made once, by the first part that needs it."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

CLASSES = ("n01440764", "n01443537", "n01484850")  # ImageNet's first three, so that `robustness` knows them
SIDE = 32
NUM_TRAIN, NUM_VAL = 40, 10  # of each class


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made(work: Path, name: str, make: Callable[[Path], object]) -> Path:
    """The folder of that name, made by `make` in the first process that asks; others wait for it."""
    folder = work / "data" / name
    with _locked(work / "data" / f"{name}.lock"):
        if not folder.exists():
            partial = folder.with_name(f".partial-{name}")
            shutil.rmtree(partial, ignore_errors=True)
            make(partial)
            partial.rename(folder)
    return folder


def labelled(work: Path) -> Path:
    """train and val of three classes of small PNGs that colours tell apart."""

    def make(folder: Path) -> None:
        for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
            _write_classes(folder / split, count, seed=len(split))

    return made(work, "labelled", make)


def masked(work: Path) -> Path:
    """train and val of small images with masks: light rectangles on dark grounds, their edges ignored."""

    def make(folder: Path) -> None:
        import numpy as np
        from PIL import Image

        for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
            generator = np.random.default_rng(count)
            for part in ("images", "masks"):
                (folder / part / split).mkdir(parents=True)
            for number in range(count):
                image = generator.integers(0, 60, (SIDE, SIDE + number % 3, 3), dtype=np.uint8)
                classes = np.zeros(image.shape[:2], np.uint8)
                top, left = generator.integers(0, SIDE - 14, 2)
                image[top : top + 14, left : left + 14] = 220
                classes[top : top + 14, left : left + 14] = 255
                classes[top + 1 : top + 13, left + 1 : left + 13] = 1
                Image.fromarray(image).save(folder / "images" / split / f"{number:02}.png")
                Image.fromarray(classes).save(folder / "masks" / split / f"{number:02}.png")

    return made(work, "masked", make)


def with_objects(work: Path) -> Path:
    """train and val of small images with COCO JSON: one light rectangle each on dark grounds, of two classes."""

    def make(folder: Path) -> None:
        import json

        import numpy as np
        from PIL import Image

        for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
            generator = np.random.default_rng(count)
            (folder / "images" / split).mkdir(parents=True)
            images, annotations = [], []
            for number in range(count):
                image = generator.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
                top, left, category = (int(value) for value in generator.integers(0, (SIDE - 16, SIDE - 16, 2)))
                image[top : top + 16, left : left + 16, category] = 220
                corners = [left, top, left + 16, top, left + 16, top + 16, left, top + 16]
                images.append({"id": number, "file_name": f"{number:02}.png", "height": SIDE, "width": SIDE})
                box = {"bbox": [left, top, 16, 16], "area": 256, "iscrowd": 0, "segmentation": [corners]}
                annotations.append({"id": number, "image_id": number, "category_id": category + 1, **box})
                Image.fromarray(image).save(folder / "images" / split / f"{number:02}.png")
            categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
            content = {"images": images, "annotations": annotations, "categories": categories}
            (folder / f"instances_{split}.json").write_text(json.dumps(content))

    return made(work, "objects", make)


def corrupted(work: Path) -> Path:
    """A folder laid out as ImageNet-C: every corruption and severity, an image of each class."""
    from openmae.data.sources.imagenet_variants import ALEXNET, SEVERITIES

    def make(folder: Path) -> None:
        for number, corruption in enumerate(ALEXNET):
            for severity in SEVERITIES:
                _write_classes(folder / corruption / str(severity), 1, seed=100 * number + severity)

    return made(work, "corrupted", make)


def _write_classes(folder: Path, count: int, seed: int) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for image in range(count):
            values = rng.normal(0, 40, (SIDE, SIDE, 3)) + 60
            values[..., number] += 120
            Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / name / f"{image}.png")


def photographs(work: Path, copies: int) -> Path:
    """JPEGs of ImageNet's size out of photographs in the wheels, each `copies` times, as files of their own."""
    from openmae.benchmarks.loader import write_photographs

    def make(folder: Path) -> None:
        write_photographs(folder)
        for path in sorted(folder.iterdir()):
            for number in range(1, copies):
                _link(path, path.with_name(f"{path.stem}-{number}{path.suffix}"))

    return made(work, f"photographs-{copies}", make)


def _link(path: Path, name: Path) -> None:
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)
