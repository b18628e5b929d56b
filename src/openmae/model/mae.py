"""The masked autoencoder: its forward reads like the paper (section 3)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openmae.config import Grid, MAEShape, grid_of
from openmae.model.block import Block
from openmae.model.decoder import Decoder
from openmae.model.masking import Masking
from openmae.model.patches import gather, patchify
from openmae.model.targets import NormPixelTarget, PCATarget, PixelTarget, Target
from openmae.model.token_target import TokenTarget
from openmae.model.vit import ViT

TARGET_CLASSES: dict[str, type[Target]] = {
    "pixel": PixelTarget,
    "norm-pixel": NormPixelTarget,
    "pca": PCATarget,
    "token": TokenTarget,
}


@dataclass(frozen=True)
class MAEOutput:
    """The output of `MAE.forward`.

    Attributes:
        loss: the mean over the masked patches of the batch.
        patch_losses: (B, masked), in the order of `masked_ids`.
        prediction: (B, masked, outputs), likewise.
    """

    loss: Float[Tensor, ""]
    patch_losses: Float[Tensor, "b masked"]
    prediction: Float[Tensor, "b masked p"]


class MAE(nn.Module):
    """A masked autoencoder: an encoder, a decoder and a target (paper, section 3)."""

    def __init__(self, encoder: ViT, decoder: Decoder, target: Target) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.target = target
        # Table 1c: where the decoder makes no mask tokens, they go through the encoder.
        needs_token = decoder.mask_token is None
        self.encoder_mask_token = nn.Parameter(torch.empty(1, 1, encoder.shape.width)) if needs_token else None
        self._init_mask_token()

    @classmethod
    def from_shape(cls, shape: MAEShape) -> "MAE":
        """A newly initialised masked autoencoder of this shape."""
        target = TARGET_CLASSES[shape.target](shape)
        decoder = Decoder(shape.encoder, shape.decoder, target.num_outputs, not shape.mask_tokens_in_encoder)
        return cls(ViT(shape.encoder), decoder, target)

    def init_weights(self) -> None:
        """Initialise every parameter: see encoder and decoder; an encoder's mask token is N(0, .02)."""
        self.encoder.init_weights()
        self.decoder.init_weights()
        self._init_mask_token()

    def _init_mask_token(self) -> None:
        if self.encoder_mask_token is not None and not self.encoder_mask_token.is_meta:
            nn.init.normal_(self.encoder_mask_token, std=0.02)

    def set_recompute(self, is_on: bool = True) -> None:
        """Set whether blocks compute norms and GELU again in the backward pass (activation checkpointing)."""
        for module in self.modules():
            if isinstance(module, Block):
                module.recomputes = is_on

    def set_bf16_residual(self, is_on: bool = True) -> None:
        """Set whether the residual stream is bf16, too, under bf16 autocast; weights stay float32."""
        self.encoder.bf16_residual = self.decoder.bf16_residual = is_on

    def grid(self, images: Float[Tensor, "b c h w"]) -> Grid:
        """Rows and columns of patches in the images."""
        height, width = images.shape[-2:]
        return grid_of(height, width, self.encoder.shape.patch_size)

    def encode(self, images: Float[Tensor, "b c h w"], masking: Masking) -> Float[Tensor, "b m d"]:
        """The latent of the visible patches and, in the ablation of table 1c, of the mask tokens."""
        if self.encoder_mask_token is None:
            return self.encoder(images, masking.keep_ids)
        positions = self.encoder.positions(self.grid(images))
        table = gather(positions[:, 1:].expand(len(images), -1, -1), masking.shuffled_ids)
        patches = gather(patchify(images, self.encoder.shape.patch_size), masking.keep_ids)
        visible = self.encoder.embed(patches, table[:, : masking.num_visible])
        hidden = self.encoder_mask_token.to(visible.dtype) + table[:, masking.num_visible :].to(visible.dtype)
        return self.encoder.encode(torch.cat([visible, hidden], dim=1), positions[:, :1])

    def forward(self, images: Float[Tensor, "b c h w"], masking: Masking) -> MAEOutput:
        """Encode the visible patches, predict the masked ones, and compute the loss on these only."""
        latent = self.encode(images, masking)
        prediction = self.decoder(latent, masking, self.grid(images))
        patch_losses = self.target(prediction, images, masking)
        return MAEOutput(patch_losses.mean(), patch_losses, prediction)

    def predict_all(self, images: Float[Tensor, "b c h w"], masking: Masking) -> Float[Tensor, "b n p"]:
        """Predict all patches, including visible ones, in the order of the image (for pictures)."""
        return self.decoder(self.encode(images, masking), masking, self.grid(images), all_patches=True)
