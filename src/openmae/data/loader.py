"""The endless stream of training samples and the loader that reads it (ARCHITECTURE: order and chance).

Position t of the stream is sample `permutation_of_epoch(t mod n)` of epoch `t // n`; batch s holds the
positions s·B … (s+1)·B − 1. Every batch is full, and where a run stands is one integer: its step.
"""

import multiprocessing
import signal
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from openmae.config import Preprocessing
from openmae.data.augment import NUM_CHANCES, augment, centre_box, resized_crop
from openmae.data.chance import Permutation, sample_keys, uniforms
from openmae.data.decode import BadImage
from openmae.data.preprocess import conform
from openmae.data.sources import Source
from openmae.errors import RequestError

MOST_REPLACEMENTS = 1000
WORKER_TIMEOUT = 300  # seconds until a hung worker is given up
_SPLIT_KEY = 0x5EED  # the held-out split does not change with the seed of a run


@dataclass(frozen=True)
class Batch:
    """Attributes:
    images: (B, C, H, W), uint8 or float32, not normalised.
    keys: (B,) int64, one for each sample: seed, epoch and index, hashed.
    bad: name and reason of each input that could not be read and was replaced.
    """

    images: Tensor
    keys: Tensor
    bad: dict[str, str]

    def pin_memory(self) -> "Batch":
        return Batch(self.images.pin_memory(), self.keys.pin_memory(), self.bad)


class Subset:
    """A part of a source: `count` entries of a fixed permutation, in O(1) memory."""

    def __init__(self, source: Source, start: int, count: int) -> None:
        self.source, self.start, self.count = source, start, count
        self.permutation = Permutation(len(source), _SPLIT_KEY)
        self.classes, self.ignored = source.classes, source.ignored

    def __len__(self) -> int:
        return self.count

    def _index(self, index: int) -> int:
        assert 0 <= index < self.count
        return int(self.permutation(self.start + index)[0])

    def name(self, index: int) -> str:
        return self.source.name(self._index(index))

    def label(self, index: int) -> int | None:
        return self.source.label(self._index(index))

    def read(self, index: int) -> Any:
        return self.source.read(self._index(index))

    def fingerprint(self) -> str:
        return f"{self.source.fingerprint()}[{self.start}:{self.start + self.count}]"


def split_held_out(source: Source, held_out: int) -> tuple[Subset, Subset]:
    """Take `held_out` images out of a source: (the rest, those), disjoint and the same in every run."""
    assert 0 < held_out < len(source)
    return Subset(source, held_out, len(source) - held_out), Subset(source, 0, held_out)


Sample = tuple[Tensor, int, dict[str, str]]  # image, key, what could not be read on the way to it


class Stream(Dataset):
    """Training samples by their position in the endless stream."""

    def __init__(self, source: Source, preprocessing: Preprocessing, kind: str, seed: int, min_side: int) -> None:
        self.source, self.preprocessing = source, preprocessing
        self.kind, self.seed, self.min_side = kind, seed, min_side

    def locate(self, positions: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The index in the source and the key of each position: two (B,) arrays."""
        epochs, offsets = np.divmod(np.asarray(positions, dtype=np.int64), len(self.source))
        indices = np.empty_like(offsets)
        for epoch in np.unique(epochs).tolist():
            of_epoch = epochs == epoch
            indices[of_epoch] = Permutation(len(self.source), self.seed, epoch)(offsets[of_epoch])
        return indices, sample_keys(self.seed, epochs, indices)

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        """A batch at once: DataLoader's fetcher prefers this, and hashing in bulk is far cheaper."""
        indices, keys = self.locate(positions)
        chances = uniforms(keys, NUM_CHANCES, "augment")
        return [
            self._sample(i, k, chance) for i, k, chance in zip(indices.tolist(), keys.tolist(), chances, strict=True)
        ]

    def __getitem__(self, position: int) -> Sample:
        return self.__getitems__([position])[0]

    def _sample(self, index: int, key: int, chance: NDArray[np.float64]) -> Sample:
        """Read one image; an unreadable one is replaced by the next readable one in the source's order.

        Raises:
            RequestError: far too many images in a row are unreadable.
        """
        bad: dict[str, str] = {}
        for attempt in range(min(MOST_REPLACEMENTS, len(self.source))):
            candidate = (index + attempt) % len(self.source)
            try:
                image = self.source.read(candidate)
                image = conform(image, self.preprocessing.channels, self.preprocessing.dtype, self.min_side)
                p = self.preprocessing
                return augment(image, self.kind, p.image_size, chance, p.value_range), key, bad
            except BadImage as error:
                bad[self.source.name(candidate)] = str(error)
        name, reason = next(iter(bad.items()))
        raise RequestError(f"{len(bad)} images in a row cannot be read, the first {name!r}: {reason}")


def collate(samples: Sequence[tuple[Tensor, int, dict[str, str]]]) -> Batch:
    images, keys, bad = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.tensor(keys), {k: v for found in bad for k, v in found.items()})


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
    return DataLoader(
        stream,
        batch_sampler=_Positions(steps, batch_size, share, micro_batch_size),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        timeout=WORKER_TIMEOUT if workers else 0,
        worker_init_fn=_start_worker,
        prefetch_factor=2 if workers else None,
    )


def read(loader: DataLoader) -> Generator[Batch, None, None]:
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


def read_all(
    source: Source, preprocessing: Preprocessing, min_side: int
) -> tuple[Tensor, NDArray[np.int64], dict[str, str]]:
    """Read a small source whole, centre-cropped: images (n, C, H, W), their indices, and what was unreadable.

    Evaluation never replaces an unreadable image: it is left out and named.
    """
    images, indices, bad, size = [], [], {}, preprocessing.image_size
    for index in range(len(source)):
        try:
            image = conform(source.read(index), preprocessing.channels, preprocessing.dtype, min_side)
        except BadImage as error:
            bad[source.name(index)] = str(error)
            continue
        images.append(resized_crop(image, centre_box(image, size), size))
        indices.append(index)
    empty = torch.empty(0, preprocessing.channels, *size)
    return torch.stack(images) if images else empty, np.array(indices, dtype=np.int64), bad
