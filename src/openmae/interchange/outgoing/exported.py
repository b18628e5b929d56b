"""What ONNX and torch.export hold: a module from normalised images to tokens and features, to logits, or to numbers."""

import json
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openmae.config import ClassifierShape, TargetScale
from openmae.errors import Fault, RequestError
from openmae.interchange.outgoing.format import encoder_part
from openmae.interchange.stored import ENCODER, StoredModel
from openmae.model.heads import Classifier
from openmae.model.heads import pool as pool_tokens
from openmae.model.vit import ViT

TOLERANCE = 1e-4  # of the largest value: beyond it nothing is written
BATCHES = (1, 2, 5)  # that a file is checked with


class Encoding(nn.Module):
    """An encoder that gives its tokens, and features pooled of them."""

    def __init__(self, encoder: ViT, pool: str) -> None:
        super().__init__()
        self.encoder, self.pool = encoder, pool

    def forward(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b d"]]:
        tokens = self.encoder(images)
        return tokens, pool_tokens(tokens, self.pool, self.encoder.shape.num_prefix_tokens)


class Predicting(nn.Module):
    """A regression model that gives numbers in their own units."""

    def __init__(self, regressor: Classifier, scale: TargetScale) -> None:
        super().__init__()
        self.regressor = regressor
        self.register_buffer("mean", torch.tensor(scale.mean))
        self.register_buffer("std", torch.tensor(scale.std))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b columns"]:
        return self.regressor(images) * self.std + self.mean


def exportable(model: StoredModel, pool: str) -> tuple[nn.Module, tuple[str, ...]]:
    """The module, in evaluation mode, and the names of its outputs; of a masked autoencoder the encoder.

    Raises:
        RequestError: `pool` asks for a class token that is not there.
    """
    if isinstance(model.shape, ClassifierShape):
        classifier = Classifier.from_shape(model.shape)
        classifier.load_state_dict(model.weights)
        if model.scale is not None:
            return Predicting(classifier, model.scale).eval(), ("numbers",)
        return classifier.eval(), ("logits",)
    part = encoder_part(model)
    shape = part.encoder_shape
    if pool == "cls" and not shape.class_token:
        raise RequestError("--pool got cls, but this encoder has no class token: --pool mean")
    encoder = ViT(shape)
    encoder.load_state_dict(part.encoder_weights)
    return Encoding(encoder, pool).eval(), ("tokens", "features")


def left_out(model: StoredModel) -> tuple[str, ...]:
    """Our names of the weights that `exportable` does not take."""
    whole = isinstance(model.shape, ClassifierShape)
    return () if whole else tuple(sorted(name for name in model.weights if not name.startswith(ENCODER)))


def some_images(model: StoredModel, batch: int) -> Float[Tensor, "b c h w"]:
    """Normal noise, as normalised images are: the same each time."""
    generator = torch.Generator().manual_seed(batch)
    shape = model.encoder_shape
    return torch.randn(batch, shape.channels, *shape.image_size, generator=generator)


def metadata(model: StoredModel, outputs: tuple[str, ...], pool: str) -> dict[str, str]:
    """What a program needs beside the module, each value JSON: the preparation of images, classes, what it is of."""
    # Numbers come out in their own units: a scale that could be put on them again is no part of what is said.
    said_elsewhere = ("preprocessing", "classes", "columns", "target_mean", "target_std")
    description = {k: v for k, v in model.description.items() if k not in said_elsewhere}
    values: dict[str, Any] = {
        "preprocessing": model.preprocessing.to_dict(),
        "description": description,
    }
    if "features" in outputs:
        values["pool"] = pool
    if "classes" in model.description:
        values["classes"] = model.description["classes"]
        values["is_multi_label"] = bool(model.description.get("is_multi_label"))
    if model.scale is not None:
        values["columns"] = list(model.scale.columns)
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def checked_error(what: str, found: list[tuple[Tensor, ...]], expected: list[tuple[Tensor, ...]]) -> float:
    """The largest difference relative to the largest value of each output.

    Raises:
        Fault: it is beyond the tolerance, not finite, or of another shape.
    """
    worst = 0.0
    for theirs, ours in zip(found, expected, strict=True):
        for got, wanted in zip(theirs, ours, strict=True):
            if got.shape != wanted.shape:
                raise Fault(f"{what} gives {tuple(got.shape)} where this model gives {tuple(wanted.shape)}")
            error = float((got - wanted).abs().max() / wanted.abs().max().clamp(min=torch.finfo().tiny))
            if not error <= TOLERANCE:  # NaN, too
                raise Fault(f"{what} differs from this model by {error:.1e} of the largest value: nothing was written")
            worst = max(worst, error)
    return worst


def as_tuple(values: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs of a module as a tuple, also where it has only one."""
    return (values,) if isinstance(values, Tensor) else tuple(values)
