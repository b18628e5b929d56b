"""`openmae inspect DATA`: one pass over every image, and a report on it."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from openmae.config import InspectConfig, paths_of
from openmae.data.coco.findings import ExaminedObjects, examine_objects
from openmae.data.labels.subsets import labels_of
from openmae.data.preprocess import DataFacts, survey
from openmae.data.randomness import Permutation
from openmae.data.sources.named import folder_of
from openmae.data.sources.open import Source, Splits, open_splits
from openmae.data.sources.reading import reading_options
from openmae.data.sources.sizes import cut_into_tiles
from openmae.data.sources.views import axes_of
from openmae.data.survey.census import examine
from openmae.data.survey.duplicate_findings import Duplicates, find_duplicates
from openmae.data.survey.findings import (
    SplitCensus,
    class_findings,
    count_reasons,
    misfits,
    numeric_label_findings,
    split_findings,
    statistics_findings,
)
from openmae.errors import RequestError, shown
from openmae.machine.device import num_cores
from openmae.machine.files import atomic_write_folder, disk_faults, write_json
from openmae.preflight.inspect import check_report_folder
from openmae.tasks.inspect.mask_screen import mask_lines
from openmae.tasks.inspect.masks import OpenedMasks, mask_problems, open_masks, overlay_sheet, segment_command
from openmae.tasks.inspect.objects import detect_command, object_lines, object_problems
from openmae.tasks.inspect.pictures import contact_sheet, pair_sheet, sample_images
from openmae.tasks.inspect.screen import data_lines
from openmae.tasks.inspect.verdict import planned_settings, problems_to_fix, size_advice
from openmae.training.telemetry import ProgressBar

NUM_SURVEYED = 256  # images from which the settings of a run would be chosen, as in `pretrain`
MAX_PAIRS = 12
MAX_WORKERS = 16
SUMMED = (
    "images",
    "looked_at",
    "unreadable",
    "wrong_extensions",
    "blank",
    "nearly_blank",
    "turned_by_exif",
    "with_empty_values",
)


def inspect_data(config: InspectConfig) -> dict[str, Any]:
    """Report on a data set; see `openmae.tasks.inspect.inspect.inspect`.

    Raises:
        RequestError: the data cannot be opened.
        Fault: the report cannot be written.
    """
    started = time.monotonic()
    out = None if config.out is None else check_report_folder(config.out, *map(folder_of, paths_of(config.dataset)))
    masks = open_masks(config)
    objects = examine_objects(config.dataset, reading_options(config, None))
    opened = masks.images if masks is not None else None if objects is None else objects.images
    if opened is None:
        opened = open_splits(config.dataset, **reading_options(config, None))
    splits = [_examine_split(name, source, config) for name, source in opened.sources.items()]
    facts = _facts(splits[0].tiled or splits[0].source, config)
    duplicates = find_duplicates(splits, MAX_PAIRS)
    report = _report(config, opened, splits, facts, duplicates, masks, objects)
    report["seconds"] = round(time.monotonic() - started, 1)
    annotated = [] if masks is None else mask_lines(report["masks"])
    annotated += [] if objects is None else object_lines(report["objects"])
    print("\n".join(data_lines(report, annotated)), flush=True)
    if out is not None:
        _write(out, report, splits, facts, duplicates, config.seed, masks)
        print(f"\nwrote      {shown(out)}: {', '.join(sorted(path.name for path in out.iterdir()))}", flush=True)
    return report


def _examine_split(name: str, source: Source, config: InspectConfig) -> SplitCensus:
    """Read the images of a split or, with --limit, a random sample of them."""
    indices = np.arange(len(source))
    if config.limit is not None and config.limit < len(source):
        indices = np.sort(Permutation(len(source), config.seed)(np.arange(config.limit)))
    workers = min(num_cores(), MAX_WORKERS, -(-len(indices) // 64)) if config.workers is None else config.workers
    tiled = None if config.tiles is None else cut_into_tiles(source, config.tiles, str(config.dataset), num_cores())
    started = time.monotonic()
    with ProgressBar(len(indices), 0, f"{name:10}") as screen:
        census = examine(
            source,
            indices,
            workers=workers,
            tiles=config.tiles,
            on_progress=lambda done: screen.update(done, f"{done / (time.monotonic() - started):,.0f} images/s"),
        )
    return SplitCensus(name, source, census, labels_of(source), tiled)


def _facts(source: Source, config: InspectConfig) -> DataFacts | None:
    try:
        facts = survey(source, min(NUM_SURVEYED, config.limit or NUM_SURVEYED))
        return facts if config.value_range is None else replace(facts, value_range=config.value_range)
    except RequestError:  # none can be read
        return None


def _report(
    config: InspectConfig,
    opened: Splits,
    splits: list[SplitCensus],
    facts: DataFacts | None,
    duplicates: Duplicates,
    masks: OpenedMasks | None,
    objects: ExaminedObjects | None,
) -> dict[str, Any]:
    by_split = {split.name: split_findings(split) for split in splits}
    totals = {key: sum(found[key] for found in by_split.values()) for key in SUMMED}
    report: dict[str, Any] = {
        "kind": "data",
        "path": shown(str(config.dataset)),
        "parts": opened.origins,
        "parts_line": opened.line,
        "axes": axes_of(split.source for split in splits).order,
        "axes_reason": axes_of(split.source for split in splits).why,
        "ignored": list(opened.ignored),
        "warnings": list(opened.warnings),
        **totals,
        "is_limited": totals["looked_at"] < totals["images"],
        "unreadable_reasons": count_reasons(reason for split in splits for reason in split.census.bad.values()),
        "misfits": misfits(splits, facts),
        "statistics": statistics_findings(splits[0], facts),
        "classes": class_findings(splits),
        "numbers": numeric_label_findings(splits),
        "masks": None if masks is None else masks.findings,
        "objects": None if objects is None else objects.findings,
        **duplicates.findings,
        "splits": by_split,
        "bad": [
            {"split": split.name, "name": shown(split.source.name(index)), "reason": reason}
            for split in splits
            for index, reason in split.census.bad.items()
        ],
    }
    report["to_mend"] = problems_to_fix(report)
    if masks is not None:
        report["to_mend"] = [*mask_problems(report["masks"]), *report["to_mend"]]
        report["masks"]["command"] = segment_command(config, report["masks"])
    if objects is not None:
        report["to_mend"] = [*object_problems(report["objects"]), *report["to_mend"]]
        report["objects"]["command"] = detect_command(config, report["objects"])
    if masks is not None or (objects is not None and objects.images is not None):
        return report | {"would_choose": [], "size_advice": None}  # they are about pre-training
    report["would_choose"] = planned_settings(config, facts)
    report["size_advice"] = size_advice(report, facts)
    return report


def _write(
    out: Path,
    report: dict[str, Any],
    splits: list[SplitCensus],
    facts: DataFacts | None,
    duplicates: Duplicates,
    seed: int,
    masks: OpenedMasks | None,
) -> None:
    value_range = None if facts is None else (facts.dtype, facts.value_range)
    with disk_faults(out), atomic_write_folder(out) as folder:
        write_json(folder / "inspect.json", report)
        bad = report["bad"] + ([] if masks is None else report["masks"]["bad"])
        lines = [json.dumps(line) + "\n" for line in bad]
        (folder / "bad.jsonl").write_text("".join(lines))
        contact_sheet(sample_images(splits, seed), report, value_range).savefig(folder / "contact-sheet.png")
        overlays = None if masks is None else overlay_sheet(masks, report["path"], seed, value_range)
        if overlays is not None:
            overlays.savefig(folder / "masks.png")
        if duplicates.pairs:
            images = [(splits[number], index) for number, index in duplicates.rows[np.ravel(duplicates.pairs)].tolist()]
            pairs = list(zip(images[::2], images[1::2], strict=True))
            pair_sheet(pairs, report, value_range).savefig(folder / "near-duplicates.png")
