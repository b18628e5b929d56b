"""A pre-norm Transformer block, the encoder's and the decoder's alike (paper, section 3)."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from openmae.config import Grid
from openmae.model.relative_positions import DecomposedRelativePositions, RelativePositionBias

LAYER_NORM_EPS = 1e-6
LAYER_SCALE = 0.1  # initial value (BEiT-B)
MLP_RATIO = 4


class Attention(nn.Module):
    """Multi-head self-attention with a fused qkv matrix and a bias on each of its three parts.

    Args:
        relative: computes a bias that is added to the scores (see `relative_positions`); MAE has none.
    """

    def __init__(
        self, width: int, num_heads: int, relative: RelativePositionBias | DecomposedRelativePositions | None = None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative = relative

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        num_queries: int | None = None,
        grid: Grid | None = None,
        bias: Float[Tensor, "1 h n n"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Attend from the last `num_queries` tokens (None: from all) to all tokens.

        Args:
            grid: rows and columns of the patches among the tokens; for relative positions.
            bias: added to the scores: relative positions that several blocks share.
        """
        return self.attend(*self.project(x, num_queries), grid, bias)

    def project(
        self, x: Float[Tensor, "b n d"], num_queries: int | None = None
    ) -> tuple[Float[Tensor, "b h q e"], Float[Tensor, "b h n e"], Float[Tensor, "b h n e"]]:
        """Queries of the last `num_queries` tokens (None: of all), keys and values of all, by head."""
        batch, count, width = x.shape
        if num_queries is None or num_queries == count:
            qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, -1)
            q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # split first: gradients are stacked in place
        else:
            q = F.linear(x[:, -num_queries:], self.qkv.weight[:width], self.qkv.bias[:width])
            q = q.reshape(batch, num_queries, self.num_heads, -1).transpose(1, 2)
            kv = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:])
            k, v = (part.transpose(1, 2) for part in kv.reshape(batch, count, 2, self.num_heads, -1).unbind(2))
        return q, k, v

    def attend(
        self,
        q: Float[Tensor, "b h q e"],
        k: Float[Tensor, "b h n e"],
        v: Float[Tensor, "b h n e"],
        grid: Grid | None = None,
        bias: Float[Tensor, "1 h n n"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Attend with given queries, keys and values, and project the result."""
        scores = None if bias is None else bias.to(q.dtype)
        if self.relative is not None:
            assert grid is not None and q.shape == k.shape, "relative positions are of whole images"
            scores = self.relative(q, grid).to(q.dtype)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=scores)  # (B, heads, N, d)
        return self.proj(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """The two linear layers of a block with GELU between them; the hidden layer is 4 times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.project_back(self.fc1(x))

    def project_back(self, hidden: Float[Tensor, "b n m"]) -> Float[Tensor, "b n d"]:
        """GELU, then the second linear layer."""
        return self.fc2(F.gelu(hidden))


class LayerScale(nn.Module):
    """A learned factor on each channel of a branch (BEiT)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))
        self.init_weights()

    def init_weights(self) -> None:
        nn.init.constant_(self.gamma, LAYER_SCALE)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm Transformer block, the encoder's and the decoder's alike.

    Args:
        relative, layer_scale, window_size, norm_eps: for encoders that others trained (see `ViTShape`).

    Attributes:
        recomputes: activation checkpointing: outputs of norms and GELU are computed again in the backward pass (except
            norm1 before windows). Of 16 values kept for each token and channel 10 remain; results are bit-equal.
    """

    recomputes = False

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        relative: RelativePositionBias | DecomposedRelativePositions | None = None,
        layer_scale: bool = False,
        window_size: int = 0,
        norm_eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, num_heads, relative)
        self.ls1 = LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = MLP(width)
        self.ls2 = LayerScale(width) if layer_scale else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        num_queries: int | None = None,
        branch_scales: Float[Tensor, "2 b"] | None = None,
        grid: Grid | None = None,
        bias: Float[Tensor, "1 h m m"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Apply the block.

        Args:
            num_queries: compute only this many output tokens, the last ones; they are exact.
            branch_scales: drop path: factors of each sample's attention and MLP branch.
            grid: rows and columns of the patches, for relative positions and windows.
            bias: relative positions that several blocks share; with windows, of one window.
        """
        shortcut = x if num_queries is None else x[:, -num_queries:]
        attended = self.ls1(self._attention(x, num_queries, grid, bias))
        if branch_scales is None:
            x = shortcut + attended
            return x + self.ls2(self._mlp(x))
        scales = branch_scales.to(x.dtype)[:, :, None, None]
        x = shortcut + scales[0] * attended
        return x + scales[1] * self.ls2(self._mlp(x))

    def _attention(
        self,
        x: Float[Tensor, "b n d"],
        num_queries: int | None,
        grid: Grid | None,
        bias: Float[Tensor, "1 h m m"] | None,
    ) -> Float[Tensor, "b q d"]:
        if self.window_size:
            assert grid is not None and num_queries is None, "windows are of whole images"
            return windowed_attention(self.attn, self.norm1(x), grid, self.window_size, bias)
        if self.recomputes:
            q, k, v = recomputed(lambda x: self.attn.project(self.norm1(x), num_queries), x)
            return self.attn.attend(q, k, v, grid, bias)
        return self.attn(self.norm1(x), num_queries, grid, bias)

    def _mlp(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        if self.recomputes:
            return recomputed(self.mlp.project_back, recomputed(lambda x: self.mlp.fc1(self.norm2(x)), x))
        return self.mlp(self.norm2(x))


def recomputed(function: Callable[[Tensor], Any], x: Float[Tensor, "b n d"]) -> Any:
    """`function(x)`, where `function` is a cheap operation and then a matrix product; only x is kept for backward.

    Only the cheap part runs again: the backward pass needs the product's input, and checkpointing stops once that is
    computed. Compiled code cannot stop early, so a selective policy keeps the products' results there.
    """
    if torch.compiler.is_compiling():
        return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False, context_fn=_keeping_products)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)


def _keeping_products() -> tuple[AbstractContextManager, AbstractContextManager]:
    return create_selective_checkpoint_contexts([torch.ops.aten.mm.default, torch.ops.aten.addmm.default])


def to_autocast_dtype(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x in the autocast dtype (bf16) where autocast is enabled; else, and on the meta device, unchanged."""
    if x.is_meta:
        return x
    device_type = x.device.type
    return x.to(torch.get_autocast_dtype(device_type)) if torch.is_autocast_enabled(device_type) else x


def windowed_attention(
    attn: Attention,
    x: Float[Tensor, "b n d"],
    grid: Grid,
    size: int,
    bias: Float[Tensor, "1 h m m"] | None = None,
) -> Float[Tensor, "b n d"]:
    """Attend within windows of `size` × `size` patches (ViTDet).

    A grid that `size` does not divide is padded with zeros at the bottom and on the right, after the norm. The padding
    takes part: its keys and values are the projection's biases. ViTDet's weights were trained so; of table 4's 64 × 64
    patches and windows of 14 the paper does not say it.
    """
    rows, columns = grid
    down, right = -rows % size, -columns % size
    x = F.pad(x.unflatten(1, grid), (0, 0, 0, right, 0, down))
    count = ((rows + down) // size, (columns + right) // size)
    x = x.unflatten(2, (count[1], size)).unflatten(1, (count[0], size)).transpose(2, 3)  # (B, r, c, size, size, D)
    x = attn(x.flatten(3, 4).flatten(0, 2), grid=(size, size), bias=bias)
    x = x.unflatten(1, (size, size)).unflatten(0, (-1, *count)).transpose(2, 3)
    x = x.flatten(3, 4).flatten(1, 2)  # (B, padded rows, padded columns, D)
    return x[:, :rows, :columns].flatten(1, 2)


def init_linear_and_norm(module: nn.Module) -> None:
    """Xavier uniform for a Linear's matrix, zero for its bias, 1 and 0 for a LayerNorm (docs/paper.md, as released)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def is_without_numbers(module: nn.Module) -> bool:
    """Whether it was made on the meta device, for its shapes: torch would load its compiler to set no numbers."""
    return next(module.parameters()).is_meta
