"""The target of table 1d's last row: the tokens that a frozen tokenizer gives the masked patches."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openmae.config import Grid, MAEShape, TokenizerShape, grid_of
from openmae.model.dalle_encoder import INPUT_SCALE, INPUT_SHIFT
from openmae.model.masking import Masking
from openmae.model.patches import patchify
from openmae.model.targets import Target
from openmae.model.tokenizer import DiscreteVAE

TOKENS_AT_ONCE = 32  # images at a time, for their feature maps are large; the tokens do not depend on it
NO_DECODER = "it predicts the tokens of DALL-E's encoder, and nothing here turns these back into pixels"


class TokenTarget(Target):
    """The tokens of the masked patches, with the cross-entropy; the decoder predicts their logits.

    Images arrive as the model takes them. `input_scale` and `input_shift`, one for each channel, turn them into what
    the tokenizer takes, and they are resized where its stride is not the patch size.

    The tokenizer is frozen and computes in float32, also under autocast: its largest logit decides, and rounding would
    change it. A discrete VAE of ours is `vae`, whose weights lie in every checkpoint, for pictures need its decoder.
    DALL-E's encoder has none and 54 M parameters: it is given by `set_tokenizer` and lies outside of this module's
    parameters, so that neither checkpoints nor several processes exchange it. What was neither set nor restored is NaN.
    """

    not_compiled = ("tokens",)  # convolutions in float32, which gain nothing: see `compile_model`

    def __init__(self, shape: MAEShape) -> None:
        super().__init__(shape)
        assert shape.tokenizer is not None
        self.shape = shape.tokenizer
        self.why_no_pictures = None if self.shape.is_ours else NO_DECODER
        # Parameters, not buffers, which several processes would send around before every step.
        unset = torch.full((self.shape.channels,), torch.nan)
        self.input_scale = nn.Parameter(unset.clone(), requires_grad=False)
        self.input_shift = nn.Parameter(unset, requires_grad=False)
        self.vae = _without_weights(self.shape, self.input_scale.device) if self.shape.is_ours else None
        self._outside: list[nn.Module] = []

    @torch.no_grad()
    def set_tokenizer(
        self, tokenizer: nn.Module, input_scale: Float[Tensor, " c"], input_shift: Float[Tensor, " c"]
    ) -> None:
        """Take a tokenizer of this target's shape: the weights of one of ours, or DALL-E's encoder itself.

        Args:
            input_scale, input_shift: the tokenizer's input is this times the model's, plus that.
        """
        self.input_scale.copy_(input_scale)
        self.input_shift.copy_(input_shift)
        if self.vae is not None:
            self.vae.load_state_dict(tokenizer.state_dict())
        else:
            self._outside = [tokenizer.requires_grad_(False).eval().to(self.input_scale.device)]

    @torch.no_grad()
    def tokens(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b n"]:
        """The token of each patch, in the order of the image."""
        tokenizer: Any = self.vae if self.vae is not None else next(iter(self._outside), None)
        assert tokenizer is not None, "a model of DALL-E's tokens was given no tokenizer"
        with torch.autocast(images.device.type, enabled=False), full_precision():
            return torch.cat([tokenizer.tokens(self.to_input(part)) for part in images.split(TOKENS_AT_ONCE)])

    def to_input(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c height width"]:
        """The tokenizer's input: grid × stride pixels."""
        rows, columns = grid_of(images.shape[-2], images.shape[-1], self.patch_size)
        dtype = self.input_scale.dtype
        pixels = self._clamped(images.to(dtype) * self.input_scale[:, None, None] + self.input_shift[:, None, None])
        size = (rows * self.shape.stride, columns * self.shape.stride)
        return pixels if pixels.shape[-2:] == size else self._clamped(_resized(pixels, size))

    def _clamped(self, pixels: Tensor) -> Tensor:
        """For DALL-E's encoder: pixels of 0 to 1, whose input begins at .1; bicubic resizing overshoots."""
        return pixels if self.shape.is_ours else pixels.clamp(INPUT_SHIFT, INPUT_SHIFT + INPUT_SCALE)

    def truth(self, images: Float[Tensor, "b c h w"], masking: Masking) -> Int[Tensor, "b masked"]:
        return self.tokens(images).gather(1, masking.masked_ids)

    def patch_losses(
        self, prediction: Float[Tensor, "b masked k"], truth: Int[Tensor, "b masked"]
    ) -> Float[Tensor, "b masked"]:
        return F.cross_entropy(prediction.flatten(0, 1), truth.flatten(), reduction="none").view(truth.shape)

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "b n"], grid: Grid) -> Float[Tensor, "b n values"]:
        """The patches that tokens stand for, as the model takes them; see `why_no_pictures`."""
        assert self.vae is not None, NO_DECODER
        with torch.autocast(tokens.device.type, enabled=False), full_precision():
            pixels = self.vae.decode(tokens, grid)
            images = (pixels - self.input_shift[:, None, None]) / self.input_scale[:, None, None]
            size = (grid[0] * self.patch_size, grid[1] * self.patch_size)
            return patchify(images if images.shape[-2:] == size else _resized(images, size), self.patch_size)

    def train(self, mode: bool = True) -> "TokenTarget":
        """Nothing here is trained."""
        return super().train(False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "TokenTarget":
        """Move DALL-E's encoder, too, where a model goes to another device."""
        super()._apply(fn, recurse)
        for tokenizer in self._outside:
            tokenizer._apply(fn, recurse)
        return self


def full_precision() -> contextlib.AbstractContextManager[None]:
    """A context in which convolutions on CUDA are not rounded to TF32, which torch does unless told otherwise.

    All else stays as it is; torch would reset what is not passed on.
    """
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    )


def _without_weights(shape: TokenizerShape, device: torch.device) -> DiscreteVAE:
    """A frozen tokenizer whose weights are NaN. Draws no random numbers: those of the model stay as they are.

    What it counts while it is trained is no buffer here, which several processes would send around before every step.
    """
    with torch.device("meta"):
        vae = DiscreteVAE(shape)
    vae.to_empty(device=device).requires_grad_(False).eval()
    for name, value in list(vae.named_buffers()):
        delattr(vae, name)
        vae.register_parameter(name, nn.Parameter(value, requires_grad=False))
    for parameter in vae.parameters() if device.type != "meta" else ():
        parameter.fill_(torch.nan)
    return vae


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size, mode="bicubic", antialias=True)
