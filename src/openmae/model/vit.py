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

LAYER_NORM_EPS = 1e-6
MLP_RATIO = 4


class Attention(nn.Module):
    """Multi-head self-attention with a fused qkv matrix and a bias on each of its three parts."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n d"], num_queries: int | None = None) -> Float[Tensor, "b q d"]:
        """Attend from the last `num_queries` tokens (None: from all) to all tokens."""
        batch, count, width = x.shape
        if num_queries is None or num_queries == count:
            qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, -1)
            q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # split first: gradients are stacked in place
        else:
            q = F.linear(x[:, -num_queries:], self.qkv.weight[:width], self.qkv.bias[:width])
            q = q.reshape(batch, num_queries, self.num_heads, -1).transpose(1, 2)
            kv = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:])
            k, v = (part.transpose(1, 2) for part in kv.reshape(batch, count, 2, self.num_heads, -1).unbind(2))
        x = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, d)
        return self.proj(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm Transformer block, the encoder's and the decoder's alike."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(width)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        num_queries: int | None = None,
        branch_scales: Float[Tensor, "2 b"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Apply the block.

        Args:
            num_queries: compute (exactly) only the last so many output tokens.
            branch_scales: drop path: what each sample's attention and MLP branch are multiplied by.
        """
        shortcut = x if num_queries is None else x[:, -num_queries:]
        attended = self.attn(self.norm1(x), num_queries)
        if branch_scales is None:
            x = shortcut + attended
            return x + self.mlp(self.norm2(x))
        scales = branch_scales.to(x.dtype)[:, :, None, None]
        x = shortcut + scales[0] * attended
        return x + scales[1] * self.mlp(self.norm2(x))


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
        self.cls_token = nn.Parameter(torch.empty(1, 1, shape.width))
        # A parameter, though frozen in pre-training: fine-tuning trains it (FACTS section 2).
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + shape.num_patches, shape.width), requires_grad=False)
        self.patch_embed = PatchEmbed(shape)
        self.blocks = nn.ModuleList(Block(shape.width, shape.num_heads) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=LAYER_NORM_EPS)
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
        """
        self.blocks.apply(init_linear_and_norm)
        self.norm.apply(init_linear_and_norm)
        projection = self.patch_embed.proj
        nn.init.xavier_uniform_(projection.weight.flatten(1))
        bound = self.shape.patch_values**-0.5
        assert projection.bias is not None
        nn.init.uniform_(projection.bias, -bound, bound)
        nn.init.normal_(self.cls_token, std=0.02)
        self.pos_embed.copy_(sincos_positions(self.shape.grid, self.shape.width))

    def positions(self, grid: Grid) -> Float[Tensor, "1 n d"]:
        """The position table for `grid`, resampled when it is not the encoder's own."""
        return resample_positions(self.pos_embed, self.shape.grid, grid)

    def embed(self, patches: Float[Tensor, "b n p"], positions: Float[Tensor, "#b n d"]) -> Float[Tensor, "b n d"]:
        """Project patches and add their positions (the class token's left out)."""
        return self.patch_embed(patches) + positions

    def encode(self, tokens: Float[Tensor, "b n d"], class_position: Float[Tensor, "1 1 d"]) -> Float[Tensor, "b m d"]:
        """Run embedded tokens, a class token before them, through the blocks and the final norm."""
        return self.norm(self._run_blocks(tokens, class_position))

    def _run_blocks(
        self,
        tokens: Float[Tensor, "b n d"],
        class_position: Float[Tensor, "1 1 d"],
        branch_scales: Float[Tensor, "depth 2 b"] | None = None,
        num_blocks: int | None = None,
    ) -> Float[Tensor, "b m d"]:
        x = torch.cat([(self.cls_token + class_position).expand(tokens.shape[0], -1, -1), tokens], dim=1)
        for number, block in enumerate(self.blocks[:num_blocks]):
            x = block(x, branch_scales=None if branch_scales is None else branch_scales[number])
        return x

    def forward(
        self, images: Float[Tensor, "b c h w"], keep_ids: Int[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b m d"]:
        """Encode images, or only the patches `keep_ids` of them.

        Returns:
            (B, 1 + visible, width): the class token first, then the patches in the order of `keep_ids`.
        """
        patches = patchify(images, self.shape.patch_size)
        height, width = images.shape[-2:]
        positions = self.positions(grid_of(height, width, self.shape.patch_size))
        class_position, table = positions[:, :1], positions[:, 1:]
        if keep_ids is not None:
            # Gather pixels before projecting them: what is dropped is never embedded.
            patches = gather(patches, keep_ids)
            table = gather(table.expand(len(images), -1, -1), keep_ids)
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
        positions = self.positions(grid_of(height, width, self.shape.patch_size))
        tokens = self.embed(patchify(images, self.shape.patch_size), positions[:, 1:])
        return self._run_blocks(tokens, positions[:, :1], branch_scales, num_blocks)


def init_linear_and_norm(module: nn.Module) -> None:
    """Xavier uniform for a Linear's matrix, zero for its bias, 1 and 0 for a LayerNorm (FACTS section 1)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
