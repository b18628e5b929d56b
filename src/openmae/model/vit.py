"""The encoder: a plain Vision Transformer applied to the visible patches only (paper, section 3).

Parameter names and shapes are timm's (`blocks.0.attn.qkv.weight`, `patch_embed.proj.weight`, …), so the
encoder's weights are a ViT checkpoint without conversion.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openmae.config import Grid, ViTShape, grid_of
from openmae.model.block import Block, LayerScale, init_linear_and_norm, is_without_numbers, to_autocast_dtype
from openmae.model.patches import gather, patchify
from openmae.model.positions import resample_positions, sincos_positions
from openmae.model.relative_positions import DecomposedRelativePositions, RelativePositionBias


class PatchEmbed(nn.Module):
    """The linear patch projection, stored as a convolution as in ViT checkpoints."""

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(shape.channels, shape.width, shape.patch_size, shape.patch_size)

    def forward(self, patches: Float[Tensor, "b n p"]) -> Float[Tensor, "b n d"]:
        # Patch vectors are in the order row, column, channel; the convolution's weight is in channel, row, column.
        return F.linear(patches, self.proj.weight.permute(0, 2, 3, 1).flatten(1), self.proj.bias)


class ViT(nn.Module):
    """The encoder. It knows nothing of masking: it encodes the patches that it is given.

    Attributes:
        bf16_residual: under bf16 autocast the residual stream between blocks is bf16, too.
    """

    bf16_residual = False

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        self.shape = shape
        self.cls_token = nn.Parameter(torch.empty(1, 1, shape.width)) if shape.class_token else None
        # A parameter, though frozen in pre-training: fine-tuning trains it (docs/paper.md, as released).
        self.pos_embed = None
        if shape.positions == "absolute":
            num_positions = shape.num_prefix_tokens + shape.num_patches
            self.pos_embed = nn.Parameter(torch.empty(1, num_positions, shape.width), requires_grad=False)
        self.patch_embed = PatchEmbed(shape)
        self.blocks = nn.ModuleList(_block(shape, number) for number in range(shape.depth))
        self.windowed_relative = _shared_bias(shape, (shape.window_size, shape.window_size), shape.num_windowed)
        self.global_relative = _shared_bias(shape, shape.grid, shape.depth - shape.num_windowed)
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
        if is_without_numbers(self):
            return
        self.blocks.apply(init_linear_and_norm)
        for module in self.modules():
            if isinstance(module, RelativePositionBias | DecomposedRelativePositions | LayerScale):
                module.init_weights()
        self.norm.apply(init_linear_and_norm)
        projection = self.patch_embed.proj
        nn.init.xavier_uniform_(projection.weight.flatten(1))
        bound = self.shape.patch_dim**-0.5
        assert projection.bias is not None
        nn.init.uniform_(projection.bias, -bound, bound)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)
        if self.pos_embed is not None:
            table = sincos_positions(self.shape.grid, self.shape.width)
            self.pos_embed.copy_(table[:, 1 - self.shape.num_prefix_tokens :])

    def positions(self, grid: Grid) -> Float[Tensor, "1 n d"]:
        """The position table for `grid`, the class token's first, resampled where it is not the encoder's own grid."""
        if self.pos_embed is None:
            rows, columns = grid
            return self.patch_embed.proj.weight.new_zeros(
                1, self.shape.num_prefix_tokens + rows * columns, self.shape.width
            )
        return resample_positions(self.pos_embed, self.shape.grid, grid, self.shape.num_prefix_tokens)

    def embed(self, patches: Float[Tensor, "b n p"], positions: Float[Tensor, "#b n d"]) -> Float[Tensor, "b n d"]:
        """Project patches and add their positions (without the class token's)."""
        return self.patch_embed(patches) + positions

    def encode(self, tokens: Float[Tensor, "b n d"], class_position: Float[Tensor, "1 k d"]) -> Float[Tensor, "b m d"]:
        """Run embedded tokens, a class token before them, through the blocks and the final norm."""
        return self.norm(self._run_blocks(self._with_class_token(tokens, class_position)))

    def _with_class_token(
        self, tokens: Float[Tensor, "b n d"], class_position: Float[Tensor, "1 k d"]
    ) -> Float[Tensor, "b m d"]:
        """The tokens as the first block takes them."""
        x = tokens
        if self.cls_token is not None:
            # x.shape[0]: `len` is a Python integer, which torch.export would keep as the only batch size.
            x = torch.cat([(self.cls_token + class_position).expand(x.shape[0], -1, -1), x], dim=1)
        return to_autocast_dtype(x) if self.bf16_residual else x

    def _run_blocks(
        self,
        x: Float[Tensor, "b m d"],
        branch_scales: Float[Tensor, "depth 2 b"] | None = None,
        num_blocks: int | None = None,
        grid: Grid | None = None,
    ) -> Float[Tensor, "b m d"]:
        biases = self._biases(grid)
        for number, block in enumerate(self.blocks[:num_blocks]):
            scales = None if branch_scales is None else branch_scales[number]
            x = block(x, branch_scales=scales, grid=grid, bias=biases[number])
        return x

    def _biases(self, grid: Grid | None) -> list[Tensor | None]:
        """The shared relative positions for each block; they are computed once."""
        if self.windowed_relative is None and self.global_relative is None:
            return [None] * len(self.blocks)
        assert grid is not None, "relative positions are of whole images"
        windowed = everywhere = None
        if self.windowed_relative is not None:
            windowed = to_autocast_dtype(self.windowed_relative.scores(self.windowed_relative.grid))
        if self.global_relative is not None:
            everywhere = to_autocast_dtype(self.global_relative.scores(grid))
        return [windowed if block.window_size else everywhere for block in self.blocks]

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
        # Gather pixels before projecting them, so that masked patches are never embedded.
        patches = gather(patchify(images, self.shape.patch_size), keep_ids)
        table = F.embedding(keep_ids, table[0])  # many times faster than gather on a CPU
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
            num_blocks: stop after this many blocks.
        """
        x, grid = self._embedded(images)
        return self._run_blocks(x, branch_scales, num_blocks, grid)

    def feature_maps(
        self,
        images: Float[Tensor, "b c h w"],
        blocks: Sequence[int],
        branch_scales: Float[Tensor, "depth 2 b"] | None = None,
    ) -> list[Float[Tensor, "b d rows columns"]]:
        """The patch tokens after each of these blocks as maps, without class token and final norm.

        Args:
            blocks: counted from 0, in any order, repeats allowed; blocks after the last of them do not run.
            branch_scales: drop path, for each block (see `Block`).
        """
        x, grid = self._embedded(images)
        maps: dict[int, Tensor] = {}
        biases = self._biases(grid)
        for number, block in enumerate(self.blocks[: max(blocks) + 1]):
            scales = None if branch_scales is None else branch_scales[number]
            x = block(x, branch_scales=scales, grid=grid, bias=biases[number])
            if number in blocks:
                maps[number] = x[:, self.shape.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)
        return [maps[number] for number in blocks]

    def _embedded(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b m d"], Grid]:
        """The tokens of whole images as the first block takes them, and the grid of their patches."""
        height, width = images.shape[-2:]
        grid, first = grid_of(height, width, self.shape.patch_size), self.shape.num_prefix_tokens
        positions = self.positions(grid)
        tokens = self.embed(patchify(images, self.shape.patch_size), positions[:, first:])
        return self._with_class_token(tokens, positions[:, :first]), grid


def _shared_bias(shape: ViTShape, grid: Grid, num_blocks: int) -> RelativePositionBias | None:
    """The bias of `num_blocks` blocks. It belongs to the encoder, for files hold no tensor twice."""
    if not (shape.shares_relative_positions and num_blocks):
        return None
    return RelativePositionBias(grid, shape.num_heads, class_token=shape.class_token)


def _block(shape: ViTShape, number: int) -> Block:
    window_size = 0 if number in shape.global_blocks else shape.window_size
    relative: RelativePositionBias | DecomposedRelativePositions | None = None
    if shape.relative_positions == "bias" and not shape.shares_relative_positions:
        grid = (window_size, window_size) if window_size else shape.grid
        relative = RelativePositionBias(grid, shape.num_heads, class_token=shape.class_token)
    elif shape.relative_positions == "decomposed":
        grid = (window_size, window_size) if window_size else shape.grid
        relative = DecomposedRelativePositions(grid, shape.width // shape.num_heads)
    return Block(
        shape.width,
        shape.num_heads,
        relative=relative,
        layer_scale=shape.layer_scale,
        window_size=window_size,
        norm_eps=shape.norm_eps,
    )
