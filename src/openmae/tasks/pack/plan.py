"""What a pack will be, decided from the settings and the data, and what a person reads of it before."""

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
from openmae.data.sources.open import Source
from openmae.data.sources.pack import KEEP_OR_RESCALE, Packing
from openmae.data.sources.packed import VERSION
from openmae.data.sources.tiles import Tiled
from openmae.data.sources.views import nodata_in
from openmae.data.value_scale import EIGHT_BITS, Rescale, match_own_scale, match_scale, value_lines
from openmae.errors import Fault, RequestError, shown
from openmae.machine.files import size_words
from openmae.planning.image_size import packed_size, share_seen

DEFAULT_SIZE = 256
# In a manifest only where they say something; and what they were before there was a choice.
OPTIONAL_DEFAULTS: dict[str, Any] = {
    "tiles": None,
    "value_range": None,
    "rescale": None,
    "axes": CHANNELS_LAST,
    "nodata": OFF,
}
NUM_SURVEYED, NUM_PROBED = 64, 32  # images from which the type and the size of the pack are told


def previous_size(previous: dict[str, Any] | None) -> int | tuple[int, int] | None:
    """The size that a pack was begun with."""
    size = None if previous is None else previous.get("size")
    return tuple(size) if isinstance(size, list) else size


def make_plan(
    config: PackConfig, sources: dict[str, Source], previous: dict[str, Any] | None
) -> tuple[dict[str, Any], Packing, int, DataFacts, list[str]]:
    """Decide what the pack will be, as a pure function of settings and data.

    Args:
        earlier: the manifest of an earlier start, which goes on as it began.

    Returns:
        The plan, how images are packed, about how many bytes that takes, what was seen of the data, and what was
        understood of its values.

    Raises:
        RequestError: JPEG cannot hold the data.
    """
    first = next(iter(sources.values()))
    facts = survey(first, NUM_SURVEYED, other_splits=sources.values())
    is_raw = config.format == "raw"
    size = config.size if config.size is not None else previous_size(previous) if config.tiles is None else config.tiles
    if size is None:
        size = packed_size(facts, DEFAULT_SIZE) if is_raw else min(DEFAULT_SIZE, facts.short_side)
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
    late = {
        "value_range": None if value_range is None else list(value_range),
        "rescale": None if rescale is None else rescale.to_dict(),
        "axes": facts.axes.order if facts.axes.why is not None and (previous is None or "axes" in previous) else None,
    }
    setting = nodata_in(first)
    plan |= {name: value for name, value in late.items() if value is not None}
    plan |= {} if setting in (None, OFF) else {"nodata": setting}
    return plan, packing, round(num_inputs * (mean_bytes + 64)), facts, value_lines(lines)


def scale_of_pack(
    config: PackConfig, facts: DataFacts, previous: dict[str, Any] | None
) -> tuple[Rescale | None, list[str]]:
    """What brings images of another number type to the pack's, and what to say about it.

    JPEGs hold 8 bits: other images come into them by a stated range only. A raw pack has the type of most images.
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
    """Bytes of a packed image, from some that are drawn evenly."""
    sizes = []
    chosen = Permutation(len(source), 1)(np.arange(min(NUM_PROBED, len(source))))
    if isinstance(source, Tiled):  # tiles of an image one after the other decode it once
        chosen.sort()
    for index in chosen.tolist():
        try:
            sizes.append(len(packing(source.read(index))[0]))
        except BadImage:
            continue
    return float(np.mean(sizes)) if sizes else float(packing.row_bytes)


def check_disk(out: Path, estimate: int) -> None:
    """Raise Fault where the pack will not fit."""
    there = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    free = shutil.disk_usage(out).free
    if estimate - there > free:
        raise Fault(
            f"{shown(out)} needs about {size_words(estimate - there)} and {size_words(free)} are free: free some "
            "space, give a smaller --size or another OUT"
        )


def plan_lines(
    config: PackConfig,
    plan: dict[str, Any],
    packing: Packing,
    estimate: int,
    sources: dict[str, Source],
    facts: DataFacts,
) -> list[str]:
    """What a person reads before it begins."""
    counts = ", ".join(f"{len(source):,} of {split}" for split, source in sources.items())
    decided = "" if config.size is not None else " (--size decided: 256, or the images' own short side where smaller)"
    if config.tiles is not None:
        decided = f" ({config.tiles} px tiles; blank ones are left out)"
    elif plan["format"] == "raw" and config.size is None and packing.shape[0] != packing.shape[1]:
        decided = f" (--size decided: the images' median aspect, at most {DEFAULT_SIZE}x{DEFAULT_SIZE} pixels)"
    if plan["format"] == "raw":
        height, width, channels = packing.shape
        lost = 1 - share_seen(facts, (height, width))
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
    return [f"{what:10} {counts}", f"pack       {how}{decided}", f"disk       about {size_words(estimate)}"]
