"""What a checkpoint of another library has besides the encoder: a classifier's head, or a decoder of pixels."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from openmae.config import ClassifierShape, DecoderShape, MAEShape, ViTShape
from openmae.errors import RequestError, shown
from openmae.interchange.incoming.conversion import ConversionState
from openmae.interchange.stored import expected_weights
from openmae.model.heads import PROBE_EPS

DECODER_HEAD_WIDTH = 32


def read_head(state: ConversionState, encoder: ViTShape, head: Mapping[str, Tensor]) -> ClassifierShape | None:
    """The shape of encoder and head as a classifier; None without a head, or with one that openmae does not have.

    Raises:
        RequestError: the tokens would be normed twice.
    """
    if "head.weight" not in head or "head.bias" not in head or head["head.weight"].ndim != 2:
        return None
    num_classes = len(head["head.weight"])
    is_normed = "fc_norm.weight" in head
    if is_normed and "norm.weight" in state.weights:
        raise RequestError(f"{state.source} has both norm and fc_norm: openmae's classifiers norm once")
    pooling = _pooling(state, encoder, is_normed)
    if pooling == "avg" and is_normed:
        return ClassifierShape(encoder=encoder, num_classes=num_classes, pool="mean")
    if pooling == "avg":  # the mean of normed tokens, as a probe's; its BatchNorm is made to change nothing
        return ClassifierShape(encoder=encoder, num_classes=num_classes, pool="mean", head="probe")
    if pooling == "token" and not is_normed and encoder.class_token:
        return ClassifierShape(encoder=encoder, num_classes=num_classes, pool="cls")
    what = (
        f"{pooling}{' and a norm' if is_normed else ''}" if encoder.class_token else f"{pooling}, without a class token"
    )
    state.remarks.append(f"its head is left: it pools by {shown(what[:50])}, which openmae's classifiers do not")
    return None


def _pooling(state: ConversionState, encoder: ViTShape, is_normed: bool) -> str:
    """How the head pools the tokens, by timm's name."""
    if any("attn_pool." in name for name in state.recognised.unused):
        return "attention"
    pooling = state.config.get("global_pool", state.timm_arguments.get("global_pool"))
    if pooling == "avg" and encoder.class_token and state.timm_arguments.get("pool_include_prefix"):
        return "the mean with the class token"
    if pooling is not None:
        return str(pooling)
    if not is_normed and state.recognised.program != "transformers":
        state.remarks.append("its head is taken to read the class token: the file does not say")
    return "avg" if is_normed else "token"


def batch_norm(state: ConversionState, shape: ClassifierShape) -> dict[str, Tensor]:
    """For a probe: the statistics of a BatchNorm that changes nothing; empty for other heads."""
    if shape.head != "probe":
        return {}
    width = shape.encoder.width
    state.remarks.append("its head takes the mean of normed tokens: read as a probe whose BatchNorm changes nothing")
    return {
        "fc_norm.running_mean": torch.zeros(width),
        "fc_norm.running_var": torch.full((width,), 1 - PROBE_EPS),
        "fc_norm.num_batches_tracked": torch.tensor(0),
    }


def class_names(state: ConversionState, count: int) -> list[str]:
    """The classes as timm or transformers name them, else their numbers."""
    names: Any = state.config.get("label_names")
    labels = state.config.get("id2label")
    if isinstance(labels, Mapping):
        names = [labels.get(str(i), labels.get(i)) for i in range(count)]
    if isinstance(names, list) and len(names) == count and all(isinstance(n, str) for n in names):
        return [shown(name) for name in names]  # which can contain terminal escape sequences
    state.remarks.append("its classes have no names: numbers are theirs")
    return [str(i) for i in range(count)]


def read_decoder(state: ConversionState, encoder: ViTShape, decoder: Mapping[str, Tensor]) -> MAEShape | None:
    """The shape of encoder and decoder as a masked autoencoder; None without a complete decoder of pixels.

    Raises:
        RequestError: nothing says how many heads it has.
    """
    if not decoder:
        return None
    embed, predict = decoder.get("decoder.embed.weight"), decoder.get("decoder.predict.weight")
    numbers = {int(match[1]) for name in decoder if (match := re.match(r"decoder\.blocks\.(\d{1,6})\.", name))}
    if embed is None or predict is None or embed.ndim != 2 or not numbers:
        state.remarks.append("its decoder is incomplete: left out")
        return None
    if len(predict) != encoder.patch_dim:
        state.remarks.append(f"its decoder predicts {len(predict)} values a patch, not pixels: left out")
        return None
    width = len(embed)
    num_heads = state.number("decoder_num_attention_heads", "decoder_num_heads")
    if num_heads is not None:
        heads, why = num_heads, "as it says"
    elif state.hints.decoder_num_heads is not None:
        heads, why = state.hints.decoder_num_heads, "as requested"
    elif width % DECODER_HEAD_WIDTH == 0:
        heads, why = width // DECODER_HEAD_WIDTH, f"width / {DECODER_HEAD_WIDTH}, as the paper's"
    else:
        raise RequestError(f"{state.source} does not say its decoder's heads: give --decoder-num-heads")
    shape = MAEShape(
        encoder=encoder,
        decoder=DecoderShape(width=width, depth=max(numbers) + 1, num_heads=heads),
        target=_target(state),
    )
    expected = {name for name in expected_weights(shape) if name.startswith("decoder.")}
    if missing := sorted(expected - decoder.keys()):
        state.remarks.append(f"its decoder lacks {missing[0]}: left out")
        return None
    state.remarks.append(f"decoder {width} x {shape.decoder.depth}, {heads} heads ({why}), predicts {shape.target}")
    return shape


def _target(state: ConversionState) -> str:
    norm_pix_loss = state.setting("norm_pix_loss")
    if state.hints.target is not None:
        return state.hints.target
    if isinstance(norm_pix_loss, bool):
        return "norm-pixel" if norm_pix_loss else "pixel"
    state.remarks.append("it does not say whether pixels are normalised: taken so, which --target pixel can change")
    return "norm-pixel"
