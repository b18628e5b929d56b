"""Predictions of a classifier, or of a regression model, for every image of a source, each counted once."""

from collections.abc import Callable, Generator
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from openmae.config import Preprocessing, TargetScale
from openmae.data.evaluation_loader import EvaluationBatch, evaluation_batches
from openmae.data.labels.subsets import targets_of
from openmae.data.preprocess import normalise
from openmae.data.sources.open import Source
from openmae.inference.metrics import Predictions, merge
from openmae.machine.device import autocast
from openmae.machine.parallel import Processes
from openmae.machine.shared_work import gather_work
from openmae.machine.signals import StopRequest
from openmae.model.heads import Classifier

MAX_BATCH = 256


@torch.no_grad()
def logits_of(
    model: Classifier,
    source: Source,
    preprocessing: Preprocessing,
    share: range,
    *,
    device: torch.device,
    precision: str,
    batch_size: int,
    workers: int,
    crop_fraction: float,
    with_labels: bool,
    should_stop: Callable[[], bool] = lambda: False,
) -> Generator[tuple[EvaluationBatch, Tensor], None, None]:
    """Yield the images of a share of a source batch by batch, with their float32 logits on the device.

    A batch without a readable image has no logits: (0, classes).

    Args:
        share: indices of the images.
        crop_fraction, with_labels, should_stop: as of `evaluation_batches`.

    Raises:
        ReaderKilled: the operating system killed reader processes, twice.
    """
    batches = evaluation_batches(
        source,
        preprocessing,
        share,
        batch_size=batch_size,
        workers=workers,
        crop_fraction=crop_fraction,
        patch_size=model.shape.encoder.patch_size,
        with_labels=with_labels,
        pin_memory=device.type == "cuda",
        should_stop=should_stop,
    )
    with closing(batches):
        for batch in batches:
            logits = torch.empty(0, model.shape.num_classes, device=device)
            if len(batch.images):
                images = normalise(batch.images.to(device, non_blocking=True), preprocessing)
                with autocast(device, precision):
                    logits = model(images).float()
            yield batch, logits


def predict(
    model: Classifier,
    source: Source,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    precision: str,
    batch_size: int,
    workers: int,
    processes: Processes,
    stop: StopRequest | None = None,
    scale: TargetScale | None = None,
) -> Predictions:
    """Classify all images, or predict their numbers; unreadable ones are left out and named.

    Each process computes its share, and every process gets the predictions for all images.

    Raises:
        EvaluationStopped: a signal came to one of the processes, or another one failed.
        Fault: the operating system killed reader processes, twice.
    """
    targets = torch.from_numpy(targets_of(source))
    share = processes.share(len(source))
    batches = logits_of(
        model,
        source,
        preprocessing,
        share,
        device=device,
        precision=precision,
        batch_size=min(batch_size, MAX_BATCH),
        workers=workers if len(share) > MAX_BATCH else 0,
        crop_fraction=preprocessing.crop_fraction,
        with_labels=False,
        should_stop=(lambda: False) if stop is None else stop.is_received,
    )

    def predict_share() -> Predictions:
        logits: list[Tensor] = [torch.empty(0, model.shape.num_classes)]
        indices: list[np.ndarray] = [np.empty(0, np.int64)]
        bad: dict[str, str] = {}
        with closing(batches):
            for batch, scores in batches:
                bad |= batch.bad
                logits.append(scores.cpu())
                indices.append(batch.indices.numpy())
        own = np.concatenate(indices)
        return Predictions(logits=torch.cat(logits), targets=targets[own], indices=own, bad=bad, scale=scale)

    return merge(gather_work(predict_share, processes, stop))
