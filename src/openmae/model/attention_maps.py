"""Attention maps: the softmax weights of a block, which the fused attention of `block.py` does not return."""

import torch
from jaxtyping import Float
from torch import Tensor

from openmae.config import check_range, grid_of
from openmae.errors import RequestError
from openmae.model.block import Block
from openmae.model.vit import ViT


@torch.no_grad()
def attention_weights(
    vit: ViT, images: Float[Tensor, "b c h w"], layer: int | None = None
) -> Float[Tensor, "b heads n n"]:
    """The attention weights of one block on whole images, from each token (row) to each; the class token first.

    Every row sums to 1. Takes B × heads × (1 + N)² numbers; `class_attention` needs the first row only.

    Args:
        layer: the number of the block, from 1; None: the last one.

    Raises:
        RequestError: there is no such block, or patches do not divide the images.
    """
    queries, keys, scores = _queries_keys_and_bias(vit, images, layer)
    return (queries @ keys.transpose(-2, -1) + scores).softmax(dim=-1)


@torch.no_grad()
def class_attention(
    vit: ViT, images: Float[Tensor, "b c h w"], layer: int | None = None
) -> tuple[Float[Tensor, "b heads rows columns"], Float[Tensor, "b heads"]]:
    """The class token's attention to the patches, on their grid, and to itself; together they sum to 1.

    Arguments and errors as of `attention_weights`.
    """
    if not vit.shape.class_token:
        raise RequestError("attention is drawn from the class token, and this encoder has none")
    queries, keys, scores = _queries_keys_and_bias(vit, images, layer)
    weights = (
        (queries[:, :, :1] @ keys.transpose(-2, -1) + scores[:, :, :1]).softmax(dim=-1).squeeze(2)
    )  # (B, heads, 1 + N)
    height, width = images.shape[-2:]
    grid = grid_of(height, width, vit.shape.patch_size)
    return weights[..., 1:].unflatten(-1, grid), weights[..., 0]


def _queries_keys_and_bias(
    vit: ViT, images: Float[Tensor, "b c h w"], layer: int | None
) -> tuple[Float[Tensor, "b heads n d"], Float[Tensor, "b heads n d"], Float[Tensor, "#b #heads #n #n"]]:
    """A block's queries, scaled by 1/√d, its keys, and the bias of relative positions (0 without them)."""
    depth = len(vit.blocks)
    check_range("--layer", layer, 1, depth)
    layer = layer or depth
    block = vit.blocks[layer - 1]
    assert isinstance(block, Block)
    if block.window_size:
        raise RequestError("attention within windows is not drawn: this is a ViTDet backbone")
    height, width = images.shape[-2:]
    grid = grid_of(height, width, vit.shape.patch_size)
    x = block.norm1(vit.tokens(images, num_blocks=layer - 1))
    q, k, _ = block.attn.qkv(x).unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    scores = x.new_zeros(1, 1, 1, 1)
    if block.attn.relative is not None:
        scores = block.attn.relative(q, grid)
    elif vit.global_relative is not None:
        scores = vit.global_relative.scores(grid)
    return q * q.shape[-1] ** -0.5, k, scores  # (B, heads, 1 + N, d)
