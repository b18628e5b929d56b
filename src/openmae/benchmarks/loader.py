"""`openmae bench loader`: images/s of one core from files to a batch, against torchvision's ImageFolder and PIL.

Ours is the stream of `openmae pretrain`: decode, random resized crop (bicubic, antialiased), flip, uint8 batches,
normalised as the training step does it. The peer is the usual pipeline: ImageFolder, RandomResizedCrop, flip, ToTensor,
Normalize, float batches. Packs are made from the same images, and compared with the peer on the original files: these
are what one chooses between. In the last case (`--crop-on device`) only the work of a reader process is measured, since
the device crops, resizes, flips and normalises; ImageFolder cannot do so, and there is nothing to compare with.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from openmae.benchmarks.rows import Measurement, Row, run_interleaved, timed
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

CROP_SIZE, PACK_SIZE = 224, 256  # px
BATCH_SIZE = 32
NUM_IMAGES, NUM_QUICK_IMAGES = 256, 32  # that are read in a round
PHOTO_SIZE = (500, 375)  # width and height of the photographs that are written: usual ones of ImageNet
PHOTO_QUALITY = 92  # of JPEG
NUM_PHOTOS = 40


@dataclass(frozen=True)
class Case:
    """A way of storing the images.

    Attributes:
        title: in the table.
        pack_format: of the pack that is made of the images; None for the original files.
        goal: the ratio to the peer that we want; None without a peer.
        is_whole: images are not cropped but returned whole, for the device to crop.
    """

    title: str
    pack_format: str | None = None
    goal: str | None = None
    crop_on_device: bool = False


CASES = {
    "original": Case(f"original files, {CROP_SIZE} px crops", goal="1.8"),
    "jpeg-pack": Case(f"JPEG pack, {PACK_SIZE} px, {CROP_SIZE} px crops", "jpeg", goal="3"),
    "raw-pack": Case(f"raw pack, {PACK_SIZE} px, {CROP_SIZE} px crops", "raw", goal="5"),
    "raw-pack-whole": Case(f"raw pack, {PACK_SIZE} px, crops left to the device", "raw", crop_on_device=True),
}
PEER = "torchvision ImageFolder, PIL, float"
NO_PEER = "none: ImageFolder cannot leave crops to the device"
WHOLE_NOTE = "without crop, resize and normalising, which the others have"


def loader_rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """A row for each way of storing the images.

    Raises:
        RequestError: DATA holds no images in files, or none can be packed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one core each: work is compared, not how well it spreads over cores
    try:
        with tempfile.TemporaryDirectory(prefix="openmae-bench-") as workspace:
            return _rows(config, Path(workspace))
    finally:
        torch.set_num_threads(threads)


def _rows(config: BenchConfig, workspace: Path) -> list[Row]:
    data = config.data or str(write_photographs(workspace / "photographs"))
    count = NUM_QUICK_IMAGES if config.quick else NUM_IMAGES
    their_measurement = measure_image_folder(data, workspace / "classes", count)
    measurements: dict[str, Measurement] = {}
    not_measured: list[Row] = []
    failed: dict[str | None, RequestError] = {}  # by pack format: what could not be packed is not tried again
    for name in config.case or tuple(CASES):
        case = CASES[name]
        try:
            if case.pack_format in failed:
                raise failed[case.pack_format]
            source = source_of_case(case, data, workspace)
        except RequestError as error:
            failed[case.pack_format] = error
            if name in config.case:
                raise
            not_measured.append(Row(case=case.title, peer=f"not measured: {error}"))
            continue
        measurements[name] = measure_stream(source, count, crop_on_device=case.crop_on_device)
    if not measurements:
        raise RequestError("nothing can be measured here: neither the original files nor a pack of them can be opened")
    theirs, *all_ours = run_interleaved(config.rounds, their_measurement, *measurements.values())
    rows = [_row(CASES[name], ours, theirs) for name, ours in zip(measurements, all_ours, strict=True)]
    return rows + not_measured


def _row(case: Case, ours: list[float], theirs: list[float]) -> Row:
    return Row(
        case=f"{case.title}, one core",
        peer=NO_PEER if case.goal is None else PEER,
        unit="images/s",
        more_is_better=True,
        ours=ours,
        theirs=[] if case.goal is None else theirs,
        details={"note": WHOLE_NOTE} if case.goal is None else {"goal": case.goal},
    )


def source_of_case(case: Case, data: str, workspace: Path) -> Source:
    """The source of a case: the original files, or a pack made of them.

    Raises:
        RequestError: they cannot be packed.
    """
    if case.pack_format is not None:
        out = workspace / case.pack_format
        if not out.exists():
            pack(PackConfig(data=data, out=str(out), format=case.pack_format, size=PACK_SIZE))
        data = str(out)
    source = open_source(data)
    assert source is not None
    return source


def measure_stream(source: Source, count: int, *, crop_on_device: bool) -> Measurement:
    """Images/s of our stream over its next `count` images; with `crop_on_device` without crop and normalising."""
    preprocessing = Preprocessing(
        channels=3, value_range=(0.0, 255.0), mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=(CROP_SIZE, CROP_SIZE)
    )
    stream = Stream(
        source, preprocessing, Augmentation(kind="crop"), seed=0, patch_size=16, crop_on_device=crop_on_device
    )
    position = 0

    def batches() -> Iterator[object]:
        nonlocal position
        for _ in range(count // BATCH_SIZE):
            batch = collate(stream.__getitems__(range(position, position + BATCH_SIZE)))
            yield batch.images if crop_on_device else normalise(batch.images, preprocessing)
            position += BATCH_SIZE

    return measure_rate(batches, count // BATCH_SIZE * BATCH_SIZE)


def measure_image_folder(data: str, workspace: Path, count: int) -> Measurement:
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
    bicubic = transforms.InterpolationMode.BICUBIC
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(CROP_SIZE, scale=CROP_SCALE, interpolation=bicubic),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    folder = datasets.ImageFolder(workspace, transform)
    rng = np.random.default_rng(0)

    def batches() -> Iterator[object]:
        for _ in range(count // BATCH_SIZE):
            samples = [folder[int(index)] for index in rng.integers(0, len(folder), BATCH_SIZE)]
            yield torch.stack([image for image, _ in samples])

    return measure_rate(batches, count // BATCH_SIZE * BATCH_SIZE)


def measure_rate(batches: Callable[[], Iterator[object]], count: int) -> Measurement:
    """Measures images/s of one iteration over `batches`, which hold `count` images in all."""

    def read_all() -> None:
        for _ in batches():
            pass

    seconds = timed(read_all, lambda: None)  # nothing to wait for: no device is used
    return lambda: count / seconds()


def write_photographs(folder: Path) -> Path:
    """Write crops of the photographs inside installed packages as JPEGs of `PHOTO_SIZE`; smaller ones are stretched."""
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
        crop.save(folder / f"{number:03}.jpg", quality=PHOTO_QUALITY)
    return folder
