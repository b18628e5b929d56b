"""A model as it travels between files: weights by our names, and all that is needed to use them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from openmae.config import ClassifierShape, MAEShape, Preprocessing, ViTShape
from openmae.errors import RequestError
from openmae.interchange.report import Report

ENCODER = "encoder."


@dataclass(frozen=True)
class Described:
    """Weights, what they are of, and how an image becomes their input.

    Attributes:
        path: where they come from, for messages.
        weights: by the parameter names of `MAE`, of `Classifier`, or of an encoder alone behind `encoder.`.
        shape: of a masked autoencoder, a classifier, or (`ViTShape`) an encoder alone.
        description: what the file says of itself: kind, recipe, seed, step, classes, …
        report: what became of each of the file's weights; None where nobody asked.
    """

    path: Path
    weights: dict[str, Tensor]
    shape: MAEShape | ClassifierShape | ViTShape
    preprocessing: Preprocessing
    description: dict[str, Any]
    report: Report | None = None

    @property
    def encoder_shape(self) -> ViTShape:
        return self.shape if isinstance(self.shape, ViTShape) else self.shape.encoder

    @property
    def encoder_weights(self) -> dict[str, Tensor]:
        """The encoder's, by their names inside it.

        Raises:
            RequestError: there are none.
        """
        found = {k.removeprefix(ENCODER): v for k, v in self.weights.items() if k.startswith(ENCODER)}
        if not found:
            raise RequestError(f"{self.path} holds no encoder: give a pre-trained or fine-tuned model")
        return found


def hash_of(weights: Mapping[str, Tensor]) -> str:
    """A hash of weights by name: a run goes on with the model that it began with."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
