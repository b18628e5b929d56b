"""The encoder: a plain Vision Transformer that is given only the visible patches (paper, section 3).

Parameter names and shapes are timm's (`blocks.0.attn.qkv.weight`, `patch_embed.proj.weight`, …), so the
encoder's weights are a ViT checkpoint as they stand.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openmae.config import Grid, ViTShape, grid_of
from openmae.model.patches import gather, patchify
from openmae.model.positions import resample_positions, sincos_positions
from openmae.model.relative_positions import BiasTable, DecomposedPositions

LAYER_NORM_EPS = 1e-6
LAYER_SCALE = 0.1  # at first (BEiT-B)
MLP_RATIO = 4


class Attention(nn.Module):
    """Multi-head self-attention with a fused qkv matrix and a bias on each of its three parts.

    Args:
        relative: what is added to the scores, from the queries and the grid (see `relative_positions`); MAE has none.
    """

    def __init__(self, width: int, num_heads: int, relative: BiasTable | DecomposedPositions | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative = relative

    def forward(
        self, x: Float[Tensor, "b n d"], num_queries: int | None = None, grid: Grid | None = None
    ) -> Float[Tensor, "b q d"]:
        """Attend from the last `num_queries` tokens (None: from all) to all tokens.

        Args:
            grid: rows and columns of the patches among the tokens; for relative positions.
        """
        batch, count, width = x.shape
        if num_queries is None or num_queries == count:
            qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, -1)
            q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # split first: gradients are stacked in place
        else:
            q = F.linear(x[:, -num_queries:], self.qkv.weight[:width], self.qkv.bias[:width])
            q = q.reshape(batch, num_queries, self.num_heads, -1).transpose(1, 2)
            kv = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:])
            k, v = (part.transpose(1, 2) for part in kv.reshape(batch, count, 2, self.num_heads, -1).unbind(2))
        scores = None
        if self.relative is not None:
            assert grid is not None and num_queries is None, "relative positions are of whole images"
            scores = self.relative(q, grid).to(q.dtype)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=scores)  # (B, heads, N, d)
        return self.proj(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.fc2(F.gelu(self.fc1(x)))


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
        relative, layer_scale, window_size, norm_eps: of encoders that others trained (see `ViTShape`).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        relative: BiasTable | DecomposedPositions | None = None,
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
    ) -> Float[Tensor, "b q d"]:
        """Apply the block.

        Args:
            num_queries: compute (exactly) only the last so many output tokens.
            branch_scales: drop path: what each sample's attention and MLP branch are multiplied by.
            grid: rows and columns of the patches; for relative positions and windows.
        """
        shortcut = x if num_queries is None else x[:, -num_queries:]
        if self.window_size:
            assert grid is not None and num_queries is None, "windows are of whole images"
            attended = in_windows(self.attn, self.norm1(x), grid, self.window_size)
        else:
            attended = self.attn(self.norm1(x), num_queries, grid)
        attended = self.ls1(attended)
        if branch_scales is None:
            x = shortcut + attended
            return x + self.ls2(self.mlp(self.norm2(x)))
        scales = branch_scales.to(x.dtype)[:, :, None, None]
        x = shortcut + scales[0] * attended
        return x + scales[1] * self.ls2(self.mlp(self.norm2(x)))


def in_windows(attn: Attention, x: Float[Tensor, "b n d"], grid: Grid, size: int) -> Float[Tensor, "b n d"]:
    """Attend within windows of `size` × `size` patches; the last ones are filled up with zeros (ViTDet)."""
    rows, columns = grid
    down, right = -rows % size, -columns % size
    x = F.pad(x.unflatten(1, grid), (0, 0, 0, right, 0, down))
    count = ((rows + down) // size, (columns + right) // size)
    x = x.unflatten(2, (count[1], size)).unflatten(1, (count[0], size)).transpose(2, 3)  # (B, r, c, size, size, D)
    x = attn(x.flatten(3, 4).flatten(0, 2), grid=(size, size))
    x = x.unflatten(1, (size, size)).unflatten(0, (-1, *count)).transpose(2, 3)
    x = x.flatten(3, 4).flatten(1, 2)  # (B, padded rows, padded columns, D)
    return x[:, :rows, :columns].flatten(1, 2)


class PatchEmbed(nn.Module):
    """The linear patch projection, kept as the convolution that ViT checkpoints hold."""

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(shape.channels, shape.width, shape.patch_size, shape.patch_size)

    def forward(self, patches: Float[Tensor, "b n p"]) -> Float[Tensor, "b n d"]:
        # Patch vectors run row, column, channel; the convolution's weight channel, row, column.
        return F.linear(patches, self.proj.weight.permute(0, 2, 3, 1).flatten(1), self.proj.bias)


class ViT(nn.Module):
    """The encoder. It knows nothing of masks: it encodes the patches that it is given."""

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        self.shape = shape
        self.cls_token = nn.Parameter(torch.empty(1, 1, shape.width)) if shape.class_token else None
        # A parameter, though frozen in pre-training: fine-tuning trains it (FACTS section 2).
        self.pos_embed = None
        if shape.positions == "absolute":
            num_positions = shape.num_prefix + shape.num_patches
            self.pos_embed = nn.Parameter(torch.empty(1, num_positions, shape.width), requires_grad=False)
        self.patch_embed = PatchEmbed(shape)
        self.blocks = nn.ModuleList(_block(shape, number) for number in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=shape.norm_eps) if shape.final_norm else nn.Identity()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set every parameter.

        | parameter | value |
        |---|---|
        | Linear weights (fused qkv as one matrix) | Xavier uniform |
        | Linear biases | 0 |
        | patch projection | Xavier uniform as a matrix; bias U(±1/√(patch values)) |
        | LayerNorm | 1, 0 |
        | class token | N(0, .02) |
        | positions | the sin-cos table |
        | relative positions, layer scale | 0, .1 |
        """
        self.blocks.apply(init_linear_and_norm)
        for module in self.blocks.modules():
            if isinstance(module, BiasTable | DecomposedPositions | LayerScale):
                module.init_weights()
        self.norm.apply(init_linear_and_norm)
        projection = self.patch_embed.proj
        nn.init.xavier_uniform_(projection.weight.flatten(1))
        bound = self.shape.patch_values**-0.5
        assert projection.bias is not None
        nn.init.uniform_(projection.bias, -bound, bound)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)
        if self.pos_embed is not None:
            table = sincos_positions(self.shape.grid, self.shape.width)
            self.pos_embed.copy_(table[:, 1 - self.shape.num_prefix :])

    def positions(self, grid: Grid) -> Float[Tensor, "1 n d"]:
        """The position table for `grid`, the class token's first; resampled when it is not the encoder's own."""
        if self.pos_embed is None:
            rows, columns = grid
            return self.patch_embed.proj.weight.new_zeros(1, self.shape.num_prefix + rows * columns, self.shape.width)
        return resample_positions(self.pos_embed, self.shape.grid, grid, self.shape.num_prefix)

    def embed(self, patches: Float[Tensor, "b n p"], positions: Float[Tensor, "#b n d"]) -> Float[Tensor, "b n d"]:
        """Project patches and add their positions (the class token's left out)."""
        return self.patch_embed(patches) + positions

    def encode(self, tokens: Float[Tensor, "b n d"], class_position: Float[Tensor, "1 k d"]) -> Float[Tensor, "b m d"]:
        """Run embedded tokens, a class token before them, through the blocks and the final norm."""
        return self.norm(self._run_blocks(tokens, class_position))

    def _run_blocks(
        self,
        tokens: Float[Tensor, "b n d"],
        class_position: Float[Tensor, "1 k d"],
        branch_scales: Float[Tensor, "depth 2 b"] | None = None,
        num_blocks: int | None = None,
        grid: Grid | None = None,
    ) -> Float[Tensor, "b m d"]:
        x = tokens
        if self.cls_token is not None:
            x = torch.cat([(self.cls_token + class_position).expand(x.shape[0], -1, -1), x], dim=1)
        for number, block in enumerate(self.blocks[:num_blocks]):
            x = block(x, branch_scales=None if branch_scales is None else branch_scales[number], grid=grid)
        return x

    def forward(
        self, images: Float[Tensor, "b c h w"], keep_ids: Int[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b m d"]:
        """Encode images, or only the patches `keep_ids` of them.

        Returns:
            (B, 1 + visible, width): the class token first, then the patches in the order of `keep_ids`.
        """
        if keep_ids is None:
            return self.norm(self.tokens(images))
        height, width = images.shape[-2:]
        positions = self.positions(grid_of(height, width, self.shape.patch_size))
        class_position, table = positions[:, :1], positions[:, 1:]
        # Gather pixels before projecting them: what is dropped is never embedded.
        patches = gather(patchify(images, self.shape.patch_size), keep_ids)
        table = F.embedding(keep_ids, table[0])  # whole rows: many times faster than gather on a CPU
        return self.encode(self.embed(patches, table), class_position)

    def tokens(
        self,
        images: Float[Tensor, "b c h w"],
        branch_scales: Float[Tensor, "depth 2 b"] | None = None,
        num_blocks: int | None = None,
    ) -> Float[Tensor, "b m d"]:
        """The tokens of whole images as the last block leaves them, before the final norm.

        Args:
            branch_scales: drop path, for each block (see `Block`).
            num_blocks: stop after so many blocks.
        """
        height, width = images.shape[-2:]
        grid, first = grid_of(height, width, self.shape.patch_size), self.shape.num_prefix
        positions = self.positions(grid)
        tokens = self.embed(patchify(images, self.shape.patch_size), positions[:, first:])
        return self._run_blocks(tokens, positions[:, :first], branch_scales, num_blocks, grid)


def _block(shape: ViTShape, number: int) -> Block:
    window_size = 0 if number in shape.global_blocks else shape.window_size
    relative: BiasTable | DecomposedPositions | None = None
    if shape.relative_positions == "bias":
        relative = BiasTable(shape.grid, shape.num_heads)
    elif shape.relative_positions == "decomposed":
        grid = (window_size, window_size) if window_size else shape.grid
        relative = DecomposedPositions(grid, shape.width // shape.num_heads)
    return Block(
        shape.width,
        shape.num_heads,
        relative=relative,
        layer_scale=shape.layer_scale,
        window_size=window_size,
        norm_eps=shape.norm_eps,
    )


def init_linear_and_norm(module: nn.Module) -> None:
    """Xavier uniform for a Linear's matrix, zero for its bias, 1 and 0 for a LayerNorm (FACTS section 1)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
