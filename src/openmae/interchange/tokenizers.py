"""From `--tokenizer` to a tokenizer: find the file it names, read it, and check it against its own description."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openmae.config import Preprocessing, TokenizerShape
from openmae.errors import RequestError, shown
from openmae.interchange.incoming.files import locate_checkpoint, read_raw_checkpoint
from openmae.interchange.incoming.image_codebook import read_image_codebook
from openmae.interchange.incoming.named import TOKENIZER_ADVICE, check_tokenizer
from openmae.interchange.init import find_model, is_ours
from openmae.interchange.stored import KIND_NAMES, check_weights
from openmae.model.dalle_encoder import DalleEncoder
from openmae.model.tokenizer import DiscreteVAE
from openmae.training.checkpoint import read_model


@dataclass(frozen=True)
class StoredTokenizer:
    """Weights, the shape of their tokenizer, and the preprocessing of its images.

    Attributes:
        name: as the user gave it: a path or `hf:ORG/NAME`.
        weights: by the parameter names of `DiscreteVAE` or `DalleEncoder`, float32.
        preprocessing: of the images that it was trained on; None: dalle, which scales pixels of 0 to 1 itself.
        sha256: of the weights' names, types, shapes and bytes, in hexadecimal: the same whatever file they came from.
    """

    name: str
    shape: TokenizerShape
    weights: dict[str, Tensor]
    preprocessing: Preprocessing | None
    sha256: str


def read_tokenizer(spec: str) -> StoredTokenizer:
    """The tokenizer that a `--tokenizer` names, ours or DALL-E's.

    That is a run of `openmae tokenizer`, a checkpoint of one or its file; or the encoder of DALL-E's discrete VAE as
    transformers has it: `hf:facebook/flava-image-codebook`, a folder of that kind, or of a whole FLAVA model.

    Raises:
        RequestError: it does not exist, cannot be read, is no tokenizer, or has weights that are missing, unknown, of
            another shape or not finite.
    """
    check_tokenizer(spec)
    path = locate_checkpoint(spec)
    if not is_ours(path):
        shape, weights = read_image_codebook(read_raw_checkpoint(path))
        return _checked(spec, shape, weights, None)
    model_path = find_model(path, "--tokenizer")
    weights, description = read_model(model_path)
    shape, preprocessing = _read_description(model_path, description)
    check_weights(weights, expected_weights(shape), shown(model_path))
    return _checked(spec, shape, weights, preprocessing)


def build_tokenizer(shape: TokenizerShape) -> DiscreteVAE | DalleEncoder:
    """A tokenizer with fresh weights, into which those of a `StoredTokenizer` of this shape fit."""
    return DalleEncoder(shape) if shape.kind == "dalle" else DiscreteVAE(shape)


def expected_weights(shape: TokenizerShape) -> dict[str, Tensor]:
    """The weights that a `StoredTokenizer` of this shape must have, without memory (on torch's meta device)."""
    with torch.device("meta"):
        return dict(build_tokenizer(shape).state_dict())


def _read_description(path: Path, description: Mapping[str, Any]) -> tuple[TokenizerShape, Preprocessing]:
    """Raise RequestError where a file of ours is no tokenizer, or describes none."""
    kind = description.get("kind", "mae")
    if kind != "tokenizer":
        what = KIND_NAMES.get(kind, f"a {kind!r}") if isinstance(kind, str) else "something else"
        raise RequestError(f"--tokenizer {shown(path)} is {what} and no tokenizer: {TOKENIZER_ADVICE}")
    try:
        shape = TokenizerShape.from_dict(description["shape"])
        preprocessing = Preprocessing.from_dict(description["preprocessing"])
        if shape.kind != "vae" or shape.patch_size is None:
            raise ValueError(f"{shape.kind} with a patch size of {shape.patch_size}")
        if preprocessing.channels != shape.channels:
            raise ValueError(f"{shape.channels} channels, but {preprocessing.channels} in its preprocessing")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise RequestError(f"{shown(path)} has a description that does not make a tokenizer: {error!r}") from None
    return shape, preprocessing


def _checked(
    spec: str, shape: TokenizerShape, weights: dict[str, Tensor], preprocessing: Preprocessing | None
) -> StoredTokenizer:
    """Raise RequestError where a weight is no finite number: an argmax would not show it."""
    for name, value in weights.items():
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise RequestError(f"{shown(spec)}: {name} has values that are no finite numbers: it is damaged")
    weights = {name: value.to(torch.float32).contiguous() for name, value in weights.items()}
    return StoredTokenizer(spec, shape, weights, preprocessing, _hash(weights))


def _hash(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
