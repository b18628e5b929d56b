"""The tokenizer of `pretrain --target token`: read, checked against the run's, and given to the model."""

import json
from pathlib import Path

import torch
from torch import Tensor

from openmae.config import Preprocessing, PretrainConfig, ResolvedPretrainConfig
from openmae.errors import RequestError, shown
from openmae.interchange.init import read_stored_model
from openmae.interchange.load_weights import load_weights
from openmae.interchange.stored import StoredModel
from openmae.interchange.token_models import own_tokenizer, recorded_hash, tokenizer_shape
from openmae.interchange.tokenizers import StoredTokenizer, build_tokenizer, read_tokenizer
from openmae.model.dalle_encoder import INPUT_SCALE, INPUT_SHIFT
from openmae.model.mae import MAE
from openmae.model.token_target import TokenTarget
from openmae.recipes import named_tokenizer
from openmae.run.open_run import Run
from openmae.training.checkpoint import MODEL


def open_tokenizer(
    run: Run[ResolvedPretrainConfig], config: PretrainConfig, init: StoredModel | None
) -> StoredTokenizer | None:
    """The tokenizer that `--tokenizer` or the recipe names; without either that of the run's or `--init`'s model.

    Args:
        config: as it was given now; a resumed run has saved settings besides.

    Raises:
        RequestError: it cannot be read, or is another than the one that a resumed run began with.
    """
    if run.previous is not None:
        return _of_previous(run, config.plain().tokenizer)
    named = named_tokenizer(run.requested)
    if named is None:
        return None if init is None else own_tokenizer(init)
    return read_tokenizer(named)


def _of_previous(run: Run[ResolvedPretrainConfig], given: str | None) -> StoredTokenizer | None:
    assert run.previous is not None
    folder = run.previous.checkpoint.folder.absolute()
    stored = read_stored_model(folder / MODEL)
    if tokenizer_shape(stored) is None:
        if given is not None:
            target = run.previous.config.target
            raise RequestError(f"--tokenizer is for --target token, and this run's target is {target}: leave it out")
        return None
    own = own_tokenizer(stored)
    if own is None:
        named = run.requested.tokenizer
        if named is None:
            raise RequestError(f"{shown(run.path)} predicts the tokens of DALL-E's encoder: give it as --tokenizer")
        return _checked(read_tokenizer(named), recorded_hash(stored), "restore it")
    # The run's own may be gone; `run.previous.config` has what was given now.
    saved = json.loads((folder.parent.parent / "config.json").read_bytes()).get("tokenizer")
    if given is not None and (given != saved or Path(given).exists()):
        _checked(read_tokenizer(given), own.sha256, "leave --tokenizer out, the checkpoint has its own")
    return own


def _checked(tokenizer: StoredTokenizer, sha256: str, advice: str) -> StoredTokenizer:
    if tokenizer.sha256 != sha256:
        raise RequestError(
            f"--tokenizer {shown(tokenizer.name)} is not the one that this run began with (its weights differ): "
            f"{advice}, or start a new run with another --out"
        )
    return tokenizer


def has_same_tokens(init: StoredModel, tokenizer: StoredTokenizer | None) -> bool:
    """Whether a model to start from was trained to predict the tokens of this tokenizer."""
    return tokenizer is not None and tokenizer_shape(init) is not None and recorded_hash(init) == tokenizer.sha256


def attach_tokenizer(model: MAE, tokenizer: StoredTokenizer | None, preprocessing: Preprocessing) -> None:
    """Give a model that predicts tokens its tokenizer; nothing for other targets.

    Args:
        preprocessing: of the model's images.
    """
    if not isinstance(model.target, TokenTarget):
        return
    assert tokenizer is not None, "planning refuses a token target without a tokenizer"
    module = build_tokenizer(tokenizer.shape)
    load_weights(module, tokenizer.weights, tokenizer.name)
    model.target.set_tokenizer(module, *input_map(preprocessing, tokenizer.preprocessing))


def input_map(model: Preprocessing, tokenizer: Preprocessing | None) -> tuple[Tensor, Tensor]:
    """The factor and the summand, for each channel, that turn a model's input into its tokenizer's.

    Equal raw values are equal to both. Images of another number type than the tokenizer's are taken to use the full
    range of theirs, as everywhere: what is black and white to the model is so to the tokenizer.

    Args:
        tokenizer: None for DALL-E's encoder.
    """
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (model.mean, model.std))
    if tokenizer is None:
        scale, shift = std * INPUT_SCALE, mean * INPUT_SCALE + INPUT_SHIFT
    else:
        factor, offset = 1.0, 0.0
        if model.dtype == tokenizer.dtype:
            (low, high), (own_low, own_high) = model.value_range, tokenizer.value_range
            factor, offset = (high - low) / (own_high - own_low), (low - own_low) / (own_high - own_low)
        own_mean, own_std = (torch.tensor(values, dtype=torch.float64) for values in (tokenizer.mean, tokenizer.std))
        scale, shift = std * factor / own_std, (mean * factor + offset - own_mean) / own_std
    return scale.float(), shift.float()
