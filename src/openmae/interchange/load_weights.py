"""Loading trained weights into a model: all of them, the encoder's alone, or for continued pre-training."""

import torch
from torch import Tensor, nn

from openmae.config import MAEShape
from openmae.errors import RequestError
from openmae.interchange.resize import fit_encoder
from openmae.interchange.stored import ENCODER, StoredModel, check_weights
from openmae.model.mae import MAE
from openmae.model.positions import sincos_positions
from openmae.model.token_target import TokenTarget
from openmae.model.vit import ViT


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load weights into a model of the same shape.

    Raises:
        RequestError: a weight is missing, unknown or of another shape; the message names the first.
    """
    check_weights(weights, model.state_dict(), where)
    model.load_state_dict(weights)


def load_encoder(encoder: ViT, init: StoredModel) -> list[str]:
    """Load a trained encoder; what depends on the image or patch size is resampled.

    Returns:
        A line about each weight that was resampled, one about a class token that was left out, and one about relative
        positions that the trained encoder did not have: they stay zero, which changes nothing (paper, A.4).

    Raises:
        RequestError: an encoder weight is missing or of another shape.
    """
    weights, changed = fit_encoder(init.encoder_weights, init.encoder_shape, encoder.shape, str(init.path))
    fresh: set[str] = set()
    if encoder.shape.relative_positions != "none" and init.encoder_shape.relative_positions == "none":
        fresh = {name for name in encoder.state_dict() if "relative" in name}
    needed = {name: value for name, value in encoder.state_dict().items() if name not in fresh}
    for name, value in needed.items():
        if name not in weights:
            raise RequestError(f"{init.path} lacks the encoder's {name} {tuple(value.shape)}: it is of another kind")
        if weights[name].shape != value.shape:
            raise RequestError(
                f"{init.path}: the encoder's {name} is {tuple(weights[name].shape)} there and "
                f"{tuple(value.shape)} here; leave the model's flags out to take its shape"
            )
    encoder.load_state_dict({name: weights[name] for name in needed}, strict=not fresh)
    lines = [f"           resized encoder.{name}: {old} -> {new}" for name, (old, new) in changed.items()]
    if init.encoder_shape.class_token and not encoder.shape.class_token:
        lines.append("           class token: left out, for windows and decomposed positions have no place for it")
    if fresh:
        lines.append(f"           relative positions, {len(fresh)} tables: fresh, zero at first")
    return lines


def load_for_pretraining(model: MAE, init: StoredModel, *, same_tokens: bool = True) -> list[str]:
    """Load another model's encoder, and its decoder where it has one of the same shape.

    Sin-cos positions are computed for the new size; learned ones are resampled. The tokenizer of a model that predicts
    tokens is left to `TokenTarget.set_tokenizer`.

    Args:
        same_tokens: whether the tokens of both models mean the same; otherwise the layer that predicts them is fresh.

    Returns:
        Lines to print.

    Raises:
        RequestError: the encoder does not fit.
    """
    shape, old = model.encoder.shape, init.encoder_shape
    own_positions = {name: value.clone() for name, value in model.state_dict().items() if name.endswith("pos_embed")}
    lines = load_encoder(model.encoder, init)
    table = init.encoder_weights["pos_embed"]
    if old.grid != shape.grid and torch.equal(table, sincos_positions(old.grid, old.width)):
        model.encoder.load_state_dict({"pos_embed": own_positions["encoder.pos_embed"]}, strict=False)
        lines.append("           positions are the sin-cos table of the new size")
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(ENCODER)}
    theirs = {name: value for name, value in init.weights.items() if not name.startswith(ENCODER)}
    if not isinstance(init.shape, MAEShape):
        return [*lines, f"           decoder: fresh, for {init.path} is {init.kind_name}"]
    if old.grid != shape.grid:
        theirs = {**theirs, "decoder.pos_embed": own_positions["decoder.pos_embed"]}
    mismatched = sorted(
        n for n in own.keys() | theirs.keys() if n not in own or n not in theirs or own[n].shape != theirs[n].shape
    )
    if isinstance(model.target, TokenTarget) and init.shape.tokenizer is not None:
        left_to_others = ("target.",) if same_tokens else ("target.", "decoder.predict.")
        theirs = {name: value for name, value in theirs.items() if not name.startswith(left_to_others)}
        mismatched = [name for name in mismatched if not name.startswith(left_to_others)]
        if not (mismatched or same_tokens):
            lines.append("           decoder.predict: fresh, for --init predicts the tokens of another tokenizer")
    if mismatched:
        return [*lines, f"           decoder: fresh, for {mismatched[0]} is missing or of another shape there"]
    model.load_state_dict(theirs, strict=False)
    return lines
