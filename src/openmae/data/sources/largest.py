"""The largest image of a source, from the headers of its files: tells how much memory readers will need."""

from typing import NamedTuple

import numpy as np

from openmae.data.decoding.headers import Header
from openmae.data.decoding.pixels import BadImage
from openmae.data.decoding.regions import can_read_regions
from openmae.data.randomness import Permutation
from openmae.data.sources.folder import FolderSource
from openmae.data.sources.open import Source
from openmae.data.sources.views import root_of

MAX_HEADERS = 1000
READER_MEMORY_FACTOR = 2.5  # peak memory of a reader over the decoded size of an image (docs/data.md)


class LargestImage(NamedTuple):
    """The image of a source that takes the most memory, as far as headers were read.

    Attributes:
        height, width, channels: of that image, upright.
        decoded_bytes: what its decoded values take.
        num_seen, num_images: how many headers were read, of how many images.
    """

    height: int
    width: int
    channels: int
    decoded_bytes: int
    num_seen: int
    num_images: int

    @property
    def reader_bytes(self) -> int:
        """Peak memory of a reader for this image."""
        return int(READER_MEMORY_FACTOR * self.decoded_bytes)


def largest_image(source: Source, max_headers: int = MAX_HEADERS, is_cropped: bool = True) -> LargestImage | None:
    """The largest image, from at most `max_headers` randomly drawn headers; None for sources other than folders.

    All files of a folder count, also those of other views of it: held-out images have readers, too.

    Args:
        is_cropped: only crops of images are read, so images whose crops can be read alone do not count.
    """
    files = root_of(source)
    if not isinstance(files, FolderSource):
        return None
    count, headers = len(files), list[tuple[Header, int]]()
    indices = range(count) if count <= max_headers else Permutation(count, 0)(np.arange(max_headers)).tolist()
    for index in indices:
        try:
            headers.append((files.header(index), index))
        except BadImage:  # reported when it is read
            continue
    for header, index in sorted(headers, key=lambda item: -item[0].decoded_bytes):
        if not (is_cropped and can_read_regions(files, index)):
            return LargestImage(*header.size, header.channels, header.decoded_bytes, len(indices), count)
    return None
