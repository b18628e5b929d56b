"""The largest image of a source, from the headers of its files: what a reader must have memory for is known before."""

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
READER_MEMORY_FACTOR = 2.5  # what a reader takes at most, of the decoded bytes of an image (docs/data.md)


class LargestImage(NamedTuple):
    """The image of a source that takes most memory, as far as headers were read.

    Attributes:
        height, width, channels: of that image, upright.
        decoded_bytes: what its decoded values take.
        num_seen, num_images: headers that were asked for, of so many images.
    """

    height: int
    width: int
    channels: int
    decoded_bytes: int
    num_seen: int
    num_images: int

    @property
    def reader_bytes(self) -> int:
        """Memory that a reader takes for it at most."""
        return int(READER_MEMORY_FACTOR * self.decoded_bytes)


def largest_image(source: Source, most: int = MAX_HEADERS, is_cut: bool = True) -> LargestImage | None:
    """The largest among all images, or among `most` that are evenly drawn; None where no header can be read alone.

    All files of a folder count, whichever part of them this source is: what is held out has its readers, too.

    Args:
        is_cut: parts of images are what is read: those of which a part can be read alone do not count.
    """
    files = root_of(source)
    if not isinstance(files, FolderSource):
        return None
    count, headers = len(files), list[tuple[Header, int]]()
    drawn = range(count) if count <= most else Permutation(count, 0)(np.arange(most)).tolist()
    for index in drawn:
        try:
            headers.append((files.header(index), index))
        except BadImage:  # said when it is read
            continue
    for header, index in sorted(headers, key=lambda found: -found[0].decoded_bytes):
        if not (is_cut and can_read_regions(files, index)):
            return LargestImage(*header.size, header.channels, header.decoded_bytes, len(drawn), count)
    return None
