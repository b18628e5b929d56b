"""`openmae pack`: any data turned into data that is fast to read."""

import json
import os
import shutil
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from openmae.config import Dataset, PackConfig, Preprocessing, paths_of
from openmae.config.checks import OFF
from openmae.data.decoding.decode import BadImage
from openmae.data.decoding.npy import CHANNELS_LAST
from openmae.data.preprocess import DataFacts, look_at
from openmae.data.randomness import Permutation
from openmae.data.scale import EIGHT_BITS, Rescale, match_own_scale, match_scale, value_lines
from openmae.data.sources.open import Source, Splits, open_source, open_splits
from openmae.data.sources.pack import KEEP_OR_RESCALE, Packing
from openmae.data.sources.packed import MANIFEST, UNFINISHED, VERSION, damage, read_pack
from openmae.data.sources.reading import reading_of
from openmae.data.sources.sizes import cut_into_tiles
from openmae.data.sources.tiles import Tiled
from openmae.data.sources.views import nodata_in
from openmae.errors import Fault, RequestError, shown
from openmae.machine.device import num_cores
from openmae.machine.files import PARTIAL, disk_faults, size_words
from openmae.machine.signals import StopRequest
from openmae.planning.image_size import packed_size, share_seen
from openmae.planning.summary_lines import nodata_lines
from openmae.run.lock import check_place, held
from openmae.tasks.pack.files import (
    write_manifest,
)
from openmae.tasks.pack.job import QUARANTINE, PackJob

DEFAULT_SIZE = 256
# In a manifest only where they say something; and what they were before there was a choice.
LATE: dict[str, Any] = {"tiles": None, "value_range": None, "rescale": None, "axes": CHANNELS_LAST, "nodata": OFF}
LOOKED_AT, PROBED = 64, 32  # images from which the type and the size of the pack are told


def pack(config: PackConfig) -> dict[str, Any]:
    """Pack DATA into OUT, or check a pack.

    Returns:
        status, images, unreadable, bytes, seconds.

    Raises:
        RequestError: a wrong setting, unusable data, OUT exists, too many unreadable files, a damaged pack.
        Interrupted: a signal; what is packed stays, and `--resume auto` goes on.
        Fault: the disk is or would be full, or a reader process died.
    """
    started = time.monotonic()
    config = config.plain()
    if config.verify:
        assert config.data is not None
        return verify(config.data)
    assert config.out is not None
    with StopRequest() as stop, ExitStack() as lock:
        stop.defer()
        out = Path(config.out)
        check_place(out, "OUT")
        check_apart(config.dataset, out)
        check_vacant(config, out)
        earlier, is_finished = read_earlier(out)
        splits = open_all(config, earlier)
        sources = splits.sources
        plan, packing, estimate, facts, lines = make_plan(config, sources, earlier)
        check_same(out, plan, earlier)
        finished = earlier if is_finished else None
        if finished is None:
            with disk_faults(out):
                out.mkdir(parents=True, exist_ok=True)
            lock.enter_context(held(out, "OUT"))
            check_disk(out, estimate)
            told = [*splits.lines, *plan_lines(config, plan, packing, estimate, sources, facts)]
            print("\n".join([*told, *facts.axes.lines, *nodata_lines(facts), *lines]), flush=True)
            with disk_faults(out), closing(PackJob(config, out, sources, packing, plan, stop)) as job:
                write_manifest(out / UNFINISHED, plan)
                finished = job.run()
        clean(out)
        what = "images" if config.tiles is None else "tiles"
        total = sum(split["images"] for split in finished["splits"].values())
        blank = sum(split.get("blank_tiles", 0) for split in finished["splits"].values())
        missing = sum(split["inputs"] - split["images"] for split in finished["splits"].values()) - blank
        size = sum(file["bytes"] for file in finished["files"].values())
        told = [f"{missing:,} left out"] * (missing > 0) + [f"{blank:,} blank tiles left out"] * (blank > 0)
        left_out = f"; {' and '.join(told)}, {QUARANTINE} says which and why" if told else ""
        print(f"packed     {total:,} {what} into {shown(out)}, {size_words(size)}{left_out}")
        seconds = round(time.monotonic() - started, 1)
        found = {"status": "complete", "images": total, "unreadable": missing, "bytes": size, "seconds": seconds}
        return found if config.tiles is None else {**found, "blank_tiles": blank}


def verify(data: str) -> dict[str, Any]:
    """Check every byte of a pack.

    Raises:
        RequestError: it is damaged, or none.
    """
    started, root = time.monotonic(), Path(data)
    manifest = read_pack(root)
    if manifest is None:
        raise RequestError(f"{shown(data)} is no pack: it has no {MANIFEST}")
    found = damage(root, manifest)
    for split in manifest["splits"]:
        if not found:
            open_source(data, split)
    if found:
        raise RequestError(f"{shown(data)} is damaged: {'; '.join(found[:5])}")
    size = sum(file["bytes"] for file in manifest["files"].values())
    images = sum(split["images"] for split in manifest["splits"].values())
    print(f"whole      {shown(data)}: {images:,} images, {size_words(size)} in {len(manifest['files'])} files")
    seconds = round(time.monotonic() - started, 1)
    return {"status": "complete", "images": images, "unreadable": 0, "bytes": size, "seconds": seconds}


def check_apart(data: Dataset, out: Path) -> None:
    """Raise RequestError where the pack would lie among its data, or they in it."""
    for path in paths_of(data):
        there, here = Path(os.path.realpath(path)), Path(os.path.realpath(out))
        if here.is_relative_to(there) or there.is_relative_to(here):
            raise RequestError(f"OUT {shown(out)} and DATA {shown(path)} lie inside each other: choose another OUT")


def check_vacant(config: PackConfig, out: Path) -> None:
    """Raise RequestError where something would be lost."""
    there = {path.name for path in out.iterdir()} if out.exists() else set()
    if there <= {PARTIAL + UNFINISHED}:  # it was ended while it wrote the first file
        return
    is_ours = os.path.lexists(out / UNFINISHED) or (os.path.lexists(out / MANIFEST) and read_pack(out) is not None)
    if not is_ours:
        raise RequestError(f"{shown(out)} exists and holds something else: choose another OUT")
    if config.resume == "never":
        raise RequestError(f"{shown(out)} exists already: --resume auto goes on with it, another OUT starts one")


def read_earlier(out: Path) -> tuple[dict[str, Any] | None, bool]:
    """The manifest that an earlier start left, if there was one, and whether it finished.

    Raises:
        RequestError: it cannot be read.
    """
    finished = read_pack(out) if os.path.lexists(out / MANIFEST) else None
    if finished is not None or not os.path.lexists(out / UNFINISHED):
        return finished, finished is not None
    try:
        earlier = json.loads((out / UNFINISHED).read_bytes())
    except (OSError, ValueError) as error:
        raise RequestError(f"{shown(out / UNFINISHED)} cannot be read ({error}): choose another OUT") from None
    return (earlier if isinstance(earlier, dict) else {}), False


def size_of(earlier: dict[str, Any] | None) -> int | tuple[int, int] | None:
    """The size that a pack was begun with."""
    size = None if earlier is None else earlier.get("size")
    return tuple(size) if isinstance(size, list) else size


def check_same(out: Path, plan: dict[str, Any], earlier: dict[str, Any] | None) -> None:
    """Raise RequestError where what is there was begun with other settings or other data."""
    if earlier is None:
        return
    late = (name for name in LATE if name in earlier and name not in plan)
    for name in dict.fromkeys(
        ("tiles", "nodata", *plan, *late)
    ):  # a pack of tiles is not gone on with as one of images
        if name == "openmae_pack":  # a finished pack of images with empty values is of a later version
            continue
        value: Any = plan.get(name, LATE.get(name))
        before: Any = earlier.get(name, LATE.get(name))
        if name == "splits":
            same = all(
                {key: (before or {}).get(split, {}).get(key) for key in of_split} == of_split
                for split, of_split in value.items()
            )
            if not same or set(before or {}) != set(value):
                raise RequestError(f"DATA is not what {shown(out)} was begun with: choose another OUT")
        elif before != value:
            raise RequestError(f"{shown(out)} was begun with {name} {before}, not {value}: choose another OUT")


def clean(out: Path) -> None:
    """Remove what only an unfinished pack needs."""
    for path in sorted(out.glob(PARTIAL + "*")):
        path.unlink(missing_ok=True)


def open_all(config: PackConfig, earlier: dict[str, Any] | None) -> Splits:
    """All parts of DATA that there are: as the pack that is gone on with found them, if it is an older one."""
    found = _opened(config, earlier)
    if earlier is None or is_of(earlier, found.sources):
        return found
    with suppress(RequestError):  # what was refused then cannot be what was packed
        as_before = _opened(config, earlier, split_rules=1)
        return as_before if is_of(earlier, as_before.sources) else found
    return found


def _opened(config: PackConfig, earlier: dict[str, Any] | None, split_rules: int | None = None) -> Splits:
    options = reading_of(config, None, config.background)
    if earlier is not None and config.axes is None:  # read as the earlier start read it
        options["axes"] = str(earlier.get("axes", LATE["axes"]))
    if earlier is not None and config.nodata is None:
        options["nodata"] = earlier.get("nodata", LATE["nodata"])
    found = open_splits(config.dataset, split_rules=split_rules, **options)
    if config.tiles is None:
        return found
    named, workers = str(config.dataset), num_cores() if config.workers is None else config.workers
    cut: dict[str, Source] = {
        s: cut_into_tiles(source, config.tiles, named, workers) for s, source in found.sources.items()
    }
    return replace(found, sources=cut)


def is_of(earlier: dict[str, Any] | None, sources: dict[str, Source]) -> bool:
    """Whether a pack was begun with these parts."""
    splits = earlier.get("splits") if isinstance(earlier, dict) else None
    return (
        isinstance(splits, dict)
        and splits.keys() == sources.keys()
        and all(
            isinstance(splits[split], dict) and splits[split].get("fingerprint") == source.fingerprint()
            for split, source in sources.items()
        )
    )


def make_plan(
    config: PackConfig, sources: dict[str, Source], earlier: dict[str, Any] | None
) -> tuple[dict[str, Any], Packing, int, DataFacts, list[str]]:
    """What the pack will be, a pure function of settings and data; about how many bytes; what was seen of the data
    and what was understood of its values.

    Args:
        earlier: the manifest of an earlier start, which goes on as it began.

    Raises:
        RequestError: JPEG cannot hold the data.
    """
    first = next(iter(sources.values()))
    facts = look_at(first, LOOKED_AT, beside=sources.values())
    is_raw = config.format == "raw"
    size = config.size if config.size is not None else size_of(earlier) if config.tiles is None else config.tiles
    if size is None:
        size = packed_size(facts, DEFAULT_SIZE) if is_raw else min(DEFAULT_SIZE, facts.short_side)
    rescale, lines = scale_of_pack(config, facts, earlier)
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
    mean_bytes = packing.row_bytes if is_raw else probe(first, packing)
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
        "axes": facts.axes.order if facts.axes.why is not None and (earlier is None or "axes" in earlier) else None,
    }
    setting = nodata_in(first)
    plan |= {name: value for name, value in late.items() if value is not None}
    plan |= {} if setting in (None, OFF) else {"nodata": setting}
    return plan, packing, round(num_inputs * (mean_bytes + 64)), facts, value_lines(lines)


def scale_of_pack(
    config: PackConfig, facts: DataFacts, earlier: dict[str, Any] | None
) -> tuple[Rescale | None, list[str]]:
    """What brings images of another number type to the pack's, and what to say about it.

    JPEGs hold 8 bits: other images come into them by a stated range only. A raw pack has the type of most images.
    """
    if earlier is not None:
        stored = earlier.get("rescale")
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
        matched, lines = match_scale(own, facts.depths, value_range, named="the pack")
    else:
        return None, []
    return Rescale.of(matched), lines


def probe(source: Source, packing: Packing) -> float:
    """Bytes of a packed image, from some that are drawn evenly."""
    sizes = []
    chosen = Permutation(len(source), 1)(np.arange(min(PROBED, len(source))))
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
