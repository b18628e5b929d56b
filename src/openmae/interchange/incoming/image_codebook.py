"""The encoder of DALL-E's discrete VAE in transformers' files: `FlavaImageCodebook`, alone or in a whole model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from openmae.config import TokenizerShape
from openmae.errors import RequestError, shown
from openmae.interchange.incoming.files import RawCheckpoint
from openmae.interchange.incoming.named import TOKENIZER_ADVICE
from openmae.interchange.names import FLAVA, IMAGE_CODEBOOK
from openmae.interchange.stored import check_weights
from openmae.model.dalle_encoder import NUM_GROUPS, STRIDE, DalleEncoder

IN_WHOLE = "image_codebook."  # before its names in a whole model
# By the key of the config: a config.json may leave out what is as transformers has it by default.
DEFAULTS = {
    "num_groups": NUM_GROUPS,
    "num_blocks_per_group": 2,
    "input_channels": 3,
    "hidden_size": 256,
    "vocab_size": 8192,
}


def read_image_codebook(raw: RawCheckpoint) -> tuple[TokenizerShape, dict[str, Tensor]]:
    """The shape and the weights, by the names of `DalleEncoder`.

    Raises:
        RequestError: the checkpoint holds none, its config describes none that openmae computes, or a weight is
            missing, unknown or of another shape.
    """
    path = shown(raw.path)
    kind = raw.config.get("model_type")
    config: Any = raw.config
    weights: Mapping[str, Tensor] = raw.groups.get("", {})
    if kind == FLAVA:
        config = raw.config.get("image_codebook_config") or {}
        weights = {name.removeprefix(IN_WHOLE): w for name, w in weights.items() if name.startswith(IN_WHOLE)}
        if not weights:
            raise RequestError(f"--tokenizer {path} is a flava model without its image codebook: {TOKENIZER_ADVICE}")
    elif kind != IMAGE_CODEBOOK:
        what = "has no config.json that says what it is" if kind is None else f"is a model of type {_short(kind)}"
        raise RequestError(f"--tokenizer {path} {what}, and no tokenizer that is known here: {TOKENIZER_ADVICE}")
    if not isinstance(config, dict):
        raise RequestError(f"{path}: the image_codebook_config of its config.json is no JSON object: fetch it again")
    settings = {name: config.get(name, usual) for name, usual in DEFAULTS.items()}
    if settings["num_groups"] != NUM_GROUPS:
        raise RequestError(
            f"{path} says num_groups {_short(settings['num_groups'])}: DALL-E's encoder has {NUM_GROUPS}, "
            "and its gains depend on it"
        )
    try:
        shape = TokenizerShape(
            kind="dalle",
            patch_size=None,
            stride=STRIDE,
            channels=settings["input_channels"],
            codebook=settings["vocab_size"],
            width=settings["hidden_size"],
            depth=settings["num_blocks_per_group"],
        )
    except ValueError as error:
        reason = shown(str(error)[:200])
        raise RequestError(f"{path} has a config.json that does not make a tokenizer: {reason}") from None
    with torch.device("meta"):
        expected = DalleEncoder(shape).state_dict()
    check_weights(weights, {their_name(name): value for name, value in expected.items()}, path)
    return shape, {name: weights[their_name(name)] for name in expected}


def their_name(ours: str) -> str:
    """The name in `FlavaImageCodebook` of a weight of `DalleEncoder`."""
    if not ours.startswith("groups."):
        layer, kind = ours.split(".")
        return f"blocks.{'output.conv' if layer == 'output' else layer}.{kind}"
    _, group, block, layer, kind = ours.split(".")
    theirs = "id_path" if layer == "identity" else f"res_path.path.{layer.replace('convolution', 'conv')}"
    return f"blocks.group_{int(group) + 1}.group.block_{int(block) + 1}.{theirs}.{kind}"


def _short(value: object) -> str:
    return shown(repr(value)[:50])
