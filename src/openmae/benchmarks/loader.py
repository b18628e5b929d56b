"""`openmae bench loader`: images/s of one core from files to a batch, against torchvision's ImageFolder and PIL.

Ours is the stream of `openmae pretrain`: decode, random resized crop (bicubic, antialiased), flip, uint8 batches,
normalised as the training step does it. The peer is the usual pipeline: ImageFolder, RandomResizedCrop, flip, ToTensor,
Normalize, float batches. Packs are made from the same images, and compared with the peer on the original files: that is
the choice a user has. In the last row (`--crop-on device`) only a reader's work is measured: the device crops,
resizes, flips and normalises. It has no peer.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from openmae.benchmarks.rows import Row, run_interleaved
from openmae.config import IMAGENET_MEAN, IMAGENET_STD, BenchConfig, PackConfig, Preprocessing
from openmae.data.augment import CROP_SCALE, Augmentation
from openmae.data.decoding.extensions import EXTENSIONS
from openmae.data.loader import Stream, collate
from openmae.data.preprocess import normalise
from openmae.data.sources.embedded import EmbeddedPhotos, photograph
from openmae.data.sources.open import Source, open_source
from openmae.errors import RequestError
from openmae.preflight.bench import no_image_files_error
from openmae.tasks.pack.pack import pack

SIZE = 224
BATCH = 32
IMAGES, QUICK_IMAGES = 256, 32  # in a round
PHOTO_SIZE = (500, 375)  # of the written photographs: the ImageNet average
NUM_PHOTOS = 40
GOALS = {"original": "1.8", "jpeg-pack": "3", "raw-pack": "5"}
FORMATS = {"jpeg-pack": "jpeg", "raw-pack": "raw", "raw-pack-whole": "raw"}
CASE_NAMES = {
    "original": f"original files, {SIZE} px crops",
    "jpeg-pack": f"JPEG pack, 256 px, {SIZE} px crops",
    "raw-pack": f"raw pack, 256 px, {SIZE} px crops",
    "raw-pack-whole": "raw pack, 256 px, crops left to the device",
}
LEFT_OUT = "without crop, resize and normalising, which the others have"


def loader_rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """A row for each way of storing the images.

    Raises:
        RequestError: DATA holds no images in files, or none can be packed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one core: the comparison is of work, not of scheduling
    try:
        with tempfile.TemporaryDirectory(prefix="openmae-bench-") as workspace:
            return _rows(config, Path(workspace))
    finally:
        torch.set_num_threads(threads)


def _rows(config: BenchConfig, workspace: Path) -> list[Row]:
    data = config.data or str(write_photographs(workspace / "photographs"))
    count = QUICK_IMAGES if config.quick else IMAGES
    theirs = their_reader(data, workspace / "classes", count)
    names = config.case or tuple(CASE_NAMES)
    sides, rows = {}, []
    failed: dict[str, RequestError] = {}  # what could not be packed once is not tried again
    for name in names:
        try:
            if (form := FORMATS.get(name, "")) in failed:
                raise failed[form]
            source = source_of_case(name, data, workspace)
        except RequestError as error:
            failed.setdefault(FORMATS.get(name, name), error)
            if name in config.case:
                raise
            rows.append(Row(case=CASE_NAMES[name], peer=f"not measured: {error}"))
            continue
        sides[name] = our_reader(source, count, crop_on_device=name == "raw-pack-whole")
    if not sides:
        raise RequestError("nothing can be measured here: every case of the loader is missing something")
    their_rates, *rates = run_interleaved(config.rounds, theirs, *sides.values())
    for name, mine in zip(sides, rates, strict=True):
        rows.append(
            Row(
                case=f"{CASE_NAMES[name]}, one core",
                peer="none: nobody else leaves them" if name not in GOALS else "torchvision ImageFolder, PIL, float",
                unit="images/s",
                more_is_better=True,
                ours=mine,
                theirs=their_rates if name in GOALS else [],
                details={"goal": GOALS[name]} if name in GOALS else {"note": LEFT_OUT},
            )
        )
    return sorted(rows, key=lambda row: not row.ours)


def source_of_case(name: str, data: str, workspace: Path) -> Source:
    """The source of a case: the original files, or a pack made of them.

    Raises:
        RequestError: they cannot be packed.
    """
    if name != "original":
        out = workspace / FORMATS[name]
        if not out.exists():
            pack(PackConfig(data=data, out=str(out), format=FORMATS[name], size=256))
        data = str(out)
    source = open_source(data)
    assert source is not None
    return source


def our_reader(source: Source, count: int, *, crop_on_device: bool) -> Callable[[], float]:
    """Measures images/s of our stream over its next `count` images.

    Args:
        crop_on_device: as with `--crop-on device`: images are only read, neither cropped nor normalised.
    """
    preprocessing = Preprocessing(
        channels=3, value_range=(0.0, 255.0), mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=(SIZE, SIZE)
    )
    stream = Stream(
        source, preprocessing, Augmentation(kind="crop"), seed=0, patch_size=16, crop_on_device=crop_on_device
    )
    position = 0

    def batches() -> Iterator[object]:
        nonlocal position
        for _ in range(count // BATCH):
            batch = collate(stream.__getitems__(range(position, position + BATCH)))
            yield batch.images if crop_on_device else normalise(batch.images, preprocessing)
            position += BATCH

    return rate_of(batches, count // BATCH * BATCH)


def their_reader(data: str, workspace: Path, count: int) -> Callable[[], float]:
    """Measures images/s of an ImageFolder over `count` random images, which are linked into one class of `workspace`.

    Raises:
        RequestError: DATA is no folder of image files.
    """
    from torchvision import datasets, transforms

    root = Path(data)
    known = [end for end in datasets.folder.IMG_EXTENSIONS if end in EXTENSIONS]
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in known) if root.is_dir() else []
    if not files:
        raise no_image_files_error(data)
    (workspace / "all").mkdir(parents=True)
    for number, path in enumerate(files):
        os.symlink(path.resolve(), workspace / "all" / f"{number}{path.suffix.lower()}")
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
    folder = datasets.ImageFolder(workspace, transform)
    rng = np.random.default_rng(0)

    def batches() -> Iterator[object]:
        for _ in range(count // BATCH):
            samples = [folder[int(index)] for index in rng.integers(0, len(folder), BATCH)]
            yield torch.stack([image for image, _ in samples])

    return rate_of(batches, count // BATCH * BATCH)


def rate_of(batches: Callable[[], Iterator[object]], count: int) -> Callable[[], float]:
    """Measures images/s of one iteration over `batches`, of `count` images in all."""
    from openmae.benchmarks.rows import timed

    def go() -> None:
        for _ in batches():
            pass

    measure = timed(go, lambda: None)
    return lambda: count / measure()


def write_photographs(folder: Path) -> Path:
    """Write crops of the photographs inside installed packages as JPEGs of the usual size and quality."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    regions = EmbeddedPhotos("train").regions
    width, height = PHOTO_SIZE
    for number in range(NUM_PHOTOS):
        region = regions[number % len(regions)]
        photo = photograph(region.path)[region.y : region.y + region.height, region.x : region.x + region.width]
        top = int(rng.integers(0, max(1, photo.shape[0] - height)))
        left = int(rng.integers(0, max(1, photo.shape[1] - width)))
        crop = Image.fromarray(np.ascontiguousarray(photo[top : top + height, left : left + width]))
        if crop.size != PHOTO_SIZE:
            crop = crop.resize(PHOTO_SIZE, Image.Resampling.BICUBIC)
        crop.save(folder / f"{number:03}.jpg", quality=92)
    return folder
