"""The plan of a pack, decided from settings and data, and the lines that are printed about it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from openmae.config import PackConfig, Preprocessing
from openmae.config.checks import OFF
from openmae.data.decoding.decode import BadImage
from openmae.data.decoding.npy import CHANNELS_LAST
from openmae.data.preprocess import DataFacts, survey
from openmae.data.randomness import Permutation
from openmae.data.sources.manifest import VERSION
from openmae.data.sources.open import Source
from openmae.data.sources.pack import KEEP_OR_RESCALE, Packing
from openmae.data.sources.tiles import Tiled
from openmae.data.sources.views import nodata_in
from openmae.data.value_scale import EIGHT_BITS, Rescale, match_own_scale, match_scale, value_lines
from openmae.errors import Fault, RequestError, shown
from openmae.machine.files import format_bytes
from openmae.planning.image_size import mean_coverage, pack_image_size

DEFAULT_SIZE = 256
# In a manifest only where they are set; the values are those of packs older than the setting.
OPTIONAL_DEFAULTS: dict[str, Any] = {
    "tiles": None,
    "value_range": None,
    "rescale": None,
    "axes": CHANNELS_LAST,
    "nodata": OFF,
}
NUM_SURVEYED, NUM_PROBED = 64, 32  # images for the statistics, and for the estimated size of the pack


def previous_size(previous: dict[str, Any] | None) -> int | tuple[int, int] | None:
    """The `size` in an earlier start's manifest."""
    size = None if previous is None else previous.get("size")
    return tuple(size) if isinstance(size, list) else size


def make_plan(
    config: PackConfig, sources: dict[str, Source], previous: dict[str, Any] | None
) -> tuple[dict[str, Any], Packing, int, DataFacts, list[str]]:
    """Decide what the pack will be, as a pure function of settings and data.

    Args:
        previous: the manifest of an earlier start, whose decisions are kept.

    Returns:
        The plan (the manifest without its files), the encoder of images, the estimated size in bytes, the statistics of
        the data, and lines about its values.

    Raises:
        RequestError: JPEG cannot hold the data.
    """
    first = next(iter(sources.values()))
    facts = survey(first, NUM_SURVEYED, other_splits=sources.values())
    is_raw = config.format == "raw"
    size = config.size if config.size is not None else previous_size(previous) if config.tiles is None else config.tiles
    if size is None:
        size = pack_image_size(facts, DEFAULT_SIZE) if is_raw else min(DEFAULT_SIZE, facts.short_side)
    rescale, lines = scale_of_pack(config, facts, previous)
    fits = facts.dtype == "uint8" or (rescale is not None and rescale.dtype == facts.dtype)
    if not is_raw and not (fits and facts.channels in (1, 3)):
        raise RequestError(
            f"DATA is {facts.dtype} in {facts.channels} channels, JPEG holds 8-bit grey or RGB: {KEEP_OR_RESCALE}"
        )
    packing = Packing(
        format=config.format,
        size=size,
        quality=config.quality,
        subsampling=config.subsampling,
        channels=facts.channels,
        dtype=facts.dtype if is_raw else "uint8",
        rescale=rescale,
    )
    num_inputs = sum(map(len, sources.values()))
    mean_bytes = packing.row_bytes if is_raw else mean_packed_bytes(first, packing)
    rows = max(1, round(config.shard_mb * 1e6 / mean_bytes))
    splits = {
        split: {
            "inputs": len(source),
            "fingerprint": source.fingerprint(),
            "classes": None if source.classes is None else list(source.classes),
            "labelled": any(source.label(i) is not None for i in range(len(source))),
        }
        for split, source in sources.items()
    }
    plan: dict[str, Any] = {
        "openmae_pack": VERSION,
        "format": config.format,
        "size": list(size) if isinstance(size, tuple) else size,
        "quality": None if is_raw else config.quality,
        "subsampling": None if is_raw else config.subsampling,
        "background": config.background,
        "max_pixels": config.max_pixels,
        "dtype": packing.dtype,
        "shape": list(packing.shape) if is_raw else None,
        "images_per_file": None if is_raw else rows,
        **({} if config.tiles is None else {"tiles": config.tiles}),
        "splits": splits,
    }
    value_range = config.value_range or facts.stated_range
    optional = {
        "value_range": None if value_range is None else list(value_range),
        "rescale": None if rescale is None else rescale.to_dict(),
        "axes": facts.axes.order if facts.axes.why is not None and (previous is None or "axes" in previous) else None,
    }
    setting = nodata_in(first)
    plan |= {name: value for name, value in optional.items() if value is not None}
    plan |= {} if setting in (None, OFF) else {"nodata": setting}
    return plan, packing, round(num_inputs * (mean_bytes + 64)), facts, value_lines(lines)


def scale_of_pack(
    config: PackConfig, facts: DataFacts, previous: dict[str, Any] | None
) -> tuple[Rescale | None, list[str]]:
    """The mapping of images of another number type to the pack's, and lines about it.

    JPEGs hold 8 bits: images of other types need a stated value range. A raw pack has the type of most images.
    """
    if previous is not None:
        stored = previous.get("rescale")
        return None if stored is None else Rescale.from_dict(stored), []
    value_range = config.value_range or facts.stated_range
    own = Preprocessing(
        channels=1,
        value_range=facts.value_range if config.format == "raw" else EIGHT_BITS,
        mean=(0.5,),
        std=(0.25,),
        image_size=(1, 1),
        dtype=facts.dtype if config.format == "raw" else "uint8",
    )
    if config.format == "raw":
        matched, lines = match_own_scale(own, facts.depths)
    elif value_range is not None:
        matched, lines = match_scale(own, facts.depths, value_range, target_name="the pack")
    else:
        return None, []
    return Rescale.from_preprocessing(matched), lines


def mean_packed_bytes(source: Source, packing: Packing) -> float:
    """Mean size of a packed image, from a random sample."""
    sizes = []
    indices = Permutation(len(source), 1)(np.arange(min(NUM_PROBED, len(source))))
    if isinstance(source, Tiled):  # in order, so that each image is decoded once for all of its tiles
        indices.sort()
    for index in indices.tolist():
        try:
            sizes.append(len(packing(source.read(index))[0]))
        except BadImage:
            continue
    return float(np.mean(sizes)) if sizes else float(packing.row_bytes)


def check_disk(out: Path, estimate: int) -> None:
    """Raise Fault where the disk has too little free space for the pack."""
    existing = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    free = shutil.disk_usage(out).free
    if estimate - existing > free:
        raise Fault(
            f"{shown(out)} needs about {format_bytes(estimate - existing)} and {format_bytes(free)} are free: "
            "free some space, give a smaller --size or another OUT"
        )


def plan_lines(
    config: PackConfig,
    plan: dict[str, Any],
    packing: Packing,
    estimate: int,
    sources: dict[str, Source],
    facts: DataFacts,
) -> list[str]:
    """The lines that are printed before packing starts."""
    counts = ", ".join(f"{len(source):,} of {split}" for split, source in sources.items())
    decided = "" if config.size is not None else " (--size decided: 256, or the images' own short side where smaller)"
    if config.tiles is not None:
        decided = f" ({config.tiles} px tiles; blank ones are left out)"
    elif plan["format"] == "raw" and config.size is None and packing.shape[0] != packing.shape[1]:
        decided = f" (--size decided: the images' median aspect, at most {DEFAULT_SIZE}x{DEFAULT_SIZE} pixels)"
    if plan["format"] == "raw":
        height, width, channels = packing.shape
        lost = 1 - mean_coverage(facts, (height, width))
        how = (
            f"raw {plan['dtype']}, the centre {height}x{width} px x {channels} of each image: what lies outside the "
            f"largest centred box is lost, {100 * lost:.0f} % of an image in the mean"
        )
    else:
        how = (
            f"JPEG, short side at most {plan['size']} px, quality {plan['quality']}, {plan['subsampling']}, "
            f"{plan['images_per_file']:,} images a file"
        )
    what = "images" if config.tiles is None else "tiles "
    return [f"{what:10} {counts}", f"pack       {how}{decided}", f"disk       about {format_bytes(estimate)}"]
