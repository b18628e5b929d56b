"""The plan's lines about tiles: how many there are, of which images, and what reading them costs."""

import numpy as np

from openmae.config import ResolvedPretrainConfig, words_of
from openmae.data.decoding.regions import can_read_regions
from openmae.data.preprocess import DataFacts
from openmae.data.sources.tiles import Tiled
from openmae.data.sources.views import raw_shape
from openmae.errors import quoted, shown
from openmae.tasks.pretrain.data import TrainingData

MAX_OPENED = 256  # images that are opened to learn whether regions of them can be read alone


def tile_lines(config: ResolvedPretrainConfig, data: TrainingData, facts: DataFacts) -> list[str]:
    """The lines that follow those about the data; none without `--tiles`."""
    train, size = data.train, config.tiles
    if not isinstance(train, Tiled):
        return []
    images = len(train.sizes)
    lines = [
        f"tiles      {len(train):,} of {size} px, from the headers of {images:,} images: {train.num_cut:,} are larger "
        f"and cut, {images - train.num_cut:,} stay whole"
    ]
    if facts.num_blank:
        lines.append(
            f"blank      {facts.num_blank:,} of the tiles looked at: where one is read, another tile of its image "
            "takes its place; blank_tiles in summary.json counts them"
        )
    decoded = _largest_decoded(train) if raw_shape(train) is None else None
    if decoded is not None:
        (height, width), name = train.sizes[decoded].tolist(), shown(train.source.name(decoded))
        lines.append(
            f"note       each tile of an image like {name} ({height} x {width} px) decodes it whole: openmae pack "
            f"{quoted(*words_of(config.dataset))} PACK --tiles {size} does so once, and PACK is DATA here"
        )
    return lines


def _largest_decoded(tiled: Tiled) -> int | None:
    """The largest image that is decoded whole for each of its tiles, among those opened; None where there is none."""
    pixels = tiled.sizes.astype(np.int64).prod(axis=1)
    largest = np.argsort(-pixels, kind="stable")[: min(MAX_OPENED, tiled.num_cut)].tolist()
    return next((image for image in largest if not can_read_regions(tiled.source, image)), None)
