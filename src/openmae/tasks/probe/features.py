"""Where a probe's features come from: computed once and kept, or as training goes; and what the heads make of them."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from openmae.config import ResolvedProbeConfig, TargetScale
from openmae.data.augment import Augmentation
from openmae.data.batch import Batch
from openmae.data.labels.labelled import LabelledData
from openmae.data.loader import Stream
from openmae.data.preprocess import normalise
from openmae.data.sources.open import Source
from openmae.data.sources.views import IndexedSubset
from openmae.inference.features import Features, check_readable, extract, pooled
from openmae.inference.metrics import Predictions
from openmae.inference.models import EncoderModel
from openmae.inference.regression import standardised
from openmae.machine.parallel import Processes
from openmae.model.heads import Classifier
from openmae.model.probe import Probes
from openmae.planning.probe import ProbePlan
from openmae.run.batches import Batches, names_of_step
from openmae.run.model_input import ModelInput
from openmae.run.open_run import Run
from openmae.training.prefetch import StepInputs, inputs_of_steps


@dataclass(frozen=True)
class Reader:
    """Where training batches come from.

    Attributes:
        features: the pooled features of a batch: read, or computed by the frozen encoder.
        batches: the micro-batches of each step, made ready.
    """

    features: Callable[[ModelInput], Tensor]
    batches: Batches


def features_of(
    encoder: EncoderModel, settled: ProbePlan, processes: Processes, source: Source, title: str
) -> Features:
    """The pooled features of all images, computed once. Raises RequestError where none can be read."""
    config = settled.config
    found = extract(
        encoder,
        source,
        pool=config.pool,
        workers=config.workers if len(source) > 256 else 0,
        crop_fraction=settled.preprocessing.crop_fraction,
        processes=processes,
        precision=config.precision,
        with_labels=True,
        title=title,
    )
    check_readable(found.bad, len(source), 1.0, f"images ({title})")
    return found


def make_reader(
    run: Run[ResolvedProbeConfig],
    settled: ProbePlan,
    data: LabelledData,
    kept: Features | None,
    classifier: Classifier,
) -> Reader:
    """Read the features that were `kept`; without them they are computed as training goes, from augmented images."""
    config, side = settled.config, settled.shape.encoder.patch_size
    device, processes, num_steps = run.device, run.processes, run.num_steps
    if kept is not None:
        values, labels = torch.from_numpy(kept.values), torch.from_numpy(kept.labels)
        # Only for the order: unreadable images have no features to come across.
        stream = Stream(
            IndexedSubset(data.train, kept.indices), settled.preprocessing, Augmentation(kind="none"), config.seed, side
        )

        def kept_steps(step: int) -> Generator[list[Batch], None, None]:
            share = processes.share(config.batch_size)
            for number in range(step, num_steps):
                rows, keys = stream.locate([number * config.batch_size + i for i in share])
                batch = Batch(values[rows], torch.from_numpy(keys), {}, labels[rows])
                yield [batch.pin_memory() if device.type == "cuda" else batch]

        def keep_reading(step: int, micro_batch_size: int) -> Generator[StepInputs[Batch, ModelInput], None, None]:
            return inputs_of_steps(kept_steps(step), lambda part: _on_device(part, part.images, data, device), device)

        names = partial(names_of_step, stream, batch_size=config.batch_size)
        return Reader(lambda part: part.images, Batches(keep_reading, names))

    augmentation = Augmentation(kind=config.augment, crop_scale=config.crop_scale, crop_aspect=config.crop_aspect)
    stream = Stream(data.train, settled.preprocessing, augmentation, config.seed, side, with_labels=True)

    @torch.no_grad()
    def encoded(part: ModelInput) -> Tensor:
        return pooled(classifier.encoder, part.images, config.pool, config.precision)

    def prepare(part: Batch) -> ModelInput:
        images = part.images.to(device, non_blocking=True)
        return _on_device(part, normalise(images, settled.preprocessing), data, device)

    share = len(processes.share(config.batch_size))
    return Reader(
        encoded, run.batches(config, stream, prepare, adjust_micro_batch_size=lambda size: part_size(share, size))
    )


def _on_device(part: Batch, images: Tensor, data: LabelledData, device: torch.device) -> ModelInput:
    assert part.labels is not None
    labels = part.labels if data.scale is None else standardised(part.labels, data.scale)
    images, labels = (values.to(device, non_blocking=True) for values in (images, labels))
    return ModelInput(images, part.keys, labels=labels)


def part_size(count: int, most: int) -> int:
    """At most `most` images at a time, and never one alone: a BatchNorm of one image is not defined."""
    sizes = (size for size in range(min(most, count), 1, -1) if count % size != 1)
    return next(sizes, count)


@torch.no_grad()
def predictions_of(
    probes: Probes, features: Features, device: torch.device, scale: TargetScale | None = None
) -> list[Predictions]:
    """What each head says about images whose features are known."""
    probes.eval()
    values, targets = torch.from_numpy(features.values), torch.from_numpy(features.labels)
    logits = torch.cat([probes(part.to(device)).float().cpu() for part in values.split(8192)], dim=1)
    return [
        Predictions(logits=own.contiguous(), targets=targets, indices=features.indices, bad=features.bad, scale=scale)
        for own in logits
    ]
