"""The modules exported to ONNX and torch.export: from normalised images to tokens and features, logits, or numbers."""

import json
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openmae.config import ClassifierShape, DetectorShape, SegmenterShape, TargetScale
from openmae.errors import Fault, RequestError
from openmae.interchange.outgoing.format import encoder_part
from openmae.interchange.stored import ENCODER, StoredModel
from openmae.model.heads import Classifier
from openmae.model.heads import pool as pool_tokens
from openmae.model.vit import ViT
from openmae.transfer.segmentation.segmenter import Segmenter

AUXILIARY = "auxiliary."  # a segmentation model's second head, which only helps in training
TOLERANCE = 1e-4  # relative to the largest value; with a larger error nothing is written
BATCHES = (1, 2, 5)  # batch sizes that an exported file is checked with


class EncoderAndPool(nn.Module):
    """An encoder that returns its tokens, and the features pooled from them."""

    def __init__(self, encoder: ViT, pool: str) -> None:
        super().__init__()
        self.encoder, self.pool = encoder, pool

    def forward(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b d"]]:
        tokens = self.encoder(images)
        return tokens, pool_tokens(tokens, self.pool, self.encoder.shape.num_prefix_tokens)


class RegressorInUnits(nn.Module):
    """A regression model that returns numbers in their own units."""

    def __init__(self, regressor: Classifier, scale: TargetScale) -> None:
        super().__init__()
        self.regressor = regressor
        self.register_buffer("mean", torch.tensor(scale.mean))
        self.register_buffer("std", torch.tensor(scale.std))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b columns"]:
        return self.regressor(images) * self.std + self.mean


class PixelLogits(nn.Module):
    """A segmentation model that returns the logits of each pixel, at the size of its images."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes h w"]:
        return self.segmenter.segment(images)


def exportable_module(model: StoredModel, pool: str) -> tuple[nn.Module, tuple[str, ...]]:
    """The module to export, in evaluation mode, and the names of its outputs; for a masked autoencoder its encoder.

    Not of a detector, see `detector_program`.

    Raises:
        RequestError: `pool` is cls, and the encoder has no class token.
    """
    if isinstance(model.shape, ClassifierShape):
        classifier = Classifier.from_shape(model.shape)
        classifier.load_state_dict(model.weights)
        if model.scale is not None:
            return RegressorInUnits(classifier, model.scale).eval(), ("numbers",)
        return classifier.eval(), ("logits",)
    if isinstance(model.shape, SegmenterShape):
        segmenter = Segmenter.from_shape(model.shape)
        segmenter.load_state_dict(model.weights)
        return PixelLogits(segmenter).eval(), ("logits",)
    part = encoder_part(model)
    shape = part.encoder_shape
    if pool == "cls" and not shape.class_token:
        raise RequestError("--pool got cls, but this encoder has no class token: --pool mean")
    encoder = ViT(shape)
    encoder.load_state_dict(part.encoder_weights)
    return EncoderAndPool(encoder, pool).eval(), ("tokens", "features")


def left_out(model: StoredModel) -> tuple[str, ...]:
    """Our names of the weights that the exported module does not contain."""
    if isinstance(model.shape, ClassifierShape):
        return ()
    if isinstance(model.shape, SegmenterShape | DetectorShape):
        last = model.shape.pyramid_blocks[-1]
        unused = (AUXILIARY, *(f"{ENCODER}blocks.{i}." for i in range(last + 1, model.shape.encoder.depth)))
        return tuple(sorted(name for name in model.weights if name.startswith(unused)))
    return tuple(sorted(name for name in model.weights if not name.startswith(ENCODER)))


def example_images(model: StoredModel, batch: int) -> Float[Tensor, "b c h w"]:
    """A batch of normal noise in place of normalised images, the same each time."""
    generator = torch.Generator().manual_seed(batch)
    shape = model.encoder_shape
    return torch.randn(batch, shape.channels, *shape.image_size, generator=generator)


def metadata(model: StoredModel, outputs: tuple[str, ...], pool: str) -> dict[str, str]:
    """What is needed to use the exported module, each value as JSON: preprocessing, classes, description."""
    # Numbers are already in their own units, so their scale is left out, lest it be applied again.
    left_out = ("preprocessing", "classes", "columns", "target_mean", "target_std")
    description = {k: v for k, v in model.description.items() if k not in left_out}
    values: dict[str, Any] = {
        "preprocessing": model.preprocessing.to_dict(),
        "description": description,
    }
    if "features" in outputs:
        values["pool"] = pool
    if "classes" in model.description:
        values["classes"] = model.description["classes"]
        if isinstance(model.shape, ClassifierShape):
            values["is_multi_label"] = bool(model.description.get("is_multi_label"))
    if model.scale is not None:
        values["columns"] = list(model.scale.columns)
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def checked_error(name: str, outputs: list[tuple[Tensor, ...]], expected: list[tuple[Tensor, ...]]) -> float:
    """The largest difference relative to the largest value of each output.

    Raises:
        Fault: it is beyond the tolerance, not finite, or of another shape.
    """
    worst = 0.0
    for theirs, ours in zip(outputs, expected, strict=True):
        for got, wanted in zip(theirs, ours, strict=True):
            if got.shape != wanted.shape:
                raise Fault(f"{name} gives {tuple(got.shape)} where this model gives {tuple(wanted.shape)}")
            error = float((got - wanted).abs().max() / wanted.abs().max().clamp(min=torch.finfo().tiny))
            if not error <= TOLERANCE:  # NaN, too
                raise Fault(f"{name} differs from this model by {error:.1e} of the largest value: nothing was written")
            worst = max(worst, error)
    return worst


def as_tuple(values: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs of a module as a tuple, also where it has only one."""
    return (values,) if isinstance(values, Tensor) else tuple(values)
