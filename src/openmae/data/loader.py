"""The endless stream of training samples and the loader that reads it (ARCHITECTURE: order and chance).

Position t of the stream is sample `permutation_of_epoch(t mod n)` of epoch `t // n`; batch s holds the
positions s·B … (s+1)·B − 1. Every batch is full, and where a run stands is one integer: its step.

With K crops of each decoded image, positions K·g … K·g + K − 1 are crops of the sample that position g would be: an
image comes K times in a row and then not for K epochs. An epoch stays n crops, as what a run costs and sees does.
"""

import math
import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from openmae.config import Preprocessing
from openmae.data.augment import NUM_CHANCES, Augmentation, Crop, check_rand_augment
from openmae.data.chance import Permutation, crop_keys, sample_keys, uniforms
from openmae.data.decode import BadImage
from openmae.data.preprocess import fit_to_model
from openmae.data.sources import Label, Source
from openmae.errors import RequestError

MOST_REPLACEMENTS = 1000
WORKER_TIMEOUT = 300  # seconds until a hung worker is given up


@dataclass(frozen=True)
class Crops:
    """What of each image of a batch a training step is to see.

    Attributes:
        boxes: (B, 4) int64: top, left, height, width in pixels.
        is_flipped: (B,) bool: mirrored left to right afterwards.
    """

    boxes: Tensor
    is_flipped: Tensor

    def pin_memory(self) -> "Crops":
        return Crops(self.boxes.pin_memory(), self.is_flipped.pin_memory())

    def to(self, device: torch.device) -> "Crops":
        return Crops(self.boxes.to(device, non_blocking=True), self.is_flipped.to(device, non_blocking=True))


@dataclass(frozen=True)
class Batch:
    """Attributes:
    images: (B, C, H, W), uint8 or float32, not normalised; where there are `crops`, whole ones: (B, H, W, C).
    keys: (B,) int64, one for each sample: seed, epoch and index, hashed.
    bad: name and reason of each input that could not be read and was replaced.
    labels: (B,) int64 or, with several for an image, (B, classes) float32; None where not asked for or unknown.
    crops: what is still to be cut out of the images; None where they are cropped.
    """

    images: Tensor
    keys: Tensor
    bad: dict[str, str]
    labels: Tensor | None = None
    crops: Crops | None = None

    def pin_memory(self) -> "Batch":
        crops = None if self.crops is None else self.crops.pin_memory()
        return Batch(self.images.pin_memory(), self.keys.pin_memory(), self.bad, pinned(self.labels), crops)


def pinned(tensor: Tensor | None) -> Tensor | None:
    """In page-locked memory, from where a GPU copies without the CPU's help."""
    return None if tensor is None else tensor.pin_memory()


class Sample(NamedTuple):
    """`bad` is what could not be read on the way to the image; with a `crop` that is still whole, H × W × C."""

    image: Tensor | NDArray
    key: int
    bad: dict[str, str]
    label: Label
    crop: Crop | None = None


class Stream(Dataset):
    """Training samples by their position in the endless stream.

    Args:
        crops_per_decode: positions in a row that are crops of one image, decoded once where a reader has them together.
        is_whole: images stay whole, each with its crop, for `crop_and_normalise`; they must all have one shape.

    Raises:
        RequestError: the augmentation does not fit the images.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        seed: int,
        min_side: int,
        *,
        with_labels: bool = False,
        crops_per_decode: int = 1,
        is_whole: bool = False,
    ) -> None:
        assert crops_per_decode >= 1
        assert augmentation.only_crops or not is_whole
        if augmentation.rand_augment is not None:
            check_rand_augment(preprocessing.channels, preprocessing.dtype)
            assert augmentation.fill is None or len(augmentation.fill) == preprocessing.channels
        self.source, self.preprocessing, self.augmentation = source, preprocessing, augmentation
        self.seed, self.min_side, self.with_labels = seed, min_side, with_labels
        self.crops_per_decode, self.is_whole = crops_per_decode, is_whole

    def locate(self, positions: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The index in the source and the key of each position: two (B,) arrays."""
        groups, crops = np.divmod(np.asarray(positions, dtype=np.int64), self.crops_per_decode)
        epochs, offsets = np.divmod(groups, len(self.source))
        indices = np.empty_like(offsets)
        for epoch in np.unique(epochs).tolist():
            of_epoch = epochs == epoch
            indices[of_epoch] = Permutation(len(self.source), self.seed, epoch)(offsets[of_epoch])
        keys = sample_keys(self.seed, epochs, indices)
        return indices, keys if self.crops_per_decode == 1 else crop_keys(keys, crops)

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        """A batch at once: DataLoader's fetcher prefers this, and hashing in bulk is far cheaper."""
        indices, keys = self.locate(positions)
        chances = uniforms(keys, NUM_CHANCES, "augment")
        p, samples = self.preprocessing, list[Sample]()
        before, found = None, None
        for index, key, chance in zip(indices.tolist(), keys.tolist(), chances, strict=True):
            if found is None or index != before:
                before, found = index, self._read(index)
            if self.is_whole:
                crop = self.augmentation.crop(found.image, p.image_size, chance)
                samples.append(Sample(found.image, key, found.bad, found.label, crop))
            else:
                image = self.augmentation(found.image, p.image_size, chance, key, p.value_range)
                samples.append(Sample(image, key, found.bad, found.label))
        return samples

    def __getitem__(self, position: int) -> Sample:
        return self.__getitems__([position])[0]

    def _read(self, index: int) -> "_Decoded":
        """Read one image; an unreadable one is replaced by the next readable one in the source's order.

        Raises:
            RequestError: far too many images in a row are unreadable.
        """
        bad: dict[str, str] = {}
        for attempt in range(min(MOST_REPLACEMENTS, len(self.source))):
            candidate = (index + attempt) % len(self.source)
            try:
                image = fit_to_model(self.source.read(candidate), self.preprocessing, self.min_side)
                return _Decoded(image, bad, self.source.label(candidate) if self.with_labels else None)
            except BadImage as error:
                bad[self.source.name(candidate)] = str(error)
        name, reason = next(iter(bad.items()))
        raise RequestError(f"{len(bad)} images in a row cannot be read, the first {name!r}: {reason}")


class _Decoded(NamedTuple):
    image: NDArray
    bad: dict[str, str]
    label: Label


def collate(samples: Sequence[Sample]) -> Batch:
    """A micro-batch of samples."""
    images, keys, bad, labels, crops = zip(*samples, strict=True)
    reasons = {name: reason for found in bad for name, reason in found.items()}
    return Batch(stack(images), torch.tensor(keys), reasons, stacked(labels), _crops_of(crops))


def _crops_of(crops: Sequence[Crop | None]) -> Crops | None:
    known = [crop for crop in crops if crop is not None]
    if not known:
        return None
    return Crops(torch.tensor([crop.box for crop in known]), torch.tensor([crop.is_flipped for crop in known]))


def stack(images: Sequence[Tensor | NDArray]) -> Tensor:
    """Images of one size and type as a batch: (B, ...); in a reader process straight into what it shares."""
    tensors = [image for image in images if isinstance(image, Tensor)]
    if tensors:
        return torch.stack(tensors, out=_room((len(images), *tensors[0].shape), tensors[0].dtype))
    arrays = [image for image in images if isinstance(image, np.ndarray)]
    batch = _room((len(images), *arrays[0].shape), torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype)
    np.stack(arrays, out=batch.numpy())  # by NumPy, for torch warns of read-only memory, which a pack's pages are
    return batch


def _room(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty tensor; in a reader process in memory that it shares."""
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    room = torch.empty(0, dtype=dtype)
    shared = room.untyped_storage()._new_shared(math.prod(shape) * room.element_size(), device="cpu")
    return room.set_(shared, 0, shape)  # type: ignore[call-overload]


def stacked(labels: Sequence[Label]) -> Tensor | None:
    """The labels of a batch; None where no image has one.

    Raises:
        RequestError: some have one and others not.
    """
    known = [label for label in labels if label is not None]
    if not known:
        return None
    if len(known) < len(labels):
        raise RequestError(
            f"{len(labels) - len(known)} of {len(labels)} images of a batch have no label: give them one"
        )
    values = np.stack([np.asarray(label) for label in known])
    return torch.from_numpy(values.astype(np.int64 if values.ndim == 1 else np.float32))


class _Positions:
    """The stream's positions that one process reads: of each step's global batch its share, cut into micro-batches."""

    def __init__(self, steps: range, batch_size: int, share: range, micro_batch_size: int) -> None:
        self.steps, self.batch_size = steps, batch_size
        self.parts = [share[start : start + micro_batch_size] for start in range(0, len(share), micro_batch_size)]

    def __iter__(self) -> Iterator[list[int]]:
        return ([step * self.batch_size + i for i in part] for step in self.steps for part in self.parts)

    def __len__(self) -> int:
        return len(self.steps) * len(self.parts)


def training_loader(
    stream: Stream, *, steps: range, batch_size: int, share: range, micro_batch_size: int, workers: int, pin: bool
) -> DataLoader:
    """Micro-batches of `steps` in order, whatever the number of workers.

    Args:
        batch_size: samples of a step over all processes.
        share: this process's among them.
        micro_batch_size: samples of a micro-batch; the last of a step may be smaller.
    """
    positions = _Positions(steps, batch_size, share, micro_batch_size)
    return make_loader(stream, positions, collate, workers=workers, pin=pin)


def make_loader(
    dataset: Dataset,
    batches: Iterable[list[int]],
    collate: Callable[[list[Any]], Any],
    *,
    workers: int,
    pin: bool,
) -> DataLoader:
    """A loader of `batches` of the data set, in their order; its readers leave signals to the main process."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        timeout=WORKER_TIMEOUT if workers else 0,
        worker_init_fn=_start_worker,
        prefetch_factor=2 if workers else None,
        generator=torch.Generator(),  # or it would draw from the global one, though nothing here uses its numbers
    )


def read(loader: DataLoader) -> Generator[Any, None, None]:
    """Go through a loader once; when the generator is closed, its reader processes are gone.

    Readers ignore SIGTERM, and Python waits for its children at exit: one that hangs would hang the program.
    """
    before = set(multiprocessing.active_children())
    batches = iter(loader)
    readers = set(multiprocessing.active_children()) - before
    try:
        yield from batches
    finally:
        if readers:  # private, but a traceback may keep `batches` alive, and then nothing else ends the readers
            batches._shutdown_workers()  # type: ignore[attr-defined]
        for reader in readers:
            if reader.is_alive():
                reader.kill()


def _start_worker(worker: int) -> None:
    # Ctrl-C, `timeout` and Slurm signal the whole process group; the main process decides when its workers stop.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
