"""`openmae pack`: any data turned into data that is fast to read."""

import json
import os
import shutil
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from openmae.config import Dataset, PackConfig, paths_of
from openmae.data.chance import Permutation
from openmae.data.decode import BadImage
from openmae.data.pack import Packing
from openmae.data.packed import MANIFEST, UNFINISHED, VERSION, damage, read_pack
from openmae.data.preprocess import DataFacts, look_at
from openmae.data.sources import Source, Splits, open_source, open_splits
from openmae.errors import Fault, RequestError, shown
from openmae.tasks.image_size import packed_size, share_seen
from openmae.tasks.pack_files import (
    write_manifest,
)
from openmae.tasks.pack_job import QUARANTINE, PackJob
from openmae.tasks.place import check_place, held
from openmae.tasks.plan import size_words
from openmae.training.files import PARTIAL, disk_faults
from openmae.training.signals import StopRequest

DEFAULT_SIZE = 256
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
    config = PackConfig.from_dict(config.to_dict())  # paths as strings
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
        earlier = read_earlier(out)
        splits = open_all(config, earlier)
        sources = splits.sources
        plan, packing, estimate, facts = make_plan(config, sources, size_of(earlier))
        finished = check_same(out, plan, earlier)
        if finished is None:
            with disk_faults(out):
                out.mkdir(parents=True, exist_ok=True)
            lock.enter_context(held(out, "OUT"))
            check_disk(out, estimate)
            told = [*splits.lines, *plan_lines(config, plan, packing, estimate, sources, facts)]
            print("\n".join(told), flush=True)
            with disk_faults(out), closing(PackJob(config, out, sources, packing, plan, stop)) as job:
                write_manifest(out / UNFINISHED, plan)
                finished = job.run()
        clean(out)
        total = sum(split["images"] for split in finished["splits"].values())
        missing = sum(split["inputs"] - split["images"] for split in finished["splits"].values())
        size = sum(file["bytes"] for file in finished["files"].values())
        left_out = f"; {missing:,} left out, {QUARANTINE} says which and why" if missing else ""
        print(f"packed     {total:,} images into {shown(out)}, {size_words(size)}{left_out}")
        seconds = round(time.monotonic() - started, 1)
        return {"status": "complete", "images": total, "unreadable": missing, "bytes": size, "seconds": seconds}


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


def read_earlier(out: Path) -> Any:
    """The manifest of a finished pack, or the plan of an unfinished one; None where nothing was begun.

    Raises:
        RequestError: it cannot be read.
    """
    finished = read_pack(out) if os.path.lexists(out / MANIFEST) else None
    if finished is None and os.path.lexists(out / UNFINISHED):
        try:
            return json.loads((out / UNFINISHED).read_bytes())
        except (OSError, ValueError) as error:
            raise RequestError(f"{shown(out / UNFINISHED)} cannot be read ({error}): choose another OUT") from None
    return finished


def size_of(earlier: Any) -> int | tuple[int, int] | None:
    """The size that a pack was begun with."""
    size = earlier.get("size") if isinstance(earlier, dict) else None
    return tuple(size) if isinstance(size, list) else size


def check_same(out: Path, plan: dict[str, Any], earlier: Any) -> dict[str, Any] | None:
    """The manifest of a pack that is finished already, else None.

    Raises:
        RequestError: what is there was begun with other settings or other data.
    """
    if earlier is None:
        return None
    for name, value in plan.items():
        before = earlier.get(name) if isinstance(earlier, dict) else None
        if name == "splits":
            same = all(
                {key: (before or {}).get(split, {}).get(key) for key in of_split} == of_split
                for split, of_split in value.items()
            )
            if not same or set(before or {}) != set(value):
                raise RequestError(f"DATA is not what {shown(out)} was begun with: choose another OUT")
        elif before != value:
            raise RequestError(f"{shown(out)} was begun with {name} {before}, not {value}: choose another OUT")
    return read_pack(out) if os.path.lexists(out / MANIFEST) else None


def clean(out: Path) -> None:
    """Remove what only an unfinished pack needs."""
    for path in sorted(out.glob(PARTIAL + "*")):
        path.unlink(missing_ok=True)


def open_all(config: PackConfig, earlier: Any) -> Splits:
    """All parts of DATA that there are: as the pack that is gone on with found them, if it is an older one."""
    options: dict[str, Any] = {"background": config.background, "max_pixels": config.max_pixels}
    found = open_splits(config.dataset, **options)
    if earlier is None or is_of(earlier, found.sources):
        return found
    with suppress(RequestError):  # what was refused then cannot be what was packed
        as_before = open_splits(config.dataset, split_rules=1, **options)
        return as_before if is_of(earlier, as_before.sources) else found
    return found


def is_of(earlier: Any, sources: dict[str, Source]) -> bool:
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
    config: PackConfig, sources: dict[str, Source], size_before: int | tuple[int, int] | None = None
) -> tuple[dict[str, Any], Packing, int, DataFacts]:
    """What the pack will be, a pure function of settings and data; about how many bytes; what was seen of the data.

    Args:
        size_before: of a pack that is gone on with, where no size is asked for.

    Raises:
        RequestError: JPEG cannot hold the data.
    """
    first = next(iter(sources.values()))
    facts = look_at(first, LOOKED_AT)
    is_raw = config.format == "raw"
    size = config.size if config.size is not None else size_before
    if size is None:
        size = packed_size(facts, DEFAULT_SIZE) if is_raw else min(DEFAULT_SIZE, facts.short_side)
    if not is_raw and (facts.dtype != "uint8" or facts.channels not in (1, 3)):
        raise RequestError(
            f"DATA is {facts.dtype} in {facts.channels} channels, JPEG holds 8-bit grey or RGB: --format raw keeps it"
        )
    packing = Packing(
        format=config.format,
        size=size,
        quality=config.quality,
        subsampling=config.subsampling,
        channels=facts.channels,
        dtype=facts.dtype,
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
    plan = {
        "openmae_pack": VERSION,
        "format": config.format,
        "size": list(size) if isinstance(size, tuple) else size,
        "quality": None if is_raw else config.quality,
        "subsampling": None if is_raw else config.subsampling,
        "background": config.background,
        "max_pixels": config.max_pixels,
        "dtype": facts.dtype,
        "shape": list(packing.shape) if is_raw else None,
        "images_per_file": None if is_raw else rows,
        "splits": splits,
    }
    return plan, packing, round(num_inputs * (mean_bytes + 64)), facts


def probe(source: Source, packing: Packing) -> float:
    """Bytes of a packed image, from some that are drawn evenly."""
    sizes = []
    for index in Permutation(len(source), 1)(np.arange(min(PROBED, len(source)))).tolist():
        try:
            sizes.append(len(packing(source.read(index))))
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
    if plan["format"] == "raw" and config.size is None and packing.shape[0] != packing.shape[1]:
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
    return [f"images     {counts}", f"pack       {how}{decided}", f"disk       about {size_words(estimate)}"]
