"""What the plan says of tiles: how many there are, of what, and what their reading costs."""

from openmae.config import SettledConfig
from openmae.data.parts import raw_shape
from openmae.data.preprocess import DataFacts
from openmae.data.tiles import Tiled
from openmae.errors import shown
from openmae.tasks.training_data import TrainingData


def tile_lines(config: SettledConfig, data: TrainingData, facts: DataFacts) -> list[str]:
    """The lines behind that of the data; none without `--tiles`."""
    train, size = data.train, config.tiles
    if not isinstance(train, Tiled):
        return []
    images = len(train.sizes)
    lines = [
        f"tiles      {len(train):,} of {size} px, from the headers of {images:,} images: {train.num_cut:,} are larger "
        f"and cut, {images - train.num_cut:,} stay whole"
    ]
    if facts.blank:
        lines.append(
            f"blank      {facts.blank:,} of the tiles looked at: where one is read, another tile of its image takes "
            "its place; blank_tiles in summary.json counts them"
        )
    if train.num_cut and raw_shape(train) is None:
        tall, wide = max(map(tuple, train.sizes.tolist()), key=lambda side: side[0] * side[1])
        lines.append(
            f"note       each tile decodes the whole image that it is cut from, up to {tall} x {wide} px: openmae pack "
            f"{shown(str(config.dataset))} PACK --tiles {size} decodes each once, and PACK is DATA here"
        )
    return lines
