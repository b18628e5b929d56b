"""A probe's features, computed once and cached or as training goes, and the predictions of its heads from them."""

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
class FeatureBatches:
    """The micro-batches to train on, and how their features are had.

    Attributes:
        features: the pooled features of a micro-batch: cached ones, or computed by the frozen encoder.
        batches: the micro-batches of each step.
    """

    features: Callable[[ModelInput], Tensor]
    batches: Batches


def compute_features(
    encoder: EncoderModel, plan: ProbePlan, processes: Processes, source: Source, title: str
) -> Features:
    """The pooled features of all images, computed once. Raises RequestError where none can be read."""
    config = plan.config
    features = extract(
        encoder,
        source,
        pool=config.pool,
        workers=config.workers if len(source) > 256 else 0,
        crop_fraction=plan.preprocessing.crop_fraction,
        processes=processes,
        precision=config.precision,
        with_labels=True,
        title=title,
    )
    check_readable(features.bad, len(source), 1.0, f"images ({title})")
    return features


def make_feature_batches(
    run: Run[ResolvedProbeConfig],
    plan: ProbePlan,
    data: LabelledData,
    cached: Features | None,
    classifier: Classifier,
) -> FeatureBatches:
    """Batches of the `cached` features; without these, of augmented images whose features are computed as they come."""
    config, side = plan.config, plan.shape.encoder.patch_size
    device, processes, num_steps = run.device, run.processes, run.num_steps
    if cached is not None:
        values, labels = torch.from_numpy(cached.values), torch.from_numpy(cached.labels)
        # Only for the order: unreadable images have no features to come across.
        stream = Stream(
            IndexedSubset(data.train, cached.indices), plan.preprocessing, Augmentation(kind="none"), config.seed, side
        )

        def cached_steps(step: int) -> Generator[list[Batch], None, None]:
            share = processes.share(config.batch_size)
            for number in range(step, num_steps):
                rows, keys = stream.locate([number * config.batch_size + i for i in share])
                batch = Batch(values[rows], torch.from_numpy(keys), {}, labels[rows])
                yield [batch.pin_memory() if device.type == "cuda" else batch]

        def cached_inputs(step: int, micro_batch_size: int) -> Generator[StepInputs[Batch, ModelInput], None, None]:
            return inputs_of_steps(
                cached_steps(step), lambda batch: _on_device(batch, batch.images, data, device), device
            )

        names = partial(names_of_step, stream, batch_size=config.batch_size)
        return FeatureBatches(lambda inputs: inputs.images, Batches(cached_inputs, names))

    augmentation = Augmentation(kind=config.augment, crop_scale=config.crop_scale, crop_aspect=config.crop_aspect)
    stream = Stream(data.train, plan.preprocessing, augmentation, config.seed, side, with_labels=True)

    @torch.no_grad()
    def encoded(inputs: ModelInput) -> Tensor:
        return pooled(classifier.encoder, inputs.images, config.pool, config.precision)

    def prepare(micro_batch: Batch) -> ModelInput:
        images = micro_batch.images.to(device, non_blocking=True)
        return _on_device(micro_batch, normalise(images, plan.preprocessing), data, device)

    share = len(processes.share(config.batch_size))
    return FeatureBatches(
        encoded,
        run.batches(config, stream, prepare, adjust_micro_batch_size=lambda size: micro_batch_size_for(share, size)),
    )


def _on_device(micro_batch: Batch, images: Tensor, data: LabelledData, device: torch.device) -> ModelInput:
    labels = micro_batch.labels
    assert labels is not None, "batches of a probe have labels"
    labels = labels if data.scale is None else standardised(labels, data.scale)
    images, labels = (values.to(device, non_blocking=True) for values in (images, labels))
    return ModelInput(images, micro_batch.keys, labels=labels)


def micro_batch_size_for(count: int, largest: int) -> int:
    """The largest size up to `largest` that splits `count` images so that no micro-batch holds a single one.

    A BatchNorm of one image is not defined. Where no size will do, all images are one micro-batch.
    """
    sizes = (size for size in range(min(largest, count), 1, -1) if count % size != 1)
    return next(sizes, count)


@torch.no_grad()
def head_predictions(
    probes: Probes, features: Features, device: torch.device, scale: TargetScale | None = None
) -> list[Predictions]:
    """The predictions of each head for images whose features are known."""
    probes.eval()
    values, targets = torch.from_numpy(features.values), torch.from_numpy(features.labels)
    logits = torch.cat([probes(chunk.to(device)).float().cpu() for chunk in values.split(8192)], dim=1)
    return [
        Predictions(logits=head.contiguous(), targets=targets, indices=features.indices, bad=features.bad, scale=scale)
        for head in logits
    ]
