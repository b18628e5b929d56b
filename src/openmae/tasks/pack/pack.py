"""`openmae pack`: convert a data set into a format that is fast to read."""

import json
import os
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from openmae.config import PackConfig, flag_of, format_value
from openmae.data.sources.manifest import MANIFEST, UNFINISHED, read_pack
from openmae.data.sources.open import Source, Splits, open_source, open_splits
from openmae.data.sources.packed import find_damage
from openmae.data.sources.reading import reading_options
from openmae.data.sources.sizes import cut_into_tiles
from openmae.errors import RequestError, shown
from openmae.machine.device import num_cores
from openmae.machine.files import PARTIAL_PREFIX, disk_faults, format_bytes
from openmae.machine.signals import StopRequest
from openmae.planning.summary_lines import nodata_lines
from openmae.preflight.pack import check_no_overlap, check_pack_folder, read_manifest
from openmae.run.create import make_and_lock
from openmae.run.lock import check_run_folder
from openmae.run.quarantine import QUARANTINE
from openmae.tasks.pack.files import (
    write_manifest,
)
from openmae.tasks.pack.job import PackJob
from openmae.tasks.pack.plan import OPTIONAL_DEFAULTS, check_disk, make_plan, plan_lines


def pack(config: PackConfig) -> dict[str, Any]:
    """Write DATA as a pack into OUT or, with --verify, check an existing pack.

    Returns:
        status, images, unreadable, bytes, seconds.

    Raises:
        RequestError: a wrong setting, unusable data, OUT exists, too many unreadable files, a damaged pack.
        Interrupted: a signal; finished files are kept, and `--resume auto` continues.
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
        check_run_folder(out, "OUT")
        check_no_overlap(config.dataset, out)
        check_pack_folder(config, out)
        previous, is_finished = read_previous(out)
        splits = open_sources(config, previous)
        sources = splits.sources
        plan, packing, estimate, facts, lines = make_plan(config, sources, previous)
        check_same_settings(out, plan, previous)
        finished = previous if is_finished else None
        if finished is None:
            make_and_lock(out, lock, "OUT")
            check_disk(out, estimate)
            source_lines = [*splits.lines, *plan_lines(config, plan, packing, estimate, sources, facts)]
            value_lines = [*facts.axes.lines, *nodata_lines(facts, "the pack keeps which"), *lines]
            print("\n".join([*source_lines, *value_lines]), flush=True)
            with disk_faults(out), closing(PackJob(config, out, sources, packing, plan, stop)) as job:
                write_manifest(out / UNFINISHED, plan)
                finished = job.run()
        clean(out)
        what = "images" if config.tiles is None else "tiles"
        total = sum(split["images"] for split in finished["splits"].values())
        blank = sum(split.get("blank_tiles", 0) for split in finished["splits"].values())
        missing = sum(split["inputs"] - split["images"] for split in finished["splits"].values()) - blank
        size = sum(file["bytes"] for file in finished["files"].values())
        omitted = [f"{missing:,} left out"] * (missing > 0) + [f"{blank:,} blank tiles left out"] * (blank > 0)
        left_out = f"; {' and '.join(omitted)}, {QUARANTINE} says which and why" if omitted else ""
        print(f"packed     {total:,} {what} into {shown(out)}, {format_bytes(size)}{left_out}")
        seconds = round(time.monotonic() - started, 1)
        summary = {"status": "complete", "images": total, "unreadable": missing, "bytes": size, "seconds": seconds}
        return summary if config.tiles is None else {**summary, "blank_tiles": blank}


def verify(data: str) -> dict[str, Any]:
    """Check every byte of a pack.

    Raises:
        RequestError: the pack is damaged, or there is none.
    """
    started, root = time.monotonic(), Path(data)
    manifest = read_manifest(data)
    damage = find_damage(root, manifest)
    for split in manifest["splits"]:
        if not damage:
            open_source(data, split)
    if damage:
        raise RequestError(f"{shown(data)} is damaged: {'; '.join(damage[:5])}")
    size = sum(file["bytes"] for file in manifest["files"].values())
    images = sum(split["images"] for split in manifest["splits"].values())
    print(f"whole      {shown(data)}: {images:,} images, {format_bytes(size)} in {len(manifest['files'])} files")
    seconds = round(time.monotonic() - started, 1)
    return {"status": "complete", "images": images, "unreadable": 0, "bytes": size, "seconds": seconds}


def read_previous(out: Path) -> tuple[dict[str, Any] | None, bool]:
    """The manifest of an earlier start, if there was one, and whether it finished.

    Raises:
        RequestError: it cannot be read.
    """
    finished = read_pack(out) if os.path.lexists(out / MANIFEST) else None
    if finished is not None or not os.path.lexists(out / UNFINISHED):
        return finished, finished is not None
    try:
        previous = json.loads((out / UNFINISHED).read_bytes())
    except (OSError, ValueError) as error:
        raise RequestError(f"{shown(out / UNFINISHED)} cannot be read ({error}): choose another OUT") from None
    return (previous if isinstance(previous, dict) else {}), False


def check_same_settings(out: Path, plan: dict[str, Any], previous: dict[str, Any] | None) -> None:
    """Raise RequestError where the pack in OUT was started with other settings or other data."""
    if previous is None:
        return
    optional = (name for name in OPTIONAL_DEFAULTS if name in previous and name not in plan)
    for name in dict.fromkeys(
        ("tiles", "nodata", *plan, *optional)
    ):  # `tiles` and `nodata` also where they are not in the plan
        if name == "openmae_pack":  # a finished pack of images with nodata has a later version
            continue
        value: Any = plan.get(name, OPTIONAL_DEFAULTS.get(name))
        before: Any = previous.get(name, OPTIONAL_DEFAULTS.get(name))
        if name == "splits":
            same = all(
                {key: (before or {}).get(split, {}).get(key) for key in of_split} == of_split
                for split, of_split in value.items()
            )
            if not same or set(before or {}) != set(value):
                raise RequestError(f"DATA is not what {shown(out)} was begun with: choose another OUT")
        elif before != value:
            is_flag = name in PackConfig.__dataclass_fields__
            flag = flag_of(name) if is_flag else name
            was = f"no {flag}" if before is None else f"{flag} {format_value(before)}"
            now = "" if value is None else f", not {format_value(value)}"
            remedy = f"leave {flag} out, or " if before is None else f"give {was}, or "
            raise RequestError(f"{shown(out)} was begun with {was}{now}: {remedy * is_flag}choose another OUT")


def clean(out: Path) -> None:
    """Remove the files that only an unfinished pack needs."""
    for path in sorted(out.glob(PARTIAL_PREFIX + "*")):
        path.unlink(missing_ok=True)


def open_sources(config: PackConfig, previous: dict[str, Any] | None) -> Splits:
    """Open all splits of DATA; for an older unfinished pack, with the split rules of its time."""
    splits = _opened(config, previous)
    if previous is None or matches(previous, splits.sources):
        return splits
    with suppress(RequestError):  # splits that are refused cannot be those that were packed
        by_old_rules = _opened(config, previous, split_rules=1)
        return by_old_rules if matches(previous, by_old_rules.sources) else splits
    return splits


def _opened(config: PackConfig, previous: dict[str, Any] | None, split_rules: int | None = None) -> Splits:
    options = reading_options(config, None, config.background)
    if previous is not None and config.axes is None:  # read as in the earlier start
        options["axes"] = str(previous.get("axes", OPTIONAL_DEFAULTS["axes"]))
    if previous is not None and config.nodata is None:
        options["nodata"] = previous.get("nodata", OPTIONAL_DEFAULTS["nodata"])
    splits = open_splits(config.dataset, split_rules=split_rules, **options)
    if config.tiles is None:
        return splits
    name, workers = str(config.dataset), num_cores() if config.workers is None else config.workers
    cut: dict[str, Source] = {
        s: cut_into_tiles(source, config.tiles, name, workers) for s, source in splits.sources.items()
    }
    return replace(splits, sources=cut)


def matches(previous: dict[str, Any] | None, sources: dict[str, Source]) -> bool:
    """Whether a pack was started with these splits."""
    splits = previous.get("splits") if isinstance(previous, dict) else None
    return (
        isinstance(splits, dict)
        and splits.keys() == sources.keys()
        and all(
            isinstance(splits[split], dict) and splits[split].get("fingerprint") == source.fingerprint()
            for split, source in sources.items()
        )
    )
