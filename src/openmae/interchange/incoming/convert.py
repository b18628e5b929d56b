"""Conversion of another program's checkpoint to a `StoredModel`; the report says what became of every weight."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from openmae.config import ClassifierShape, MAEShape, TargetScale, ViTShape
from openmae.errors import RequestError, shown
from openmae.interchange.incoming.conversion import ConversionState, Hints
from openmae.interchange.incoming.files import RawCheckpoint
from openmae.interchange.incoming.read_encoder import read_encoder
from openmae.interchange.incoming.read_head import batch_norm, class_names, read_decoder, read_head
from openmae.interchange.incoming.read_preprocessing import read_preprocessing
from openmae.interchange.incoming.recognise import Recognised, recognise
from openmae.interchange.incoming.timm_models import with_timm_defaults
from openmae.interchange.names import REGRESSION, join_qkv
from openmae.interchange.report import LoadReport
from openmae.interchange.stored import ENCODER, StoredModel, expected_weights

FAMILIES = {
    "mae": "masked autoencoder",
    "vit": "Vision Transformer",
    "moco-v3": "MoCo v3 encoder",
    "dino": "DINO encoder",
    "beit": "BEiT encoder",
    "vitdet": "ViTDet backbone",
}
MULTI_LABEL = "multi_label_classification"  # transformers' name for it


def convert_checkpoint(raw: RawCheckpoint, source: str, hints: Hints | None = None) -> StoredModel:
    """Convert a raw checkpoint to openmae's names, shapes and preprocessing.

    Args:
        source: the requested path or name, for messages.
        hints: settings that the file does not contain.

    Raises:
        RequestError: it holds no Vision Transformer, an incomplete one, or one that would compute something else here.
    """
    recognised = recognise(raw)
    remarks = list(recognised.remarks)
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in recognised.weights.values()})
    if dtypes != ["float32"]:
        remarks.append(f"{', '.join(dtypes)} converted to float32")
    raw = with_timm_defaults(raw, source)
    weights, missing_biases = join_qkv(
        {name: _to_float32(value, name, source) for name, value in recognised.weights.items()}
    )
    if missing_biases:
        parts = sorted({name.split(".")[-2] for name in missing_biases})  # of q, k, v
        blocks = {name.rsplit(".", 2)[0] for name in weights if name.endswith("attn.qkv.bias")}
        if parts not in (["k"], ["k", "q", "v"]) or len(missing_biases) != len(parts) * len(blocks):
            raise RequestError(
                f"{source} lacks {shown(missing_biases[0])}, which others of its blocks have: it is damaged"
            )
        remarks.append(f"its attention has no bias of {', '.join(parts)}: they become zeros, which compute the same")
    state = ConversionState(
        raw=raw, source=source, recognised=recognised, hints=hints or Hints(), weights=weights, remarks=remarks
    )
    model, parts_phrase = _build(state)
    report = LoadReport(
        source=source,
        kind=f"{_origin(recognised)} {FAMILIES[recognised.family]}{parts_phrase}, {raw.container}",
        remarks=tuple(remarks),
        loaded={name: tuple(value.shape) for name, value in model.weights.items()},
        resized=state.resized,
        unused={name: tuple(value.shape) for name, value in {**recognised.unused, **state.unused}.items()},
    )
    return replace(model, report=report)


def _origin(recognised: Recognised) -> str:
    """Whose checkpoint it is, for the report: of the paper's authors ("reference"), a library, or another's release."""
    if recognised.program == "transformers":
        return "transformers"
    return {"mae": "reference", "vit": "timm"}.get(recognised.family, "released")


def _to_float32(value: Tensor, name: str, source: str) -> Tensor:
    """A weight as contiguous float32. Raises RequestError where it is quantised or not finite."""
    if not value.is_floating_point():
        raise RequestError(f"{source}: {name} is {value.dtype}, not floating point: it is quantised or damaged")
    value = value.to(torch.float32)
    if not bool(value.isfinite().all()):
        raise RequestError(f"{source}: {name} has values that are not finite: it is damaged")
    return value.contiguous()


def _build(state: ConversionState) -> tuple[StoredModel, str]:
    """The model, and a phrase for the report about its decoder or head."""
    encoder = read_encoder(state)
    decoder, head = state.take("decoder."), state.take("head.", "fc_norm.")
    weights = {ENCODER + name: value for name, value in state.weights.items()}
    shape: MAEShape | ClassifierShape | ViTShape = encoder
    description: dict[str, Any] = {"kind": "encoder", "recipe": None, "seed": None}
    phrase = ""
    if (mae := read_decoder(state, encoder, decoder)) is not None:
        shape = mae
        weights |= decoder
        ratio = state.config.get("mask_ratio", 0.75)
        ratio = float(ratio) if isinstance(ratio, int | float) and 0 < ratio < 1 else 0.75
        description |= {"kind": "mae", "masking": {"kind": "random", "ratio": ratio}}
        phrase = " with its decoder"
        state.unused.update(head)
    elif (classifier := read_head(state, encoder, head)) is not None:
        shape = classifier
        weights |= head | batch_norm(state, classifier)
        names, problem_type = class_names(state, classifier.num_classes), state.config.get("problem_type")
        description |= {"kind": "classifier", "classes": names, "is_multi_label": problem_type == MULTI_LABEL}
        phrase = f" with a classifier of {classifier.num_classes} classes"
        if problem_type == REGRESSION:  # the outputs are in the units of the labels: no scale to undo
            scale = TargetScale(columns=tuple(names), mean=(0.0,) * len(names), std=(1.0,) * len(names))
            description = {"kind": "regressor", "recipe": None, "seed": None, **scale.to_description()}
            phrase = f" that predicts {classifier.num_classes} number{'s' * (classifier.num_classes > 1)}"
        state.unused.update(decoder)
    else:
        state.unused.update(decoder | head)
        if (
            ENCODER + "norm.weight" not in weights
        ):  # its last norm was fc_norm, left out with the head, or there is none
            shape = encoder = replace(encoder, final_norm=False)
    weights = _match_weights(state, shape, weights)
    found = read_preprocessing(
        config=state.config,
        processor=state.raw.processor,
        family=state.recognised.family,
        channels=encoder.channels,
        image_size=encoder.image_size,
        is_classifier=isinstance(shape, ClassifierShape),
        mean=state.hints.mean,
        std=state.hints.std,
    )
    state.remarks.extend(found.remarks)
    description |= {"shape": shape.to_dict(), "preprocessing": found.preprocessing.to_dict()}
    return StoredModel(state.raw.path, weights, shape, found.preprocessing, description), phrase


def _match_weights(
    state: ConversionState, shape: MAEShape | ClassifierShape | ViTShape, weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The weights that a model of this shape has; what is left of a head or decoder goes to `state.unused`.

    Raises:
        RequestError: a weight is missing or of another shape, or the encoder has one that its shape has no place for.
    """
    expected = expected_weights(shape)
    missing = [f"{name} {tuple(value.shape)}" for name, value in expected.items() if name not in weights]
    if missing:
        rest = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise RequestError(f"{state.source} lacks {', '.join(missing[:3])}{rest}: it is incomplete or of another kind")
    unexpected = [name for name in weights if name not in expected]
    for name in unexpected:
        if name.startswith(ENCODER):
            raise RequestError(f"{state.source} has {shown(name)}, which does not fit its other blocks: it is damaged")
        state.unused[name] = weights[name]
    for name, value in expected.items():
        if weights[name].shape != value.shape:
            raise RequestError(
                f"{state.source}: {name} is {tuple(weights[name].shape)}, openmae's ViT has {tuple(value.shape)} there"
            )
    return {name: value for name, value in weights.items() if name in expected}
