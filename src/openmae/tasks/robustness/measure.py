"""Evaluating each part of a set: how many images are misclassified; each result is written at once."""

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openmae.config import Preprocessing
from openmae.config.robustness import RobustnessConfig
from openmae.data.augment import evaluation_crop_fraction
from openmae.data.sources.folder import FolderSource
from openmae.data.sources.imagenet_variants import open_part
from openmae.data.sources.reading import reading_options
from openmae.errors import Fault, Interrupted, RequestError, shown
from openmae.inference.features import crop_fraction_for, default_batch_size
from openmae.inference.models import ClassifierModel
from openmae.inference.predict import logits_of
from openmae.machine.device import is_out_of_memory
from openmae.machine.parallel import Processes
from openmae.machine.shared_work import gather_work
from openmae.machine.signals import EvaluationStopped, StopRequest
from openmae.tasks.robustness.report import EvaluationSet, Row
from openmae.tasks.robustness.run import add_row


def measure(
    sets: list[EvaluationSet],
    model: ClassifierModel,
    synsets: Sequence[str],
    preprocessing: Preprocessing,
    config: RobustnessConfig,
    settings: dict[str, Any],
    finished: dict[str, Row],
    processes: Processes,
    stop: StopRequest,
) -> dict[str, Row]:
    """The rows of all parts; those that are not finished yet are measured, and each is written as soon as it is known.

    Args:
        synsets: WordNet ids of the model's classes.
        settings: what else the results depend on, stored in each row.
        finished: the rows of an earlier start, by part.

    Raises:
        Interrupted: a signal came to one of the processes.
        RequestError: the files of a finished part have changed, or no image of a part can be read.
    """
    rows: dict[str, Row] = {}
    count = sum(len(image_set.parts) for image_set in sets)
    for image_set in sets:
        columns = torch.tensor([synsets.index(name) for name in image_set.classes], device=model.device)
        crop_fraction = evaluation_crop_fraction(preprocessing.image_size)
        for part in image_set.parts:
            started = time.monotonic()
            source = open_part(part, image_set.classes, **reading_options(config, preprocessing))
            if part.corruption is not None and part is image_set.parts[0]:
                # The released images are 224 × 224 crops already: at that size nothing more may be cropped.
                crop_fraction = crop_fraction_for(source, preprocessing.image_size)
            fingerprint = processes.gather(source.fingerprint() if processes.is_first else "")[0]
            row = finished.get(part.name)
            if row is not None and row.fingerprint != fingerprint:
                raise RequestError(f"{shown(part.folder)} has changed since it was measured: choose another --out")
            if row is None:
                images, wrong, bad = count_wrong(
                    model, source, columns, preprocessing, crop_fraction, config, processes, stop
                )
                row = Row(
                    part=part.name,
                    images=images,
                    wrong=wrong,
                    classes=len({source.label(i) for i in range(len(source))}),
                    crop_fraction=crop_fraction,
                    bad={f"{part.name}/{name}": reason for name, reason in bad.items()},
                    seconds=round(time.monotonic() - started, 3),
                    fingerprint=fingerprint,
                    settings=settings,
                )
                if processes.is_first:
                    add_row(Path(config.out), row)
            rows[part.name] = row
            if processes.is_first:
                unreadable = f"{len(row.bad)} unreadable, " if row.bad else ""
                pace = "measured before" if part.name in finished else f"{row.seconds:.0f} s"
                print(
                    f"{len(rows)}/{count}  {part.name}: error {100 * row.error:.2f} % of {row.images:,} images, "
                    f"{unreadable}{pace}",
                    flush=True,
                )
    return rows


def count_wrong(
    model: ClassifierModel,
    source: FolderSource,
    columns: Tensor,
    preprocessing: Preprocessing,
    crop_fraction: float,
    config: RobustnessConfig,
    processes: Processes,
    stop: StopRequest,
) -> tuple[int, int, dict[str, str]]:
    """Over all processes: the number of readable images, of misclassified ones, and the reasons of unreadable ones.

    Each process evaluates its share of the images: none is counted twice, and an unreadable one is not replaced.

    Args:
        columns: (classes,) the model's output for each label of the source; the prediction is the highest of these.

    Raises:
        Interrupted: a signal came to one of the processes, or another one failed.
        RequestError: no image can be read, or a batch does not fit into memory.
        Fault: a score is not finite, or the system killed reader processes, twice.
    """
    share, batch_size = processes.share(len(source)), config.batch_size or default_batch_size(model.device)
    predictions = logits_of(
        model.classifier,
        source,
        preprocessing,
        share,
        device=model.device,
        precision=config.precision,
        batch_size=batch_size,
        workers=config.workers or 0 if len(share) > batch_size else 0,  # starting readers takes longer than one batch
        crop_fraction=crop_fraction,
        with_labels=True,
        should_stop=stop.is_received,
    )

    def count_share() -> tuple[tuple[int, int, int], dict[str, str]]:
        images, non_finite, bad = 0, 0, dict[str, str]()
        wrong = torch.zeros((), dtype=torch.int64, device=model.device)
        try:
            with closing(predictions):
                for batch, logits in predictions:
                    bad |= batch.bad
                    if batch.labels is None:  # no image could be read
                        continue
                    scores = logits[:, columns]
                    non_finite += int((~scores.isfinite()).any(1).sum())
                    wrong += (scores.argmax(1) != batch.labels.to(model.device)).sum()
                    images += len(batch.images)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise RequestError(
                f"out of memory with {batch_size} images at a time: give a smaller --batch-size"
            ) from None
        return (images, int(wrong), non_finite), bad

    try:
        results = gather_work(count_share, processes, stop)
    except EvaluationStopped:
        raise Interrupted("stopped; finished parts are kept: --resume auto continues after them") from None
    images, errors, non_finite = (sum(counts[i] for counts, _ in results) for i in range(3))
    bad = {name: reason for _, of_share in results for name, reason in of_share.items()}
    assert images + len(bad) == len(source), "every image counts once"
    if non_finite:
        raise Fault(
            f"the scores of {non_finite} of {images} images are not finite: the model's weights are broken or its "
            "numbers overflow (--precision fp32 would tell)"
        )
    if not images:
        name, reason = next(iter(bad.items()))
        raise RequestError(f"none of {len(bad)} images can be read, the first {name!r}: {reason}")
    return images, errors, dict(sorted(bad.items()))
