"""`openmae robustness`: a classifier on ImageNet-C, -A, -R and -Sketch (paper, table 13).

Of each set only the classes that it has compete: an answer is the highest of their logits.
"""

import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from openmae.config import Preprocessing
from openmae.config.robustness import RobustnessConfig
from openmae.data.augment import evaluation_margin
from openmae.data.evaluation_loader import evaluation_batches
from openmae.data.preprocess import normalise
from openmae.data.sources.folder import FolderSource
from openmae.data.sources.imagenet_variants import (
    IMAGENET_A,
    IMAGENET_C,
    IMAGENET_R,
    IMAGENET_SKETCH,
    Variant,
    VariantPart,
    class_parts,
    corruption_parts,
    known_classes,
    open_part,
    synsets_of,
)
from openmae.data.sources.reading import reading_of
from openmae.errors import Fault, Interrupted, RequestError, shown
from openmae.inference.features import default_batch_size, margin_for, preprocessing_for
from openmae.inference.load import ClassifierModel, RegressionModel, load
from openmae.inference.matched import matched_model
from openmae.interchange.stored import hash_of
from openmae.machine.device import autocast, default_workers, use_device
from openmae.machine.files import write_json, written_aside
from openmae.machine.parallel import Processes, joined
from openmae.machine.signals import StopRequest
from openmae.tasks.robustness.report import Measured, Row, paper_row, result_lines, summarise
from openmae.tasks.robustness.run import add_row, begin, check_run, finish, finished_rows


def robustness(config: RobustnessConfig) -> dict[str, Any]:
    """Measure a classifier on the sets given; what it finds lies in `config.out`.

    Returns:
        What RUN/summary.json holds.

    Raises:
        RequestError: no classifier of ImageNet's classes, folders of another layout, or a run of other settings.
        Interrupted: a signal; finished parts are kept and `--resume auto` goes on behind them.
        Fault: scores that are not finite, or a full disk.
    """
    config = config.plain()
    run = Path(config.out)
    with joined() as processes, StopRequest() as stop, ExitStack() as lock:
        # Set-up. Nothing is written before all that can be wrong has been looked at.
        check_run(config, run)
        device = use_device(config.device, processes.local_rank)
        model = load_classifier(config.init, str(device))
        preprocessing = preprocessing_for(model, config.size)
        synsets, is_by_order = synsets_of(model.classes)
        sets, extra = find_sets(config, synsets)
        model, lines = matched_model(model, first_parts(sets, config, preprocessing), config.value_range)
        preprocessing = preprocessing_for(model, config.size)
        settings = {
            "model": hash_of(model.classifier.state_dict()),
            "image_size": list(preprocessing.image_size),
            "precision": config.precision,
            "value_range": None if config.value_range is None else list(config.value_range),
            "axes": config.axes,
            "nodata": config.nodata,
        }
        finished = finished_rows(run, settings, sets)
        if any(names != list(finished) for names in processes.gather(list(finished))):
            raise Fault(f"the processes see different runs in {run}: is --out on a file system that all share?")
        chosen = replace(
            config,
            image_size=preprocessing.image_size,
            batch_size=config.batch_size or default_batch_size(device),
            workers=default_workers(device, processes.local_count) if config.workers is None else config.workers,
            device=str(device),
        )
        processes.wait()  # until all have seen the run folder as it was

        # From here on the run folder exists.
        earlier = (run / "summary.json").read_bytes() if finished and (run / "summary.json").exists() else None
        if processes.is_first:
            begin(run, chosen, preprocessing, finished, lock)
            print("\n".join([*plan_lines(sets, extra, model, is_by_order), *lines]), flush=True)
        stop.defer()
        try:
            rows = measure(sets, model, synsets, preprocessing, chosen, settings, finished, processes, stop)
        except BaseException as error:
            if processes.is_first:
                with suppress(OSError):  # what happened first is what must be said
                    if isinstance(error, RequestError) and earlier is not None:  # refused: what was measured stands
                        with written_aside(run / "summary.json") as partial:
                            partial.write_bytes(earlier)
                        raise
                    status = "interrupted" if isinstance(error, Interrupted) else "failed"
                    write_json(run / "summary.json", {"status": status})
            raise
        summary = summarise(sets, rows)
        if processes.is_first:
            finish(run, sets, rows, summary)
            paper = paper_row(model.encoder.shape, preprocessing.image_size)
            print("\n".join(result_lines(sets, rows, summary, paper)))
            print(f"wrote {run}")
        processes.wait()
    return summary


def load_classifier(init: str, device: str) -> ClassifierModel:
    """Raise RequestError where it is no classifier, or says yes and no to each class by itself."""
    model = load(init, device, say=True)
    if not isinstance(model, ClassifierModel):
        what = "predicts numbers" if isinstance(model, RegressionModel) else "has no classes"
        raise RequestError(f"--init {init} {what}: give a fine-tuned or probed classifier")
    if model.description.get("is_multi_label"):
        raise RequestError(f"--init {init} gives an image several labels: these sets have one for each")
    return model


def find_sets(config: RobustnessConfig, synsets: Sequence[str]) -> tuple[list[Measured], list[str]]:
    """The sets to measure, and corruptions that are there but no part of the mean.

    Raises:
        RequestError: folders of another layout, or classes that the set or the classifier does not have.
    """
    found: list[tuple[Variant, list[VariantPart]]] = []
    extra: list[str] = []
    if config.imagenet_c is not None:
        parts, extra = corruption_parts(config.imagenet_c)
        found.append((IMAGENET_C, parts))
    for variant, root in (
        (IMAGENET_A, config.imagenet_a),
        (IMAGENET_R, config.imagenet_r),
        (IMAGENET_SKETCH, config.imagenet_sketch),
    ):
        if root is not None:
            found.append((variant, class_parts(variant, root)))
    sets = [
        Measured(variant=variant, parts=parts, classes=known_classes(variant, synsets, parts))
        for variant, parts in found
    ]
    return sets, extra


def first_parts(
    sets: list[Measured], config: RobustnessConfig, preprocessing: Preprocessing
) -> Generator[FolderSource, None, None]:
    """The first part of each set: its images are like those of the others."""
    for measured in sets:
        yield open_part(measured.parts[0], measured.classes, **reading_of(config, preprocessing))


def measure(
    sets: list[Measured],
    model: ClassifierModel,
    synsets: Sequence[str],
    preprocessing: Preprocessing,
    config: RobustnessConfig,
    settings: dict[str, Any],
    finished: dict[str, Row],
    processes: Processes,
    stop: StopRequest,
) -> dict[str, Row]:
    """The rows of all parts, those not finished yet measured now; each is kept as soon as it is there.

    Raises:
        Interrupted: a signal came to one of the processes.
        RequestError: a finished part's files have changed since, or none of a part can be read.
    """
    rows: dict[str, Row] = {}
    count = sum(len(measured.parts) for measured in sets)
    for measured in sets:
        columns = torch.tensor([synsets.index(name) for name in measured.classes], device=model.device)
        margin = evaluation_margin(preprocessing.image_size)
        for part in measured.parts:
            started = time.monotonic()
            source = open_part(part, measured.classes, **reading_of(config, preprocessing))
            if part.corruption is not None and part is measured.parts[0]:
                # The released images are cut to 224 × 224 already: at that size nothing more may be cut off.
                margin = margin_for(source, preprocessing.image_size)
            fingerprint = processes.gather(source.fingerprint() if processes.is_first else "")[0]
            row = finished.get(part.name)
            if row is not None and row.fingerprint != fingerprint:
                raise RequestError(f"{shown(part.folder)} has changed since it was measured: choose another --out")
            if row is None:
                images, wrong, bad = count_wrong(model, source, columns, preprocessing, margin, config, processes, stop)
                row = Row(
                    part=part.name,
                    images=images,
                    wrong=wrong,
                    classes=len({source.label(i) for i in range(len(source))}),
                    margin=margin,
                    bad={f"{part.name}/{name}": reason for name, reason in bad.items()},
                    seconds=round(time.monotonic() - started, 3),
                    fingerprint=fingerprint,
                    settings=settings,
                )
                if processes.is_first:
                    add_row(Path(config.out), row)
            rows[part.name] = row
            if processes.is_first:
                said = f"{len(row.bad)} unreadable, " if row.bad else ""
                pace = "measured before" if part.name in finished else f"{row.seconds:.0f} s"
                print(
                    f"{len(rows)}/{count}  {part.name}: error {100 * row.error:.2f} % of {row.images:,} images, "
                    f"{said}{pace}",
                    flush=True,
                )
    return rows


@torch.no_grad()
def count_wrong(
    model: ClassifierModel,
    source: FolderSource,
    columns: torch.Tensor,
    preprocessing: Preprocessing,
    margin: float,
    config: RobustnessConfig,
    processes: Processes,
    stop: StopRequest,
) -> tuple[int, int, dict[str, str]]:
    """Readable images of a source, how many of them get a wrong class, and the others' names: of all processes.

    Each process takes a part of the images: none is counted twice, and an unreadable one is not replaced.

    Args:
        columns: which of the model's classes compete, in the order of the source's labels.

    Raises:
        Interrupted: a signal came to one of the processes.
        RequestError: no image can be read, or a batch does not fit into memory.
        Fault: a score is not finite.
    """
    images, wrong, broken, bad = 0, torch.zeros((), dtype=torch.int64, device=model.device), 0, dict[str, str]()
    share, batch_size = processes.share(len(source)), config.batch_size or default_batch_size(model.device)
    batches = evaluation_batches(
        source,
        preprocessing,
        share,
        batch_size=batch_size,
        workers=config.workers or 0 if len(share) > batch_size else 0,  # starting readers takes longer than one batch
        margin=margin,
        min_side=model.encoder.shape.patch_size,
        with_labels=True,
        pin=model.device.type == "cuda",
        is_given_up=stop.is_received,
    )
    with closing(batches):
        for batch in batches:
            bad |= batch.bad
            if batch.labels is None:  # nothing of it could be read
                continue
            prepared = normalise(batch.images.to(model.device, non_blocking=True), preprocessing)
            try:
                with autocast(model.device, config.precision):
                    logits = model.classifier(prepared).float()[:, columns]
            except torch.OutOfMemoryError:
                raise RequestError(
                    f"out of memory with {batch_size} images at a time: give a smaller --batch-size"
                ) from None
            broken += int((~logits.isfinite()).any(1).sum())
            wrong += (logits.argmax(1) != batch.labels.to(model.device)).sum()
            images += len(batch.images)
    parts = processes.gather((images, int(wrong), broken, bad, stop.received))
    if any(received for *_, received in parts):
        raise Interrupted("stopped; finished parts are kept: --resume auto goes on behind them")
    images, errors, broken = (sum(part[i] for part in parts) for i in range(3))
    bad = {name: reason for part in parts for name, reason in part[3].items()}
    assert images + len(bad) == len(source), "every image counts once"
    if broken:
        raise Fault(
            f"the scores of {broken} of {images} images are not finite: the model's weights are broken or its numbers "
            "overflow (--precision fp32 would tell)"
        )
    if not images:
        name, reason = next(iter(bad.items()))
        raise RequestError(f"none of {len(bad)} images can be read, the first {name!r}: {reason}")
    return images, errors, dict(sorted(bad.items()))


def plan_lines(sets: list[Measured], extra: list[str], model: ClassifierModel, is_by_order: bool) -> list[str]:
    """What will be done, a line for each set."""
    lines = []
    if is_by_order:
        lines.append("classes    1000 without WordNet ids: taken to be ImageNet's in the standard order")
    for measured in sets:
        parts = f", {len(measured.parts)} corruptions and severities" if measured.parts[0].corruption else ""
        of_set = len(measured.variant.classes)
        lines.append(
            f"{measured.variant.title:17}answers among {len(measured.classes)} of the model's {len(model.classes)} "
            f"classes (the set has {of_set}){parts}"
        )
    if extra:
        lines.append(f"left out   {', '.join(extra)}: no part of the mean corruption error")
    return lines
