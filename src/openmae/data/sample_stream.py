"""The endless stream of training samples: which image is where, and with which key (docs/architecture.md).

Epoch e is a permutation of the n images (`Permutation`); position t of the stream is element t mod n of the permutation
of epoch t // n. Batch s holds the positions s·B … (s+1)·B − 1. Every batch is full, so the step alone says where a run
stands.

With K crops per decoded image (repeated augmentation), positions K·g … K·g + K − 1 are crops of the image that position
g would have: an image comes K times in a row, once in every K epochs. An epoch stays n crops, so the length and the
schedule of a run do not change.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from openmae.data.batch import Batch
from openmae.data.decoding.pixels import BadImage
from openmae.data.randomness import Permutation, crop_keys, sample_keys
from openmae.data.reader_process import MemoryShortage
from openmae.data.sources.open import Source
from openmae.errors import RequestError

SampleT = TypeVar("SampleT")
MAX_REPLACEMENTS = 1000  # unreadable images in a row, or blank ones, after which the run ends


class SampleStream(Dataset, ABC):
    """Training samples by their position in the endless stream; subclasses say what a sample is.

    Args:
        source: the training images.
        seed: determines the order and the augmentation.
        crops_per_decode: consecutive positions that are crops of one image, which a reader decodes once.
    """

    def __init__(self, source: Source, seed: int, crops_per_decode: int = 1) -> None:
        assert crops_per_decode >= 1
        self.source, self.seed, self.crops_per_decode = source, seed, crops_per_decode
        self.shortage = MemoryShortage()  # how many readers memory allows; kept when readers are restarted

    @property
    @abstractmethod
    def bytes_per_sample(self) -> int:
        """Bytes of a sample as a reader returns it."""

    @abstractmethod
    def __getitems__(self, positions: Sequence[int]) -> list[Any]:
        """A whole batch: DataLoader calls this where it is defined, and hashing a batch at once is far cheaper."""

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> Batch:
        """Stack samples into a micro-batch."""

    def load(self) -> None:
        """Import what it needs, which takes seconds: before readers are forked, which else would do so each."""

    def locate(self, positions: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The index in the source and the key of each of B positions: two (B,) arrays."""
        # `groups` number the decoded images, `crops` the crops of one of them.
        groups, crops = np.divmod(np.asarray(positions, dtype=np.int64), self.crops_per_decode)
        epochs, offsets = np.divmod(groups, len(self.source))
        indices = np.empty_like(offsets)
        for epoch in np.unique(epochs).tolist():
            in_epoch = epochs == epoch
            indices[in_epoch] = Permutation(len(self.source), self.seed, epoch)(offsets[in_epoch])
        keys = sample_keys(self.seed, epochs, indices)
        return indices, keys if self.crops_per_decode == 1 else crop_keys(keys, crops)

    def first_usable(self, index: int, make: Callable[[int], SampleT]) -> tuple[SampleT, dict[str, str]]:
        """What `make` makes of an image, or where that raises BadImage, of the next usable one in the source's order.

        Returns:
            It, and the images that it replaces: name → reason.

        Raises:
            RequestError: far too many in a row are unusable.
        """
        bad, count = dict[str, str](), len(self.source)
        for candidate in itertools.islice(((index + i) % count for i in range(count)), MAX_REPLACEMENTS):
            try:
                return make(candidate), bad
            except BadImage as error:
                bad[self.source.name(candidate)] = str(error)
        name, reason = next(iter(bad.items()))
        raise RequestError(f"{len(bad)} images in a row cannot be used, the first {name!r}: {reason}")

    def __getitem__(self, position: int) -> Any:
        return self.__getitems__([position])[0]
