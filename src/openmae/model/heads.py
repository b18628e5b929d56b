"""Classifiers: pooling, a norm and a linear head on the encoder (paper, section 4 and A.1)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openmae.config import ClassifierShape
from openmae.errors import RequestError
from openmae.model.block import is_without_numbers
from openmae.model.vit import ViT

PROBE_EPS = 1e-6  # of the probe's BatchNorm (docs/paper.md, linear probe)


class Classifier(nn.Module):
    """An encoder, pooled tokens, a norm and a linear head; parameter names beside `encoder.` are timm's.

    Its outputs are the logits of classes or, of a regression model, the standardised numbers that it predicts.

    | head | pool | features |
    |---|---|---|
    | fine-tune | mean | mean of the last block's patch tokens, no encoder norm, then a fresh LayerNorm |
    | fine-tune | cls | class token after the encoder's norm |
    | probe | cls, mean | token(s) after the encoder's norm, then a BatchNorm without affine |
    """

    def __init__(self, encoder: ViT, shape: ClassifierShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = encoder
        width = shape.encoder.width
        self.fc_norm: nn.Module = nn.Identity()
        if shape.head == "probe":
            self.fc_norm = nn.BatchNorm1d(width, eps=PROBE_EPS, affine=False)
        elif shape.pool == "mean":
            self.fc_norm = nn.LayerNorm(width, eps=shape.encoder.norm_eps)
            self.encoder.norm = nn.Identity()
        self.head = nn.Linear(width, shape.num_classes)
        self.init_head()

    @classmethod
    def from_shape(cls, shape: ClassifierShape) -> "Classifier":
        """A newly initialised classifier, its encoder initialised as for pre-training."""
        return cls(ViT(shape.encoder), shape)

    @torch.no_grad()
    def init_head(self) -> None:
        """Set the head and its norm.

        | parameter | value |
        |---|---|
        | head to fine-tune | truncated normal 2e-5, bias 0 |
        | head of a probe | N(0, .01), bias 0 |
        | pooling norm | 1, 0 |
        """
        if is_without_numbers(self.head):
            return
        if self.shape.head == "probe":
            nn.init.normal_(self.head.weight, std=0.01)
        else:
            nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)
        if isinstance(self.fc_norm, nn.LayerNorm):
            nn.init.ones_(self.fc_norm.weight)
            nn.init.zeros_(self.fc_norm.bias)

    def pooled(
        self, images: Float[Tensor, "b c h w"], branch_scales: Float[Tensor, "depth 2 b"] | None = None
    ) -> Float[Tensor, "b d"]:
        """The pooled features of whole images, before the head's norm."""
        tokens = self.encoder.norm(self.encoder.tokens(images, branch_scales))
        return pool(tokens, self.shape.pool, self.shape.encoder.num_prefix_tokens)

    def forward(
        self, images: Float[Tensor, "b c h w"], branch_scales: Float[Tensor, "depth 2 b"] | None = None
    ) -> Float[Tensor, "b classes"]:
        """Logits of whole images."""
        return self.head(self.fc_norm(self.pooled(images, branch_scales)))

    def train_only(self, num_blocks: float | None) -> None:
        """Freeze all but the head, the norm before it and the last blocks (paper, section 4.3).

        Args:
            num_blocks: None trains everything, including positions; 0 only the head and the norms before it; 0.5 also
                the MLP half of the last block.

        Raises:
            ValueError: the encoder has fewer blocks, or the number is neither 0.5 nor an integer.
        """
        depth = len(self.encoder.blocks)
        self.requires_grad_(num_blocks is None)
        if num_blocks is None:
            return
        if num_blocks > depth or (num_blocks != 0.5 and num_blocks != int(num_blocks)):
            raise ValueError(f"--blocks got {num_blocks:g}: 0, 0.5 and 1 to {depth} are known")
        for module in (self.head, self.fc_norm, self.encoder.norm):
            module.requires_grad_(True)
        if num_blocks == 0.5:
            last = self.encoder.blocks[-1]
            last.norm2.requires_grad_(True)
            last.mlp.requires_grad_(True)
            return
        for block in self.encoder.blocks[depth - int(num_blocks) :]:
            block.requires_grad_(True)


def pool(tokens: Float[Tensor, "b n d"], kind: str, num_prefix_tokens: int) -> Float[Tensor, "b d"]:
    """The class token (`cls`), or the mean of the patch tokens (`mean`), which follow `num_prefix_tokens` others.

    Raises:
        RequestError: the class token is asked for where there is none.
    """
    if kind == "cls" and not num_prefix_tokens:
        raise RequestError("--pool got 'cls', but this encoder has no class token: --pool mean")
    return tokens[:, 0] if kind == "cls" else tokens[:, num_prefix_tokens:].mean(dim=1)
