"""`openmae bench loader`: images/s of one core from files to a batch, against torchvision's ImageFolder and PIL.

Ours is the stream of `openmae pretrain`: decode, random resized crop (bicubic, antialiased), flip, uint8
batches, normalised as the training step does it. The peer is what everyone ships: ImageFolder, RandomResizedCrop, flip,
ToTensor, Normalize, float batches. Packs are made of
the same images, and compared with the peer on the originals: that is the choice a person has. Of the last row
(`--crop-on device`) only what a reader does is measured: crop, resize, flip and normalising are the device's. It has no
peer.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from openmae.benchmarks.rows import Row, in_turn
from openmae.config import IMAGENET_MEAN, IMAGENET_STD, BenchConfig, PackConfig, Preprocessing
from openmae.data.augment import CROP_SCALE, Augmentation
from openmae.data.decoding.extensions import EXTENSIONS
from openmae.data.loader import Stream, collate
from openmae.data.preprocess import normalise
from openmae.data.sources.embedded import EmbeddedPhotos, photograph
from openmae.data.sources.open import Source, open_source
from openmae.errors import RequestError
from openmae.requests.bench import no_image_files
from openmae.tasks.pack.pack import pack

SIZE = 224
BATCH = 32
IMAGES, QUICK_IMAGES = 256, 32  # a round
PHOTO_SIZE = (500, 375)  # of the written photographs: the ImageNet average
NUM_PHOTOS = 40
GOALS = {"original": "1.8", "jpeg-pack": "3", "raw-pack": "5"}
FORMATS = {"jpeg-pack": "jpeg", "raw-pack": "raw", "raw-pack-whole": "raw"}
WORDS = {
    "original": f"original files, {SIZE} px crops",
    "jpeg-pack": f"JPEG pack, 256 px, {SIZE} px crops",
    "raw-pack": f"raw pack, 256 px, {SIZE} px crops",
    "raw-pack-whole": "raw pack, 256 px, crops left to the device",
}
LEFT_OUT = "without crop, resize and normalising, which the others have"


def loader_rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """A row for each way of keeping the images.

    Raises:
        RequestError: DATA holds no images in files, or none can be packed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one core: the comparison is of work, not of scheduling
    try:
        with tempfile.TemporaryDirectory(prefix="openmae-bench-") as place:
            return _rows(config, Path(place))
    finally:
        torch.set_num_threads(threads)


def _rows(config: BenchConfig, place: Path) -> list[Row]:
    data = config.data or str(write_photographs(place / "photographs"))
    count = QUICK_IMAGES if config.quick else IMAGES
    theirs = their_reader(data, place / "classes", count)
    names = config.case or tuple(WORDS)
    sides, rows = {}, []
    failed: dict[str, RequestError] = {}  # what could not be packed once is not tried again
    for name in names:
        try:
            if (form := FORMATS.get(name, "")) in failed:
                raise failed[form]
            source = opened(name, data, place)
        except RequestError as error:
            failed.setdefault(FORMATS.get(name, name), error)
            if name in config.case:
                raise
            rows.append(Row(case=WORDS[name], peer=f"not measured: {error}"))
            continue
        sides[name] = our_reader(source, count, is_whole=name == "raw-pack-whole")
    if not sides:
        raise RequestError("nothing can be measured here: every case of the loader is missing something")
    their_rates, *rates = in_turn(config.rounds, theirs, *sides.values())
    for name, mine in zip(sides, rates, strict=True):
        rows.append(
            Row(
                case=f"{WORDS[name]}, one core",
                peer="none: nobody else leaves them" if name not in GOALS else "torchvision ImageFolder, PIL, float",
                unit="images/s",
                more_is_better=True,
                ours=mine,
                theirs=their_rates if name in GOALS else [],
                details={"goal": GOALS[name]} if name in GOALS else {"note": LEFT_OUT},
            )
        )
    return sorted(rows, key=lambda row: not row.ours)


def opened(name: str, data: str, place: Path) -> Source:
    """The images as they are, or packed.

    Raises:
        RequestError: they cannot be packed.
    """
    if name != "original":
        out = place / FORMATS[name]
        if not out.exists():
            pack(PackConfig(data=data, out=str(out), format=FORMATS[name], size=256))
        data = str(out)
    source = open_source(data)
    assert source is not None
    return source


def our_reader(source: Source, count: int, *, is_whole: bool) -> Callable[[], float]:
    """Images/s of our stream, over its next `count` images; `is_whole` ones are neither cropped nor normalised."""
    preprocessing = Preprocessing(
        channels=3, value_range=(0.0, 255.0), mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=(SIZE, SIZE)
    )
    stream = Stream(source, preprocessing, Augmentation(kind="crop"), seed=0, min_side=16, is_whole=is_whole)
    position = 0

    def batches() -> Iterator[object]:
        nonlocal position
        for _ in range(count // BATCH):
            batch = collate(stream.__getitems__(range(position, position + BATCH)))
            yield batch.images if is_whole else normalise(batch.images, preprocessing)
            position += BATCH

    return rate_of(batches, count // BATCH * BATCH)


def their_reader(data: str, place: Path, count: int) -> Callable[[], float]:
    """Images/s of an ImageFolder over `count` random images. A flat folder gets a class by way of links in `place`.

    Raises:
        RequestError: DATA is no folder of image files.
    """
    from torchvision import datasets, transforms

    root = Path(data)
    known = [end for end in datasets.folder.IMG_EXTENSIONS if end in EXTENSIONS]
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in known) if root.is_dir() else []
    if not files:
        raise no_image_files(data)
    (place / "all").mkdir(parents=True)
    for number, path in enumerate(files):
        os.symlink(path.resolve(), place / "all" / f"{number}{path.suffix.lower()}")
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                SIZE, scale=CROP_SCALE, interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )  # fmt: skip
    folder = datasets.ImageFolder(place, transform)
    chance = np.random.default_rng(0)

    def batches() -> Iterator[object]:
        for _ in range(count // BATCH):
            samples = [folder[int(index)] for index in chance.integers(0, len(folder), BATCH)]
            yield torch.stack([image for image, _ in samples])

    return rate_of(batches, count // BATCH * BATCH)


def rate_of(batches: Callable[[], Iterator[object]], count: int) -> Callable[[], float]:
    """Images/s of going through some batches once."""
    from openmae.benchmarks.rows import timed

    def go() -> None:
        for _ in batches():
            pass

    measure = timed(go, lambda: None)
    return lambda: count / measure()


def write_photographs(folder: Path) -> Path:
    """Cuttings of the photographs inside the wheels as JPEGs of the usual size and quality."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    regions = EmbeddedPhotos("train").regions
    width, height = PHOTO_SIZE
    for number in range(NUM_PHOTOS):
        region = regions[number % len(regions)]
        whole = photograph(region.path)[region.y : region.y + region.height, region.x : region.x + region.width]
        top = int(chance.integers(0, max(1, whole.shape[0] - height)))
        left = int(chance.integers(0, max(1, whole.shape[1] - width)))
        cutting = Image.fromarray(np.ascontiguousarray(whole[top : top + height, left : left + width]))
        if cutting.size != PHOTO_SIZE:
            cutting = cutting.resize(PHOTO_SIZE, Image.Resampling.BICUBIC)
        cutting.save(folder / f"{number:03}.jpg", quality=92)
    return folder
