"""Fitting the PCA target before the first step (table 1d): on random patches of training crops."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from openmae.config import ResolvedPretrainConfig
from openmae.data.batch import Batch
from openmae.data.device_crop import model_input
from openmae.data.loader import Stream, collate
from openmae.data.randomness import uniforms
from openmae.errors import RequestError
from openmae.interchange.init import read_stored_model
from openmae.interchange.stored import StoredModel
from openmae.model.mae import MAE
from openmae.model.patches import patchify
from openmae.model.targets import PatchCovariance, PCATarget
from openmae.run.open_run import Run
from openmae.training.checkpoint import MODEL

MAX_CROPS = 2048
CROPS_PER_IMAGE = 8  # at most, where there are few images
PATCHES_PER_CROP = 64
BATCH = 64


@dataclass(frozen=True)
class TargetFit:
    """What was fitted.

    Attributes:
        lines: to print.
        description: what it was fitted on, for the metadata of every checkpoint.
    """

    lines: list[str] = field(default_factory=list)
    description: dict[str, Any] = field(default_factory=dict)


def fit_target(run: Run[ResolvedPretrainConfig], model: MAE, stream: Stream, init: StoredModel | None) -> TargetFit:
    """Fit the components of a PCA target on the first samples of the stream, unless they were loaded with the weights.

    The first process reads and computes, on the CPU; all get its numbers, so they do not depend on the number of
    processes. The crops are those of the first training steps; of each, random patches count, without empty ones.

    Args:
        init: the model that a new run starts from.

    Raises:
        RequestError: there are fewer patches than coefficients.
    """
    target = model.target
    if not isinstance(target, PCATarget):
        return TargetFit()
    if target.is_fitted:
        loaded = init if run.previous is None else read_stored_model(run.previous.checkpoint.folder / MODEL)
        return TargetFit(description={"pca": loaded.description.get("pca")} if loaded is not None else {})
    count, values = target.components.shape
    crops = min(MAX_CROPS, CROPS_PER_IMAGE * len(stream.source))
    per_crop = min(PATCHES_PER_CROP, model.encoder.shape.num_patches)
    fitted, error, explained = torch.zeros(2 + count, values, dtype=torch.float64), "", 0.0
    if run.processes.is_first:
        covariance = patch_covariance(stream, target.patch_size, crops, per_crop)
        if covariance.count <= count:
            error = (
                f"--pca-coefficients got {count}, and there are {covariance.count} patches to fit them on: give fewer"
            )
        else:
            mean, components, scale, explained = covariance.components(count)
            fitted = torch.cat([mean[None], scale.expand(1, values), components])
    if error := run.processes.gather(error)[0]:
        raise RequestError(error)
    fitted = run.processes.sum(fitted)
    target.set_components(fitted[0], fitted[2:], fitted[1, 0])
    share = f"hold {explained:.1%} of the variance in" if explained else "describe nothing: all patches are alike in"
    line = f"pca        {count} of {values} coefficients {share} {crops:,} crops"
    return TargetFit([line], {"pca": {"crops": crops, "patches_per_crop": per_crop, "seed": stream.seed}})


def patch_covariance(stream: Stream, patch_size: int, crops: int, per_crop: int) -> PatchCovariance:
    """The covariance of `per_crop` random patches of each of the first `crops` samples of a stream."""
    p = stream.preprocessing
    covariance = PatchCovariance(p.channels * patch_size**2)
    for start in range(0, crops, BATCH):
        batch = collate(stream.__getitems__(range(start, min(start + BATCH, crops))))
        images = model_input(batch, p, torch.device("cpu"))
        covariance.add(_random_patches(patchify(images, patch_size), batch, per_crop))
    return covariance


def _random_patches(patches: Tensor, batch: Batch, count: int) -> Tensor:
    """`count` random patches of each image, without empty ones: (n, values)."""
    order = torch.from_numpy(uniforms(batch.keys.numpy(), patches.shape[1], "pca")).argsort(dim=1)[:, :count]
    drawn = patches.gather(1, order[..., None].expand(-1, -1, patches.shape[2]))
    return drawn.flatten(0, 1) if batch.is_empty is None else drawn[~batch.is_empty.gather(1, order)]
