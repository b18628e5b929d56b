"""From `--init` to weights: which file it names, what the file says of itself, and whether it fits."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from openmae.config import (
    MASKS,
    ClassifierShape,
    Grid,
    MAEShape,
    Preprocessing,
    check_name,
    check_range,
)
from openmae.errors import RequestError
from openmae.interchange.described import Described
from openmae.model import cost
from openmae.model.heads import Classifier
from openmae.model.mae import MAE
from openmae.training.checkpoint import MODEL, newest_checkpoint, read_model


def find_model(init: str) -> Path:
    """The model.safetensors that an `--init` names: of a run folder, of a checkpoint, or the file itself.

    Raises:
        RequestError: there is none.
    """
    path = Path(init)
    if path.is_file():
        return path
    if (path / MODEL).is_file():
        return path / MODEL
    if path.is_dir():
        checkpoint, damaged = newest_checkpoint(path)
        if checkpoint is not None:
            return checkpoint.folder / MODEL
        told = "; ".join(damaged) or "it has neither model.safetensors nor checkpoints/"
        raise RequestError(f"--init {init} holds no model: {told}")
    raise RequestError(f"--init {init} does not exist: give a run folder, a checkpoint or a model.safetensors")


def read_described(path: Path) -> Described:
    """Read a masked autoencoder or a classifier.

    Raises:
        RequestError: it cannot be read or describes neither.
    """
    weights, description = read_model(path)
    kind = description.get("kind", "mae")
    if kind not in ("mae", "classifier"):
        raise RequestError(
            f"{path} says it is a {kind!r}: a pre-trained (mae) or fine-tuned (classifier) model is needed"
        )
    shape: MAEShape | ClassifierShape
    try:
        preprocessing = Preprocessing.from_dict(description["preprocessing"])
        if kind == "mae":
            shape = MAEShape.from_dict(description["shape"])
            masking = description.get("masking") or {}
            check_name("masking", masking.get("kind"), MASKS)
            check_range("masking ratio", masking.get("ratio"), 0, 1)
            described = cost.num_parameters(shape) + cost.num_positions(shape)
        else:
            shape = ClassifierShape.from_dict(description["shape"])
            classes = description["classes"]
            if not (isinstance(classes, list) and all(isinstance(c, str) for c in classes)):
                raise ValueError("classes are no names")
            if len(classes) != shape.num_classes:
                raise ValueError(f"{len(classes)} class names for {shape.num_classes} classes")
            described = cost.classifier_parameters(shape)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise RequestError(f"{path} has a description that does not make a model: {error!r}") from None
    held = sum(tensor.numel() for tensor in weights.values())
    if described > 2 * held + 1_000_000:  # a hostile description must not allocate a model of any size
        raise RequestError(f"{path} describes a model of {described:,} values and holds {held:,}: it is damaged")
    return Described(path, weights, shape, preprocessing, description)


def read_description(path: Path) -> tuple[dict[str, Tensor], MAEShape, Preprocessing, dict[str, Any]]:
    """Weights, shape, preprocessing and the whole description of a masked autoencoder.

    Raises:
        RequestError: it cannot be read or is something else.
    """
    found = read_described(path)
    if not isinstance(found.shape, MAEShape):
        raise RequestError(
            f"{path} is a classifier, whose decoder is gone: pre-training and reconstruction need a pre-trained model"
        )
    return found.weights, found.shape, found.preprocessing, found.description


def load_weights_of(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Put weights into a model that has exactly these. Raises RequestError where it has not."""
    own = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights or name not in own or weights[name].shape != own[name].shape:
            raise RequestError(f"{where} does not fit: {name} is missing or of another shape")
    model.load_state_dict(weights)


def load_weights(model: MAE | Classifier, weights: dict[str, Tensor], where: str, grid: Grid | None = None) -> None:
    """Put weights into a model of the same shape.

    Args:
        grid: of the image size that the weights were trained at; where it is not the model's own, the model
            keeps its fixed sin-cos positions.

    Raises:
        RequestError: a weight is missing, unknown or of another shape; the message names the first.
    """
    own = model.state_dict()
    is_same_grid = grid is None or grid == model.encoder.shape.grid
    positions = {name for name in own if name.endswith("pos_embed")}
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights:
            raise RequestError(f"{where} lacks {name} {tuple(own[name].shape)}: it is a checkpoint of another model")
        if name not in own:
            raise RequestError(f"{where} has {name}, which this model does not: it is a checkpoint of another model")
        if weights[name].shape != own[name].shape and (is_same_grid or name not in positions):
            raise RequestError(
                f"{where} is a checkpoint of another shape: {name} is {tuple(weights[name].shape)} there and "
                f"{tuple(own[name].shape)} here; leave the model's flags out to take its shape"
            )
    fitting = {name: value for name, value in weights.items() if is_same_grid or name not in positions}
    model.load_state_dict(fitting, strict=is_same_grid)
