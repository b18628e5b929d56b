"""The tokenizer of `--target token`: what it decides about the model, whether it fits, and what it costs."""

from openmae.config import MAEShape, TokenizerShape
from openmae.config.training.pretrain import check_token_target
from openmae.errors import RequestError, shown
from openmae.interchange.stored import StoredModel
from openmae.interchange.tokenizers import StoredTokenizer
from openmae.machine.files import format_bytes
from openmae.model.token_target import NO_DECODER, TOKENS_AT_ONCE
from openmae.model.tokenizer_cost import encoder_parameters, stored_parameters, tokens_bytes, tokens_flops
from openmae.planning.decisions import Decisions


def decide_tokenizer(
    decisions: Decisions, tokenizer: StoredTokenizer | None, init: StoredModel | None
) -> TokenizerShape | None:
    """Decide channels and patch size by the tokenizer where they are open, and return its shape.

    Args:
        tokenizer: that of `--tokenizer`, or the one that the model to start from carries.

    Returns:
        None where the target is no token.

    Raises:
        RequestError: one of target and tokenizer is missing, or the tokenizer does not fit a setting.
    """
    get = decisions.get
    if decisions.config.tokenizer is None and get("target") != "token" and decisions.config.target is not None:
        decisions.drop("tokenizer")  # the recipe's
    init_shape = init.shape if init is not None and isinstance(init.shape, MAEShape) else None
    own = init_shape.tokenizer if init_shape is not None else None
    check_token_target(get("target"), get("tokenizer"), decisions.config.init if own else None)
    if get("target") != "token":
        return None
    if tokenizer is None:
        raise RequestError(
            f"--init {shown(decisions.config.init)} predicts the tokens of DALL-E's encoder, which does not lie in it: "
            "give that as --tokenizer too"
        )
    why = "as --init" if get("tokenizer") is None else "as --tokenizer"
    if tokenizer.shape.patch_size is not None:
        decisions.decide("patch_size", tokenizer.shape.patch_size, why)
    decisions.decide("channels", tokenizer.shape.channels, why)
    check_fits(tokenizer, get("patch_size"), get("channels"))
    return tokenizer.shape


def check_fits(tokenizer: StoredTokenizer, patch_size: int | None, channels: int) -> None:
    """Raise RequestError where the tokenizer does not give one token for each patch, or takes other channels.

    Args:
        patch_size: None where it is still open, because the tokenizer takes any.
    """
    own, name = tokenizer.shape, shown(tokenizer.name)
    if own.patch_size is not None and own.patch_size != patch_size:
        raise RequestError(
            f"{name} gives one token for each {own.patch_size} px, the model has patches of {patch_size} px: give "
            f"--patch-size {own.patch_size} or train one with --patch-size {patch_size}"
        )
    if own.channels != channels:
        raise RequestError(
            f"{name} takes images of {own.channels} channel{'s' * (own.channels != 1)}, the model has {channels}: give "
            f"--channels {own.channels} or another tokenizer"
        )


def tokenizer_lines(shape: MAEShape, flops: int, micro_batch_size: int) -> list[str]:
    """What the tokenizer does and costs, as a line of the plan; none for other targets.

    Args:
        flops: of the model, to train on an image.
    """
    tokenizer, (rows, columns) = shape.tokenizer, shape.encoder.grid
    if tokenizer is None:
        return []
    own = tokens_flops(tokenizer, (rows, columns))
    lines = [
        f"tokenizer  frozen, {tokenizer.codebook:,} codes, {encoder_parameters(tokenizer) / 1e6:.1f} M parameters; it "
        f"sees {rows * tokenizer.stride}x{columns * tokenizer.stride} px, one token a patch; "
        f"{own / 1e9:.2f} GFLOP an image beside the model's {flops / 1e9:.2f} ({own / flops:.0%}), "
        f"{format_bytes(tokenizer_memory(shape, micro_batch_size))} of memory"
    ]
    return lines if tokenizer.is_ours else [*lines, f"pictures   none: {NO_DECODER}"]


def tokenizer_memory(shape: MAEShape, micro_batch_size: int) -> int:
    """Bytes for a tokenizer's weights, its decoder's too, and to give a micro-batch its tokens; 0 for other targets."""
    tokenizer = shape.tokenizer
    if tokenizer is None:
        return 0
    weights = stored_parameters(tokenizer) if tokenizer.is_ours else encoder_parameters(tokenizer)
    return 4 * weights + min(micro_batch_size, TOKENS_AT_ONCE) * tokens_bytes(tokenizer, shape.encoder.grid)
