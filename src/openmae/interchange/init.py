"""From `--init` to a model: find the file it names, read it, and check it against its own description."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from openmae.config import (
    MASKS,
    ClassifierShape,
    DetectorShape,
    MAEShape,
    Preprocessing,
    SegmenterShape,
    TargetScale,
    ViTShape,
    check_name,
    check_range,
    flag_of,
)
from openmae.errors import RequestError, shown
from openmae.interchange.incoming.conversion import Hints
from openmae.interchange.incoming.convert import convert_checkpoint
from openmae.interchange.incoming.files import locate_checkpoint, read_raw_checkpoint
from openmae.interchange.incoming.named import TIMM
from openmae.interchange.incoming.timm_models import read_timm
from openmae.interchange.report import LoadReport
from openmae.interchange.stored import KIND_NAMES, ModelShape, StoredModel, check_weights, expected_weights
from openmae.model import cost
from openmae.model.tokenizer_cost import stored_parameters
from openmae.training.checkpoint import METADATA_KEY, MODEL, newest_checkpoint, read_model
from openmae.transfer.detection.detector_cost import detector_parameters
from openmae.transfer.segmentation.segmenter_cost import segmenter_parameters


def read_init(init: str, hints: Hints | None = None, *, verbose: bool = True) -> StoredModel:
    """The model that an `--init` names, ours or another program's.

    That is a run folder, a checkpoint, a file, a folder as transformers or timm write it, `timm:NAME` or `hf:ORG/NAME`.

    Args:
        hints: settings that another library's file does not contain; openmae's own contain all, and hints must agree.
        verbose: print which weights were loaded, resized or unused (in the first process).

    Raises:
        RequestError: it does not exist, cannot be read, lacks a weight of the encoder, or contradicts a hint.
    """
    if init.startswith(TIMM):
        model = convert_checkpoint(read_timm(init.removeprefix(TIMM)), init, hints)
    else:
        path = locate_checkpoint(init)
        if is_ours(path):
            model = _with_report(read_stored_model(find_model(path)), init)
            _check_hints(model, hints or Hints())
        else:
            model = convert_checkpoint(read_raw_checkpoint(path), init, hints)
    if verbose and model.report is not None and os.environ.get("RANK", "0") == "0":
        print("\n".join(model.report.lines()), flush=True)
    return model


def is_ours(path: Path) -> bool:
    """Whether a file or folder was written by openmae: a run, a checkpoint, or a model.safetensors with metadata."""
    if path.is_dir():
        return (path / "checkpoints").is_dir() or ((path / MODEL).is_file() and is_ours(path / MODEL))
    try:
        with safe_open(path, framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _with_report(model: StoredModel, init: str) -> StoredModel:
    """A model of ours with a report that all its weights were loaded: reading it has checked that."""
    kinds = {
        "mae": "masked autoencoder",
        "classifier": "classifier",
        "regressor": "regression model",
        "segmenter": "segmentation model",
        "detector": "detector",
        "encoder": "encoder",
    }
    step = model.description.get("step")
    kind = f"openmae {kinds[model.description.get('kind', 'mae')]}" + (f", step {step:,}" if step is not None else "")
    loaded = {name: tuple(value.shape) for name, value in model.weights.items()}
    return replace(model, report=LoadReport(source=init, kind=kind, loaded=loaded))


def _check_hints(model: StoredModel, hints: Hints) -> None:
    """Raise RequestError where a hint contradicts the file. The image size is not checked: another one resamples."""
    shape, p = model.shape, model.preprocessing
    known = {"num_heads": model.encoder_shape.num_heads, "mean": p.mean, "std": p.std}
    if isinstance(shape, MAEShape):
        known |= {"decoder_num_heads": shape.decoder.num_heads, "target": shape.target}
    for name in ("num_heads", "decoder_num_heads", "target", "mean", "std"):
        hint = getattr(hints, name)
        if hint is not None and hint != known.get(name):
            own = known.get(name, "none")
            raise RequestError(f"{flag_of(name)} got {hint}, but {shown(model.path)} has {own}: leave it out")


def find_model(path: Path, flag: str = "--init") -> Path:
    """The model.safetensors of a run folder or a checkpoint of ours, or the file itself.

    Args:
        flag: which setting named it, for messages.

    Raises:
        RequestError: there is none.
    """
    if path.is_file():
        return path
    if (path / MODEL).is_file():
        return path / MODEL
    if path.is_dir():
        checkpoint, damaged = newest_checkpoint(path)
        if checkpoint is not None:
            return checkpoint.folder / MODEL
        reason = "; ".join(damaged) or "it has neither model.safetensors nor checkpoints/"
        raise RequestError(f"{flag} {shown(path)} holds no model: {reason}")
    raise RequestError(f"{flag} {shown(path)} does not exist: give a run folder, a checkpoint or a model.safetensors")


def check_label_numbers(description: dict[str, Any]) -> None:
    """Raise an error where a segmentation model's description lacks how its mask files number classes."""
    ignored, reduced = description["ignore_index"], description["reduce_zero_label"]
    if type(ignored) not in (int, type(None)) or type(reduced) is not bool:
        raise TypeError(f"ignore_index {ignored!r} or reduce_zero_label {reduced!r} is of another type")


def check_category_ids(description: dict[str, Any]) -> None:
    """Raise an error where a detector's description lacks the ids that COCO files give its classes."""
    ids = description["category_ids"]
    if not (isinstance(ids, list) and all(type(k) in (int, str) for k in ids)):
        raise TypeError(f"category_ids {ids!r} are no ids")
    if len(ids) != len(description["classes"]):
        raise ValueError(f"{len(ids)} category_ids for {len(description['classes'])} classes")


def read_stored_model(path: Path) -> StoredModel:
    """Read a model with features of ours, of any kind in `KIND_NAMES`, and check its weights.

    Raises:
        RequestError: it cannot be read, describes none, or a weight is missing, unknown or of another shape.
    """
    weights, description = read_model(path)
    kind = description.get("kind", "mae")
    if kind == "tokenizer":
        raise RequestError(f"{path} is a tokenizer and no model with features: give it as --tokenizer to pretrain")
    if kind not in KIND_NAMES:
        raise RequestError(f"{path} says it is a {kind!r}: {', '.join(KIND_NAMES.values())} would do")
    shape: ModelShape
    try:
        preprocessing = Preprocessing.from_dict(description["preprocessing"])
        if kind == "mae":
            shape = MAEShape.from_dict(description["shape"])
            masking = description.get("masking") or {}
            check_name("masking", masking.get("kind"), MASKS)
            check_range("masking ratio", masking.get("ratio"), 0, 1)
            num_described = cost.num_parameters(shape) + cost.num_positions(shape)
            num_described += stored_parameters(shape.tokenizer)
        elif kind == "encoder":
            shape = ViTShape.from_dict(description["shape"])
            num_described = cost.encoder_parameters(shape)
        else:
            labelled: type[ClassifierShape | SegmenterShape | DetectorShape]
            labelled = {"segmenter": SegmenterShape, "detector": DetectorShape}.get(kind, ClassifierShape)
            shape = labelled.from_dict(description["shape"])
            name = "columns" if kind == "regressor" else "classes"
            names = description[name]
            if not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
                raise ValueError(f"{name} are no names")
            if len(names) != shape.num_classes:
                raise ValueError(f"{len(names)} names for {shape.num_classes} {name}")
            if kind == "regressor":
                TargetScale.from_description(description)
            if isinstance(shape, SegmenterShape):
                check_label_numbers(description)
                num_described = segmenter_parameters(shape)
            elif isinstance(shape, DetectorShape):
                check_category_ids(description)
                num_described = detector_parameters(shape)
            else:
                num_described = cost.classifier_parameters(shape)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise RequestError(f"{path} has a description that does not make a model: {error!r}") from None
    num_held = sum(tensor.numel() for tensor in weights.values())
    if num_described > 2 * num_held + 1_000_000:  # or a hostile description would have a model of any size built
        raise RequestError(
            f"{path} describes a model of {num_described:,} values and holds {num_held:,}: it is damaged"
        )
    check_weights(weights, expected_weights(shape), str(path))
    return StoredModel(path, weights, shape, preprocessing, description)
