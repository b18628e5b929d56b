"""The light decoder: encoded patches and mask tokens in, predictions out (paper, section 3)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openmae.config import DecoderShape, Grid, ViTShape
from openmae.model.block import Block, init_linear_and_norm, is_without_numbers, to_autocast_dtype
from openmae.model.masking import Masking
from openmae.model.positions import resample_positions, sincos_positions


class Decoder(nn.Module):
    """Predicts the masked patches from the latent of the visible ones.

    Tokens stay in the shuffled order of the masking (class token, visible, masked): attention does not depend on their
    order, so the positions are gathered instead of unshuffling the tokens.

    Args:
        encoder: the shape of the encoder that it follows.
        shape: its own width, depth and heads.
        num_outputs: values predicted for each patch.
        makes_mask_tokens: False where mask tokens went through the encoder and are in the latent (table 1c).

    Attributes:
        bf16_residual: see `ViT`.
    """

    bf16_residual = False

    def __init__(
        self, encoder: ViTShape, shape: DecoderShape, num_outputs: int, makes_mask_tokens: bool = True
    ) -> None:
        super().__init__()
        self.shape, self.grid = shape, encoder.grid
        self.embed = nn.Linear(encoder.width, shape.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, shape.width)) if makes_mask_tokens else None
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + encoder.num_patches, shape.width), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.num_heads, norm_eps=encoder.norm_eps) for _ in range(shape.depth)
        )
        self.norm = nn.LayerNorm(shape.width, eps=encoder.norm_eps)
        self.predict = nn.Linear(shape.width, num_outputs)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set every parameter: Linear and LayerNorm as the encoder's, mask token N(0, .02), sin-cos positions."""
        if is_without_numbers(self):
            return
        self.apply(init_linear_and_norm)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)
        self.pos_embed.copy_(sincos_positions(self.grid, self.shape.width))

    def forward(
        self, latent: Float[Tensor, "b m d"], masking: Masking, grid: Grid, all_patches: bool = False
    ) -> Float[Tensor, "b q p"]:
        """Predict the masked patches, or all of them.

        Args:
            latent: (B, 1 + visible, D) from the encoder, or (B, 1 + N, D) in shuffled order where mask
                tokens went through it.
            masking: which patches are visible and masked.
            grid: rows and columns of patches in the image.
            all_patches: predict the visible patches too, for pictures; the loss does not need them.

        Returns:
            (B, masked, outputs) in the order of `masked_ids`; with `all_patches` (B, N, outputs) in the
            order of the image.
        """
        x = self.embed(latent)
        if self.mask_token is not None:
            mask_tokens = self.mask_token.to(x.dtype).expand(len(x), masking.num_masked, -1)
            x = torch.cat([x, mask_tokens], dim=1)
        positions = resample_positions(self.pos_embed, self.grid, grid, num_prefix_tokens=1)
        class_position = positions[:, :1].expand(len(x), -1, -1)
        x = x + torch.cat([class_position, F.embedding(masking.shuffled_ids, positions[0, 1:])], dim=1)
        if self.bf16_residual:
            x = to_autocast_dtype(x)
        # Only what is predicted needs to come out of the last block.
        num_queries = x.shape[1] - 1 if all_patches else masking.num_masked
        for block in self.blocks[:-1]:
            x = block(x)
        prediction = self.predict(self.norm(self.blocks[-1](x, num_queries)))
        return masking.unshuffle(prediction) if all_patches else prediction
