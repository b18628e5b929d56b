"""From another library's checkpoint to a model with openmae's names: every weight is accounted for."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from openmae.config import ClassifierShape, MAEShape, TargetScale, ViTShape
from openmae.errors import RequestError, shown
from openmae.interchange.incoming.files import RawCheckpoint
from openmae.interchange.incoming.read_encoder import read_encoder
from openmae.interchange.incoming.read_head import batch_norm, class_names, read_decoder, read_head
from openmae.interchange.incoming.read_preprocessing import read_preprocessing
from openmae.interchange.incoming.reading import ConversionState, Hints
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


def interpret(raw: RawCheckpoint, source: str, hints: Hints | None = None) -> StoredModel:
    """Interpret a raw checkpoint as a model.

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
    weights, absent = join_qkv({name: _plain(value, name, source) for name, value in recognised.weights.items()})
    if absent:
        parts = sorted({name.split(".")[-2] for name in absent})
        blocks = {name.rsplit(".", 2)[0] for name in weights if name.endswith("attn.qkv.bias")}
        if parts not in (["k"], ["k", "q", "v"]) or len(absent) != len(parts) * len(blocks):
            raise RequestError(f"{source} lacks {shown(absent[0])}, which others of its blocks have: it is damaged")
        remarks.append(f"{', '.join(parts)} of its attention have no bias: zero, which computes the same")
    r = ConversionState(
        raw=raw, source=source, recognised=recognised, hints=hints or Hints(), weights=weights, remarks=remarks
    )
    model, content = _build(r)
    report = LoadReport(
        source=source,
        kind=f"{_program(recognised)} {FAMILIES[recognised.family]}{content}, {raw.container}",
        remarks=tuple(remarks),
        loaded={name: tuple(value.shape) for name, value in model.weights.items()},
        resized=r.resized,
        unused={name: tuple(value.shape) for name, value in {**recognised.unused, **r.unused}.items()},
    )
    return replace(model, report=report)


def _program(recognised: Recognised) -> str:
    if recognised.program == "transformers":
        return "transformers"
    return {"mae": "reference", "vit": "timm"}.get(recognised.family, "released")


def _plain(value: Tensor, name: str, source: str) -> Tensor:
    if not value.is_floating_point():
        raise RequestError(f"{source}: {name} is {value.dtype}, not floating point: it is quantised or damaged")
    value = value.to(torch.float32)
    if not bool(value.isfinite().all()):
        raise RequestError(f"{source}: {name} has values that are not finite: it is damaged")
    return value.contiguous()


def _build(r: ConversionState) -> tuple[StoredModel, str]:
    """The model, and a phrase about what it has besides the encoder."""
    encoder = read_encoder(r)
    decoder, head = r.take("decoder."), r.take("head.", "fc_norm.")
    weights = {ENCODER + name: value for name, value in r.weights.items()}
    shape: MAEShape | ClassifierShape | ViTShape = encoder
    description: dict[str, Any] = {"kind": "encoder", "recipe": None, "seed": None}
    content = ""
    if (mae := read_decoder(r, encoder, decoder)) is not None:
        shape = mae
        weights |= decoder
        ratio = r.config.get("mask_ratio", 0.75)
        ratio = float(ratio) if isinstance(ratio, int | float) and 0 < ratio < 1 else 0.75
        description |= {"kind": "mae", "masking": {"kind": "random", "ratio": ratio}}
        content = " with its decoder"
        r.unused.update(head)
    elif (classifier := read_head(r, encoder, head)) is not None:
        shape = classifier
        weights |= head | batch_norm(r, classifier)
        names, problem = class_names(r, classifier.num_classes), r.config.get("problem_type")
        description |= {"kind": "classifier", "classes": names, "is_multi_label": problem == MULTI_LABEL}
        content = f" with a classifier of {classifier.num_classes} classes"
        if problem == REGRESSION:  # its numbers are in their own units
            scale = TargetScale(columns=tuple(names), mean=(0.0,) * len(names), std=(1.0,) * len(names))
            description = {"kind": "regressor", "recipe": None, "seed": None, **scale.to_description()}
            content = f" that predicts {classifier.num_classes} number{'s' * (classifier.num_classes > 1)}"
        r.unused.update(decoder)
    else:
        r.unused.update(decoder | head)
        if ENCODER + "norm.weight" not in weights:  # the norm after pooling went with the head
            shape = encoder = replace(encoder, final_norm=False)
    _check_complete(r, shape, weights)
    found = read_preprocessing(
        config=r.config,
        processor=r.raw.processor,
        family=r.recognised.family,
        channels=encoder.channels,
        image_size=encoder.image_size,
        is_classifier=isinstance(shape, ClassifierShape),
        mean=r.hints.mean,
        std=r.hints.std,
    )
    r.remarks.extend(found.remarks)
    description |= {"shape": shape.to_dict(), "preprocessing": found.preprocessing.to_dict()}
    return StoredModel(r.raw.path, weights, shape, found.preprocessing, description), content


def _check_complete(r: ConversionState, shape: MAEShape | ClassifierShape | ViTShape, own: dict[str, Tensor]) -> None:
    """Raise RequestError where a weight of the model is missing or of another shape, by name."""
    expected = expected_weights(shape)
    missing = [f"{name} {tuple(value.shape)}" for name, value in expected.items() if name not in own]
    if missing:
        rest = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise RequestError(f"{r.source} lacks {', '.join(missing[:3])}{rest}: it is incomplete or of another kind")
    for name in [name for name in own if name not in expected]:
        if name.startswith(ENCODER):
            raise RequestError(f"{r.source} has {shown(name)}, which its other blocks do not tell of: it is damaged")
        r.unused[name] = own.pop(name)
    for name, value in expected.items():
        if own[name].shape != value.shape:
            raise RequestError(
                f"{r.source}: {name} is {tuple(own[name].shape)}, openmae's ViT has {tuple(value.shape)} there"
            )
