"""What a model of `--target token` keeps of its tokenizer: its hash, and its weights where it is ours."""

from typing import Any

from openmae.config import MAEShape, Preprocessing, TokenizerShape
from openmae.errors import RequestError, shown
from openmae.interchange.stored import StoredModel
from openmae.interchange.tokenizers import StoredTokenizer

VAE = "target.vae."


def tokenizer_shape(model: StoredModel) -> TokenizerShape | None:
    """The shape of the tokenizer whose tokens a model predicts; None for any other model."""
    return model.shape.tokenizer if isinstance(model.shape, MAEShape) else None


def describe_tokenizer(tokenizer: StoredTokenizer | None) -> dict[str, Any]:
    """Entries of a checkpoint's metadata: no path, so that equal runs give equal bytes."""
    if tokenizer is None:
        return {}
    preprocessing = None if tokenizer.preprocessing is None else tokenizer.preprocessing.to_dict()
    return {"tokenizer": {"sha256": tokenizer.sha256, "preprocessing": preprocessing}}


def recorded_hash(model: StoredModel) -> str:
    """The hash of the tokenizer that a model was trained with. Raises RequestError where none is recorded."""
    record = model.description.get("tokenizer")
    if not isinstance(record, dict) or not isinstance(record.get("sha256"), str):
        raise RequestError(f"{shown(model.path)} does not say which tokenizer it was trained with: it is damaged")
    return record["sha256"]


def tokenizer_text(model: StoredModel) -> str | None:
    """What a model keeps of its tokenizer, in words; None for a model that predicts no tokens."""
    shape = tokenizer_shape(model)
    if shape is None:
        return None
    kept = "ours, weights and decoder are kept" if shape.is_ours else "DALL-E's encoder, which is not kept here"
    return f"{kept}; {shape.codebook:,} codes, sha256 {recorded_hash(model)}"


def own_tokenizer(model: StoredModel) -> StoredTokenizer | None:
    """The tokenizer of ours that a model carries; None where it carries none.

    Raises:
        RequestError: its description does not say how the tokenizer's images are prepared.
    """
    shape = tokenizer_shape(model)
    if shape is None or not shape.is_ours:
        return None
    sha256 = recorded_hash(model)
    try:
        preprocessing = Preprocessing.from_dict(model.description["tokenizer"]["preprocessing"])
        if preprocessing.channels != shape.channels:
            raise ValueError(f"{shape.channels} channels, but {preprocessing.channels} in its preprocessing")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RequestError(
            f"{shown(model.path)} does not say how its tokenizer's images are prepared: it is damaged ({error!r})"
        ) from None
    weights = {name.removeprefix(VAE): value for name, value in model.weights.items() if name.startswith(VAE)}
    return StoredTokenizer(str(model.path), shape, weights, preprocessing, sha256)
