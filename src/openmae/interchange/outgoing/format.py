"""What all exports share: a part of a model, its weights by another program's names, and what is refused."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from openmae.config import ClassifierShape, DetectorShape, MAEShape, SegmenterShape, ViTShape
from openmae.config.shapes import PIXEL_TARGETS
from openmae.errors import RequestError
from openmae.interchange.stored import ENCODER, StoredModel
from openmae.machine.files import make_readable
from openmae.model.block import LAYER_NORM_EPS
from openmae.model.heads import PROBE_EPS

# The formats that hold a segmentation model whole, or a detector; torch-export refuses one, with the reason.
WHOLE_SEGMENTERS = ("openmae", "onnx", "torch-export")
# A probe's BatchNorm, which is folded into its linear head.
FOLDED = ("fc_norm.running_mean", "fc_norm.running_var", "fc_norm.num_batches_tracked")


@dataclass(frozen=True)
class Outgoing:
    """A model by another program's names, ready to be written.

    Attributes:
        weights: by that program's names.
        left_out: our names of the weights that the format does not hold.
        configs: JSON files beside the weights, by file name.
        remarks: lines about decisions, and about what the format does not hold.
    """

    weights: dict[str, Tensor]
    left_out: tuple[str, ...] = ()
    configs: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write model.safetensors and the JSON files into a folder."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.weights.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        make_readable(folder / "model.safetensors")
        for name, values in self.configs.items():
            (folder / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def encoder_part(model: StoredModel) -> StoredModel:
    """The encoder alone, its weights' names with the prefix `encoder.`; a model that is only an encoder is unchanged.

    A classifier that norms the mean of its tokens has an encoder without a final norm, and so have a segmentation model
    and a detector.
    """
    if isinstance(model.shape, ViTShape):
        return model
    shape = model.encoder_shape
    if isinstance(model.shape, ClassifierShape) and has_fc_norm(model.shape):
        shape = replace(shape, final_norm=False)
    kept = ("preprocessing", "recipe", "seed", "step")
    description = {name: model.description[name] for name in kept if name in model.description}
    description |= {"kind": "encoder", "shape": shape.to_dict()}
    weights = {f"{ENCODER}{name}": value for name, value in model.encoder_weights.items()}
    return replace(model, weights=weights, shape=shape, description=description)


def backbone_part(model: StoredModel, to: str) -> tuple[StoredModel, tuple[str, ...]]:
    """The encoder of a segmentation model or detector, for a format that holds no more of it, and a remark.

    Others are unchanged.
    """
    if not isinstance(model.shape, SegmenterShape | DetectorShape) or to in WHOLE_SEGMENTERS:
        return model, ()
    kind, whole = "segmentation model", "openmae, onnx and torch-export"
    if isinstance(model.shape, DetectorShape):
        kind, whole = "detector", "openmae and onnx"
    remark = f"its encoder only: {to} has no such {kind}; --to {whole} hold it whole"
    return encoder_part(model), (remark,)


def has_fc_norm(shape: ClassifierShape) -> bool:
    """Whether the norm follows the mean over tokens, as timm's `fc_norm`, and tokens are not normed (docs/paper.md)."""
    return shape.head == "fine-tune" and shape.pool == "mean"


def names_left_out(names: Mapping[str, Any], kept: Mapping[str, Any]) -> tuple[str, ...]:
    """The sorted names of weights that are not among those kept."""
    return tuple(sorted(names.keys() - kept.keys()))


def linear_head(model: StoredModel) -> tuple[Tensor, Tensor]:
    """The weight and bias of the linear head, as other programs apply it to pooled features.

    A probe's BatchNorm, which has no weights of its own, is folded into it, and so is the scale of numbers to predict:
    other programs get them in their own units.

    head((x − m) / √(v + eps)) = (W / √(v + eps)) x + (b − W m / √(v + eps)), computed in float64.
    """
    weight, bias = model.weights["head.weight"], model.weights["head.bias"]
    assert isinstance(model.shape, ClassifierShape)
    if model.shape.head != "probe" and model.scale is None:
        return weight, bias
    folded, offset = weight.double(), bias.double()
    if model.shape.head == "probe":
        mean, variance = (model.weights[f"fc_norm.running_{name}"].double() for name in ("mean", "var"))
        folded = folded / (variance + PROBE_EPS).sqrt()
        offset = offset - folded @ mean
    if model.scale is not None:
        target_mean, deviation = torch.tensor((model.scale.mean, model.scale.std), dtype=torch.float64)
        folded, offset = folded * deviation[:, None], offset * deviation + target_mean
    return folded.to(weight.dtype), offset.to(bias.dtype)


def check_plain(model: StoredModel, to: str) -> None:
    """Refuse an encoder that is no plain ViT, for a format that holds only those.

    A missing final norm is not checked here: each format decides about it.

    Raises:
        RequestError: it differs from a plain ViT, the message says how.
    """
    assert not isinstance(model.shape, SegmenterShape | DetectorShape), "`backbone_part` takes its encoder before"
    shape = replace(model.encoder_shape, final_norm=True)
    if shape.is_plain:
        return
    differs = ", ".join(f"{name} {value}" for name, value in sorted(shape.differences.items()) if name != "norm_eps")
    raise RequestError(
        f"--to {to} holds a plain ViT only, this encoder has {differs}: --to openmae, onnx and torch-export hold it"
    )


def eps_remarks(model: StoredModel, program: str) -> list[str]:
    """A remark where the eps of this model's LayerNorms is not the 1e-6 of the program."""
    eps = model.encoder_shape.norm_eps
    if eps == LAYER_NORM_EPS:
        return []
    return [f"its norms have an eps of {eps:g}, {program} has {LAYER_NORM_EPS:g}: features differ from about 1e-5 on"]


def check_mask_tokens(model: StoredModel, to: str) -> None:
    """Raise RequestError where mask tokens go through the encoder (table 1c), which the format does not support."""
    if isinstance(model.shape, MAEShape) and model.shape.mask_tokens_in_encoder:
        raise RequestError(
            f"--to {to} has its mask token in the decoder, this model's goes through the encoder "
            "(--mask-tokens-in-encoder): --part encoder leaves both out"
        )


def check_pixels(model: StoredModel, to: str) -> None:
    """Raise RequestError where the decoder predicts no pixels, which is all that the format's decoders predict."""
    if isinstance(model.shape, MAEShape) and model.shape.target not in PIXEL_TARGETS:
        raise RequestError(
            f"--to {to} has decoders that predict pixels, this model's predicts {model.shape.target_name}: "
            "--part encoder leaves it out, --to openmae holds it"
        )


def output_names(model: StoredModel) -> list[str]:
    """The names of a classifier's classes, or of the numbers that a regression model predicts."""
    names: list[str] = model.description["classes" if model.scale is None else "columns"]
    return names


def number_remarks(model: StoredModel) -> list[str]:
    """A remark about a regression model in another program."""
    if model.scale is None:
        return []
    return ["its outputs are the numbers in their own units, no scores of classes: the scale is folded into the head"]
