"""To the layout of the reference's checkpoints: flat names in a .pth under `model` (docs/interchange.md).

A masked autoencoder is written whole; a classifier by timm's names, with `fc_norm` in place of `norm` where the norm
follows the mean.
"""

import io
import re
from pathlib import Path
from typing import Any

import torch

from openmae.config import ClassifierShape, MAEShape
from openmae.errors import RequestError
from openmae.interchange.outgoing.format import (
    Outgoing,
    check_mask_tokens,
    check_pixels,
    check_plain,
    eps_remarks,
    names_left_out,
)
from openmae.interchange.stored import ENCODER, StoredModel

# Ours → theirs, of the decoder; everything else keeps its name.
DECODER = (
    (r"decoder\.embed\.(weight|bias)", r"decoder_embed.\1"),
    (r"decoder\.mask_token", "mask_token"),
    (r"decoder\.pos_embed", "decoder_pos_embed"),
    (r"decoder\.(blocks\..*)", r"decoder_\1"),
    (r"decoder\.norm\.(weight|bias)", r"decoder_norm.\1"),
    (r"decoder\.predict\.(weight|bias)", r"decoder_pred.\1"),
)


# Further entries of the .pth, beside `model`: `--init` reads them again, and other programs ignore them.
EXTRAS = "extras"


def to_reference(model: StoredModel) -> Outgoing:
    """The model by the reference's names.

    Raises:
        RequestError: the layout cannot hold the model.
    """
    check_plain(model, "reference")
    check_mask_tokens(model, "reference")
    check_pixels(model, "reference")
    if isinstance(model.shape, ClassifierShape) and model.shape.head == "probe":
        raise RequestError("--to reference holds fine-tuned classifiers, this is a probe: --to timm holds it")
    if model.scale is not None:
        raise RequestError(
            "--to reference names no task, and its reader would take this regression model for a classifier: --to timm "
            "and onnx hold it, --part encoder its encoder"
        )
    names = {name: reference_name(name) for name in model.weights}
    weights = {theirs: model.weights[ours] for ours, theirs in names.items()}
    heads = model.encoder_shape.num_heads
    remark = (
        f"the layout names no image preparation or classes, and other programs are not told the head count ({heads})"
    )
    remarks = [f"{remark}: tell its reader"]
    remarks += eps_remarks(model, "the reference")
    if not model.encoder_shape.final_norm:
        remarks.append(
            "an encoder of segmentation or detection, or of a classifier that norms the mean, has no norm of its own"
        )
    extras: dict[str, Any] = {"num_heads": heads, "image_size": list(model.encoder_shape.image_size)}
    if isinstance(model.shape, MAEShape):
        extras["decoder_num_heads"] = model.shape.decoder.num_heads
        extras["norm_pix_loss"] = model.shape.target == "norm-pixel"
    return Outgoing(weights, names_left_out(model.weights, names), {EXTRAS: extras}, tuple(remarks))


def reference_name(ours: str) -> str:
    """The reference's name for a weight of ours."""
    for pattern, theirs in DECODER:
        if match := re.fullmatch(pattern, ours):
            return match.expand(theirs)
    return ours.removeprefix(ENCODER)


def write_reference(path: Path, outgoing: Outgoing) -> None:
    """Write the .pth, in memory first: on a full disk torch's own writer fails with "unexpected pos"."""
    buffer = io.BytesIO()
    weights = {name: value.detach().cpu().contiguous() for name, value in outgoing.weights.items()}
    torch.save({"model": weights, **outgoing.configs[EXTRAS]}, buffer)
    path.write_bytes(buffer.getbuffer())
