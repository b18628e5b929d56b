"""A masked autoencoder as the paper tells it, without a single short cut: the reference for the cheap forms.

It takes the parameters of an `openmae.model.mae.MAE` and none of its code: every patch is embedded, tokens are
really shuffled and unshuffled, all decoder blocks run on all tokens, all patches are predicted, attention is
written out, and the loss is Σ(loss · masked) / Σ(masked).
"""

import math
from dataclasses import dataclass

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor


@dataclass
class PlainOutput:
    """Attributes:
    loss: over the masked patches.
    prediction: (B, N, values) of every patch, in the order of the image.
    patch_losses: (B, N), likewise.
    """

    loss: Tensor
    prediction: Tensor
    patch_losses: Tensor


def plain_mae(
    mae: torch.nn.Module, images: Tensor, shuffled_ids: Tensor, num_visible: int, *, normalise: bool
) -> PlainOutput:
    """Hide the patches `shuffled_ids[:, num_visible:]` of each image and predict all of them."""
    p = dict(mae.named_parameters())
    encoder_heads = mae.encoder.shape.num_heads
    decoder_heads = mae.decoder.shape.num_heads
    side, own_size = mae.encoder.shape.patch_size, mae.encoder.shape.image_size
    batch, _, height, width = images.shape
    grids = [(h // side, w // side) for h, w in (own_size, (height, width))]
    encoder_positions = positions_for(p["encoder.pos_embed"], *grids)
    decoder_positions = positions_for(p["decoder.pos_embed"], *grids)

    is_masked = torch.ones(batch, shuffled_ids.shape[1], dtype=torch.bool)
    for sample in range(batch):
        is_masked[sample, shuffled_ids[sample, :num_visible]] = False

    # Embed all patches and add positions.
    patches = cut(images, side)  # (B, N, C, p, p)
    kernel = p["encoder.patch_embed.proj.weight"]  # (D, C, p, p)
    tokens = torch.einsum("bncij,dcij->bnd", patches, kernel) + p["encoder.patch_embed.proj.bias"]
    if "encoder_mask_token" in p:  # table 1c
        tokens = torch.where(is_masked[..., None], p["encoder_mask_token"], tokens)
        tokens = tokens + encoder_positions[:, 1:]
    else:  # shuffle and drop the tail
        tokens = tokens + encoder_positions[:, 1:]
        tokens = torch.stack([t[ids] for t, ids in zip(tokens, shuffled_ids, strict=True)])[:, :num_visible]

    # Encode.
    class_token = (p["encoder.cls_token"] + encoder_positions[:, :1]).repeat(batch, 1, 1)
    x = torch.cat([class_token, tokens], dim=1)
    for i in range(mae.encoder.shape.depth):
        x = block(x, p, f"encoder.blocks.{i}", encoder_heads)
    x = layer_norm(x, p, "encoder.norm")

    # Append mask tokens, unshuffle, add positions, decode.
    x = linear(x, p, "decoder.embed")
    if "decoder.mask_token" in p:
        mask_tokens = p["decoder.mask_token"].repeat(batch, shuffled_ids.shape[1] - num_visible, 1)
        tokens = torch.cat([x[:, 1:], mask_tokens], dim=1)
        unshuffled = [t[torch.argsort(ids)] for t, ids in zip(tokens, shuffled_ids, strict=True)]
        x = torch.cat([x[:, :1], torch.stack(unshuffled)], dim=1)
    x = x + decoder_positions
    for i in range(mae.decoder.shape.depth):
        x = block(x, p, f"decoder.blocks.{i}", decoder_heads)
    prediction = linear(layer_norm(x, p, "decoder.norm"), p, "decoder.predict")[:, 1:]

    # Score all patches, count the masked ones.
    truth = patches.permute(0, 1, 3, 4, 2).flatten(2)  # row, column, channel
    if normalise:
        mean = truth.mean(-1, keepdim=True)
        variance = ((truth - mean) ** 2).sum(-1, keepdim=True) / (truth.shape[-1] - 1)
        truth = (truth - mean) / (variance + 1e-6) ** 0.5
    patch_losses = ((prediction - truth) ** 2).mean(-1)
    loss = (patch_losses * is_masked).sum() / is_masked.sum()
    return PlainOutput(loss, prediction, patch_losses)


def cut(images: Tensor, side: int) -> Tensor:
    """Every patch of every image, one slice at a time: (B, C, H, W) → (B, N, C, side, side)."""
    height, width = images.shape[-2:]
    corners = [(top, left) for top in range(0, height, side) for left in range(0, width, side)]
    return torch.stack([images[:, :, top : top + side, left : left + side] for top, left in corners], dim=1)


def positions_for(table: Tensor, own_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """timm's resampling, without the antialiasing that it adds by default."""
    return resample_abs_pos_embed(table, list(grid), list(own_grid), antialias=False)


def linear(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def layer_norm(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / ((centred**2).mean(-1, keepdim=True) + 1e-6).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def block(x: Tensor, p: dict[str, Tensor], name: str, num_heads: int) -> Tensor:
    x = x + attention(layer_norm(x, p, f"{name}.norm1"), p, f"{name}.attn", num_heads)
    hidden = linear(layer_norm(x, p, f"{name}.norm2"), p, f"{name}.mlp.fc1")
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + linear(hidden, p, f"{name}.mlp.fc2")


def attention(x: Tensor, p: dict[str, Tensor], name: str, num_heads: int) -> Tensor:
    head_width = x.shape[-1] // num_heads
    q, k, v = linear(x, p, f"{name}.qkv").chunk(3, dim=-1)
    heads = []
    for i in range(num_heads):
        of_head = slice(i * head_width, (i + 1) * head_width)
        scores = q[..., of_head] @ k[..., of_head].transpose(-1, -2) / math.sqrt(head_width)
        heads.append(scores.softmax(-1) @ v[..., of_head])
    return linear(torch.cat(heads, dim=-1), p, f"{name}.proj")
