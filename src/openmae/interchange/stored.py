"""A model independent of any file format: weights by our names, and all that is needed to use them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openmae.config import (
    ClassifierShape,
    DetectorShape,
    MAEShape,
    Preprocessing,
    SegmenterShape,
    TargetScale,
    ViTShape,
)
from openmae.errors import RequestError, shown
from openmae.interchange.report import LoadReport
from openmae.model.heads import Classifier
from openmae.model.mae import MAE
from openmae.model.vit import ViT
from openmae.transfer.detection.detector import Detector
from openmae.transfer.segmentation.segmenter import Segmenter

ModelShape = MAEShape | ClassifierShape | SegmenterShape | DetectorShape | ViTShape
ENCODER = "encoder."
KIND_NAMES = {  # by the kind in a file's description, for messages
    "mae": "a masked autoencoder",
    "classifier": "a classifier",
    "regressor": "a regression model",
    "segmenter": "a segmentation model",
    "detector": "a detector",
    "encoder": "an encoder alone",
}


@dataclass(frozen=True)
class StoredModel:
    """Weights, the shape of their model, and the preprocessing of its images.

    Attributes:
        path: the file they come from, for messages.
        weights: by the parameter names of `MAE`, `Classifier`, `Segmenter` or `Detector`, or of an encoder alone behind
            `encoder.`.
        shape: of a masked autoencoder, a classifier (a regression model is one, of as many outputs), a segmentation
            model, a detector, or (`ViTShape`) an encoder alone.
        description: the file's metadata: kind, recipe, seed, step, classes, …
        report: what happened to each of the file's weights; None where the model was not read by `read_init`.
    """

    path: Path
    weights: dict[str, Tensor]
    shape: ModelShape
    preprocessing: Preprocessing
    description: dict[str, Any]
    report: LoadReport | None = None

    @property
    def encoder_shape(self) -> ViTShape:
        """The encoder's shape; that of a segmentation model or detector has no final norm, whatever it had before."""
        if isinstance(self.shape, (SegmenterShape, DetectorShape)):
            return replace(self.shape.encoder, final_norm=False)
        return self.shape if isinstance(self.shape, ViTShape) else self.shape.encoder

    @property
    def scale(self) -> TargetScale | None:
        """The scale of the numbers that a regression model predicts; None for any other model."""
        return TargetScale.from_description(self.description) if self.description.get("kind") == "regressor" else None

    @property
    def kind_name(self) -> str:
        """The kind of model, for messages."""
        if isinstance(self.shape, ViTShape):
            return KIND_NAMES["encoder"]
        if isinstance(self.shape, MAEShape):
            return KIND_NAMES["mae"]
        if isinstance(self.shape, SegmenterShape):
            return KIND_NAMES["segmenter"]
        if isinstance(self.shape, DetectorShape):
            return KIND_NAMES["detector"]
        return KIND_NAMES["classifier" if self.scale is None else "regressor"]

    @property
    def encoder_weights(self) -> dict[str, Tensor]:
        """The encoder's weights, by their names inside it."""
        return {k.removeprefix(ENCODER): v for k, v in self.weights.items() if k.startswith(ENCODER)}


def expected_weights(shape: ModelShape) -> dict[str, Tensor]:
    """The weights that a `StoredModel` of this shape must have, without memory (on torch's meta device)."""
    model: nn.Module
    with torch.device("meta"):
        if isinstance(shape, ViTShape):
            return {ENCODER + name: value for name, value in ViT(shape).state_dict().items()}
        if isinstance(shape, MAEShape):
            model = MAE.from_shape(shape)
        elif isinstance(shape, SegmenterShape):
            model = Segmenter.from_shape(shape)
        elif isinstance(shape, DetectorShape):
            model = Detector.from_shape(shape)
        else:
            model = Classifier.from_shape(shape)
    return dict(model.state_dict())


def check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Raise RequestError where a weight is missing, unknown or of another shape; the message names the first."""
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            raise RequestError(f"{where} lacks {name} {tuple(expected[name].shape)}: it is damaged or of another model")
        if name not in expected:
            raise RequestError(f"{where} has {shown(name)}, which this model does not: damaged or of another model")
        if weights[name].shape != expected[name].shape:
            raise RequestError(
                f"{where} is damaged or of another shape: {name} is {tuple(weights[name].shape)} there and "
                f"{tuple(expected[name].shape)} here"
            )


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """A hash of weights and their names, by which a resumed run checks that it continues with the same model."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
