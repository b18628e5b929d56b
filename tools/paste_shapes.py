"""Make a set for segmentation and detection whose answer is known: shapes pasted on photographs.

    python tools/paste_shapes.py OUT --train 400 --val 100 --side 128

OUT/images/{train,val}/NNNN.png and OUT/masks/{train,val}/NNNN.png: 0 background, then disc, square, triangle, ring and
cross, of any size and transparency, one over the other. OUT/instances_{train,val}.json: each shape as an object in
COCO's format, of the pixels that no other shape covers. Each kind has a hue of its own, give or take 30°, and any
brightness; with `--colours any` only the form tells them apart, which is far harder; `--kinds 3` are the first three.
The photographs are those inside scikit-image and scikit-learn (`embedded:photos`), or with `--photographs FOLDER` a
folder's, each used once as long as they last; those behind the images of val are not behind any of train.
"""

import argparse
import colorsys
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from openmae.data.sources.embedded import embedded_source

CLASSES = ("background", "disc", "square", "triangle", "ring", "cross")
MIN_RADIUS, MAX_RADIUS = 0.12, 0.3  # of the side
MAX_SHAPES = 4
HUE_SPREAD = 1 / 12  # of a turn, to either side; kinds are a fifth of a turn apart


def is_inside(kind: int, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points of a shape's own coordinates, of radius 1, lie in it."""
    distance = np.hypot(x, y)
    if kind == 1:
        return distance <= 0.9
    if kind == 2:
        return (np.abs(x) <= 0.75) & (np.abs(y) <= 0.75)
    if kind == 3:
        return (y <= 0.5) & (y >= -1 + 1.7 * np.abs(x))
    if kind == 4:
        return (distance <= 1) & (distance >= 0.55)
    return ((np.abs(x) <= 0.28) | (np.abs(y) <= 0.28)) & (np.maximum(np.abs(x), np.abs(y)) <= 1)


def colour_of(kind: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """A colour of a kind's own hue, 0 to 255."""
    hue = (kind - 1) / (len(CLASSES) - 1) + generator.uniform(-HUE_SPREAD, HUE_SPREAD)
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, generator.uniform(0.6, 1), generator.uniform(0.5, 1)))


def scene(
    photograph: NDArray[np.uint8], side: int, generator: np.random.Generator, any_colour: bool, num_kinds: int
) -> tuple[NDArray, NDArray, NDArray]:
    """An image (side × side × 3), its class map, and which shape each pixel belongs to, from 1, uint8 all."""
    planes = torch.from_numpy(photograph).permute(2, 0, 1)[None].float()
    short = min(planes.shape[2:])
    planes = planes[:, :, :short, :short]
    image = F.interpolate(planes, (side, side), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    classes, owners = np.zeros((side, side), np.uint8), np.zeros((side, side), np.uint8)
    rows, columns = np.mgrid[:side, :side] + 0.5
    for number in range(1, int(generator.integers(1, MAX_SHAPES + 1)) + 1):
        kind, radius = int(generator.integers(1, num_kinds + 1)), generator.uniform(MIN_RADIUS, MAX_RADIUS) * side
        top, left = generator.uniform(0.5 * radius, side - 0.5 * radius, 2)
        angle = generator.uniform(-0.35, 0.35)  # radians: a square on its corner would still be one, and is rare here
        y, x = (rows - top) / radius, (columns - left) / radius
        x, y = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
        inside = is_inside(kind, x, y)
        colour = generator.uniform(0, 255, 3) if any_colour else colour_of(kind, generator)
        alpha = generator.uniform(0.6, 1.0)
        image[inside] = (1 - alpha) * image[inside] + alpha * colour
        classes[inside], owners[inside] = kind, number
    noise = generator.normal(0, 4, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), classes, owners


def objects_in(classes: NDArray[np.uint8], owners: NDArray[np.uint8]) -> list[dict[str, Any]]:
    """The shapes of a scene as COCO's annotations, without the ids of object and image."""
    objects = []
    for number in np.unique(owners[owners > 0]).tolist():
        mask = owners == number
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        (top, bottom), (left, right) = (rows[[0, -1]] + [0, 1]).tolist(), (columns[[0, -1]] + [0, 1]).tolist()
        by_columns = np.concatenate([[False], mask.T.ravel(), [False]])
        changes = np.flatnonzero(by_columns[1:] != by_columns[:-1]).tolist()
        counts = np.diff([0, *changes, mask.size]).tolist()
        objects.append(
            {
                "category_id": int(classes[mask][0]),
                "bbox": [left, top, right - left, bottom - top],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": list(mask.shape), "counts": counts},
            }
        )
    return objects


Draw = Callable[[int, np.random.Generator], NDArray[np.uint8]]


def photographs_in(folder: Path) -> list[Path]:
    """The photographs of a folder that can be read, sorted."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in (".jpg", ".jpeg", ".png") and path.is_file():
            try:
                with Image.open(path) as image:
                    image.load()
            except Exception:  # Pillow raises more than OSError
                continue
            found.append(path)
    return found


def photographs_of(folder: Path | None, split: str) -> Draw:
    """What draws the photograph behind a split's scene of a number; of a folder a fifth is val's."""
    if folder is None:
        source = embedded_source("photos", split)
        assert source is not None
        return lambda _, generator: source.read(int(generator.integers(len(source))))
    paths = [path for place, path in enumerate(photographs_in(folder)) if (place % 5 == 4) == (split == "val")]
    return lambda number, _: np.array(Image.open(paths[number % len(paths)]).convert("RGB"))


def write(
    out: Path, split: str, count: int, side: int, draw: Draw, *, seed: int, any_colour: bool, num_kinds: int
) -> None:
    """Write `count` scenes of a split."""
    generator = np.random.default_rng(seed)
    for folder in ("images", "masks"):
        (out / folder / split).mkdir(parents=True, exist_ok=True)
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for number in range(count):
        image, classes, owners = scene(draw(number, generator), side, generator, any_colour, num_kinds)
        Image.fromarray(image).save(out / "images" / split / f"{number:04}.png")
        Image.fromarray(classes).save(out / "masks" / split / f"{number:04}.png")
        images.append({"id": number, "file_name": f"{number:04}.png", "height": side, "width": side})
        for one in objects_in(classes, owners):
            annotations.append({"id": len(annotations) + 1, "image_id": number, **one})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES) if 0 < i <= num_kinds]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (out / f"instances_{split}.json").write_text(json.dumps(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--val", type=int, default=100)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--colours", choices=("kind", "any"), default="kind")
    parser.add_argument("--kinds", type=int, choices=range(1, len(CLASSES)), default=len(CLASSES) - 1)
    parser.add_argument("--photographs", type=Path)
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"{given.out} exists already: give another OUT")
    if min(given.train, given.val) < 1 or given.side < 16 or given.seed < 0:
        parser.error("--train and --val are at least 1, --side at least 16, --seed at least 0")
    if given.photographs is not None and len(photographs_in(given.photographs)) < 5:
        parser.error(
            f"{given.photographs} is no folder with at least 5 photographs that can be read (.jpg, .jpeg, .png)"
        )
    for split, count, seed in (("train", given.train, given.seed), ("val", given.val, given.seed + 1)):
        draw = photographs_of(given.photographs, split)
        any_colour = given.colours == "any"
        write(given.out, split, count, given.side, draw, seed=seed, any_colour=any_colour, num_kinds=given.kinds)
    (given.out / "classes.txt").write_text("\n".join(CLASSES[: given.kinds + 1]) + "\n")


if __name__ == "__main__":
    main()
