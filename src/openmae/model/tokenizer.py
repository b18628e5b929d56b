"""A discrete variational autoencoder: one token of a codebook for each patch of an image (paper, table 1d: dVAE).

The paper predicts the tokens of DALL-E's discrete VAE (Ramesh et al., 2021), as BEiT does. This one is ours, small
enough to be trained on one's own images: convolutions down to one place for each patch, a choice among the codes there,
and convolutions back to pixels. The choice is relaxed by Gumbel softmax (Jang et al., 2017) while it is trained.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openmae.config import Grid, TokenizerShape
from openmae.config.tokenizer_shape import NORM_GROUPS

# Gumbel noise has a deviation of 1.3. Where the first logits do not stand out of it, all codes mean the same, and most
# of them are never chosen again (measured: 8 of 512 in use).
LOGIT_GAIN = 6.0
USAGE_DECAY = 0.9
MIN_USAGE = 1e-3  # of a fair share; codes below it count as this rare


@dataclass(frozen=True)
class TokenizerOutput:
    """The output of `DiscreteVAE.forward`.

    Attributes:
        image_losses: (B,), the mean squared error of each image.
        balance_losses: (B,), how much each image prefers codes that are in use more than others; in nats.
        usage: (K,), the sum over the batch's places of their codes' probabilities.
    """

    image_losses: Float[Tensor, " b"]
    balance_losses: Float[Tensor, " b"]
    usage: Float[Tensor, " k"]


class DiscreteVAE(nn.Module):
    """An encoder to the logits of the codes, a codebook, and a decoder back to pixels.

    Images are normalised, (B, C, rows · stride, columns · stride), of any grid.

    The buffer `usage` (codebook,) is the running mean of the codes' probabilities over past steps. Against it the
    balance loss of a step is measured: for each place the mean of log(usage · codebook) under its codes' probabilities.
    Its gradient is that of the divergence of the mean choice from the uniform one, and being a sum over images it does
    not depend on how a batch is cut.
    """

    usage: Tensor

    def __init__(self, shape: TokenizerShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        factors = stride_factors(shape.stride)
        down: list[nn.Module] = []
        for i, factor in enumerate(factors):  # kernels overlap their neighbours by a pixel on each side
            inputs = width if i else shape.channels
            down += [nn.Conv2d(inputs, width, factor + 2, stride=factor, padding=1), nn.SiLU()]
        blocks = (ResidualBlock(width) for _ in range(shape.depth))
        self.encoder = nn.Sequential(*down, *blocks, nn.GroupNorm(NORM_GROUPS, width), nn.SiLU())
        self.to_logits = nn.Conv2d(width, shape.codebook, 1)
        self.codebook = nn.Parameter(torch.empty(shape.codebook, width))
        self.register_buffer("usage", torch.full((shape.codebook,), 1 / shape.codebook))
        up: list[nn.Module] = []
        for i, factor in enumerate(reversed(factors), start=1):
            outputs = width if i < len(factors) else shape.channels
            up += [nn.SiLU(), nn.ConvTranspose2d(width, outputs, factor + 2, stride=factor, padding=1)]
        blocks = (ResidualBlock(width) for _ in range(shape.depth))
        self.decoder = nn.Sequential(*blocks, nn.GroupNorm(NORM_GROUPS, width), *up)
        if not self.codebook.is_meta:  # setting weights there would load the compiler
            self.init_weights()

    def init_weights(self) -> None:
        """Initialise every parameter.

        | parameters | values |
        |---|---|
        | convolutions | Kaiming uniform for SiLU's neighbour ReLU, biases 0; transposed ones by their outputs |
        | last convolution of a residual block | 0, so that blocks begin as the identity |
        | convolution to the logits | times 6, so that they stand out of Gumbel noise |
        | codebook | N(0, 1) |
        | usage | 1 / codebook |
        | norms | 1, 0 |
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.convolution_2.weight)
        with torch.no_grad():
            self.to_logits.weight.mul_(LOGIT_GAIN)
            self.usage.fill_(1 / self.shape.codebook)
        nn.init.normal_(self.codebook)

    def logits(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n k"]:
        """The logits of each place's codes, row by row."""
        return self.to_logits(self.encoder(images)).flatten(2).transpose(1, 2)

    def tokens(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b n"]:
        """The most likely code of each place, row by row."""
        return self.logits(images).argmax(dim=-1)

    def decode(self, tokens: Int[Tensor, "b n"], grid: Grid) -> Float[Tensor, "b c h w"]:
        """The normalised images that tokens stand for."""
        return self._decode(self.codebook[tokens], grid)

    def forward(
        self, images: Float[Tensor, "b c h w"], noise: Float[Tensor, "b n k"], temperature: float
    ) -> TokenizerOutput:
        """Encode, choose by Gumbel softmax and decode.

        Args:
            noise: Gumbel noise, added to the logits.
            temperature: near 0 one code is chosen, at 1 a mean of several.
        """
        logits = self.logits(images).float()  # under bf16 autocast, too: small temperatures magnify every rounding
        choice = ((logits + noise) / temperature).softmax(dim=-1)
        grid = (images.shape[-2] // self.shape.stride, images.shape[-1] // self.shape.stride)
        decoded = self._decode(choice @ self.codebook, grid).to(images.dtype)
        probabilities = logits.softmax(dim=-1)
        rarity = (self.usage * self.shape.codebook).clamp(min=MIN_USAGE).log()
        return TokenizerOutput(
            (decoded - images).square().mean(dim=(1, 2, 3)),
            (probabilities * rarity).sum(dim=-1).mean(dim=-1),
            probabilities.detach().sum(dim=(0, 1)),
        )

    @torch.no_grad()
    def record_usage(self, usage: Float[Tensor, " k"], is_skipped: Float[Tensor, ""]) -> None:
        """Count a step's usage, summed over its whole batch, into the running mean; not that of a skipped step.

        Nothing waits for the device.
        """
        updated = USAGE_DECAY * self.usage + (1 - USAGE_DECAY) * usage / usage.sum()
        self.usage.copy_(torch.where(is_skipped > 0, self.usage, updated))

    def _decode(self, codes: Float[Tensor, "b n d"], grid: Grid) -> Float[Tensor, "b c h w"]:
        return self.decoder(codes.transpose(1, 2).unflatten(2, grid))


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions, each after norm and SiLU, beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(NORM_GROUPS, width), nn.GroupNorm(NORM_GROUPS, width)
        self.convolution_1 = nn.Conv2d(width, width, 3, padding=1)
        self.convolution_2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b d rows columns"]) -> Float[Tensor, "b d rows columns"]:
        """The same shape as the input."""
        hidden = self.convolution_1(F.silu(self.norm_1(x)))
        return x + self.convolution_2(F.silu(self.norm_2(hidden)))


def stride_factors(stride: int) -> list[int]:
    """The factors of the layers that make up a stride: 2 as often as it divides it, then what is left; [1] for 1."""
    factors = []
    while stride % 2 == 0:
        factors.append(2)
        stride //= 2
    return [*factors, stride] if stride > 1 or not factors else factors


def gumbel_noise(seeds: list[int], places: int, codebook: int, device: torch.device) -> Float[Tensor, "b n k"]:
    """Gumbel noise that depends on each sample's seed only, whatever the batch: (B, N, K) float32.

    Drawn where it is used, so a CPU and a GPU draw different numbers.
    """
    noise = torch.empty(len(seeds), places, codebook, device=device)
    generator = torch.Generator(device)
    for row, seed in zip(noise, seeds, strict=True):
        row.exponential_(generator=generator.manual_seed(seed))
    return noise.clamp_(min=torch.finfo(noise.dtype).tiny).log_().neg_()


def perplexity(tokens: Int[Tensor, "..."], codebook: int) -> float:
    """exp of the entropy of the tokens' frequencies: how many codes are in use, from 1 to the size of the codebook."""
    shares = tokens.flatten().bincount(minlength=codebook).double() / max(1, tokens.numel())
    return float(torch.special.entr(shares).sum().exp())
