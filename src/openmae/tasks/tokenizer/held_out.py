"""Held-out images through the tokenizer and back: how near they come, and how many codes are in use."""

import torch
from PIL import Image
from torch import Tensor

from openmae.config import ResolvedTokenizerConfig
from openmae.data.evaluation_loader import read_all
from openmae.data.preprocess import normalise, to_unit
from openmae.data.sources.open import Source
from openmae.machine.signals import EvaluationStopped, StopRequest
from openmae.model.token_target import full_precision
from openmae.model.tokenizer import DiscreteVAE, perplexity
from openmae.planning.tokenizer import TokenizerPlan

NUM_PICTURED = 16
COLLAPSED_SHARE = 0.05  # of the codes that there could be; untrained tokenizers use more
COLLAPSE_FROM, MIN_STEPS = 0.25, 200  # of the steps, and steps; at first few codes mean anything


class HeldOut:
    """Images in memory, centre-cropped and not yet normalised.

    Attributes:
        bad: name and reason of each image that could not be read and is left out.
    """

    def __init__(self, source: Source, plan: TokenizerPlan) -> None:
        self.config: ResolvedTokenizerConfig = plan.config
        self.grid, self.preprocessing = plan.grid, plan.preprocessing
        batch = read_all(source, plan.preprocessing, plan.config.stride)
        self.images, self.bad = batch.images, batch.bad

    @torch.no_grad()
    def measure(self, model: DiscreteVAE, device: torch.device, stop: StopRequest) -> dict[str, float]:
        """`held_out_loss`: the mean squared error of normalised pixels; `psnr`: in dB, of pixels in 0 to 1, the mean
        over images; `perplexity` and `codes_used` of the tokens, which are the most likely ones: no noise.

        Raises:
            EvaluationStopped: a signal came.
        """
        errors, unit_errors, tokens = [], [], []
        for images in self.images.split(self.config.micro_batch_size):
            if stop.received:
                raise EvaluationStopped
            images, decoded, found = self._decode(model, images, device)
            errors.append((decoded - images).square().mean(dim=(1, 2, 3)).double().cpu())
            unit_decoded, unit_images = (to_unit(x, self.preprocessing).clamp(0, 1) for x in (decoded, images))
            unit_errors.append((unit_decoded - unit_images).square().mean(dim=(1, 2, 3)).double().cpu())
            tokens.append(found.cpu())
        used, error = torch.cat(tokens), torch.cat(unit_errors).clamp(min=1e-12)
        return {
            "held_out_loss": float(torch.cat(errors).mean()),
            "psnr": round(float(-10 * error.log10().mean()), 4),
            "perplexity": round(perplexity(used, self.config.codebook), 2),
            "codes_used": float(len(used.unique())),
        }

    @torch.no_grad()
    def picture(self, model: DiscreteVAE, device: torch.device) -> Image.Image:
        """The first images and what their tokens decode to, as a sheet."""
        from openmae.pictures.sheet import sheet  # brings matplotlib, which takes a second

        images, decoded, _ = self._decode(model, self.images[:NUM_PICTURED], device)
        pair = [to_unit(x, self.preprocessing).clamp(0, 1).cpu() for x in (images, decoded)]
        return sheet([list(row) for row in zip(*pair, strict=True)], ["image", "from its tokens"], blocks=4)

    def _decode(self, model: DiscreteVAE, images: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised images, the same decoded from their tokens, and the tokens."""
        prepared = normalise(images.to(device), self.preprocessing)
        with full_precision():  # as pre-training computes the same tokens
            tokens = model.tokens(prepared)
            return prepared, model.decode(tokens, self.grid), tokens

    @property
    def num_tokens(self) -> int:
        """Tokens of all images together."""
        return len(self.images) * self.grid[0] * self.grid[1]


def collapse_line(
    metrics: dict[str, float], config: ResolvedTokenizerConfig, num_tokens: int, step: int, num_steps: int
) -> str | None:
    """A line that says that hardly any codes are in use, and what to do; None while enough are, or it is too early.

    Args:
        num_tokens: that were measured; of a few tokens few can differ.
    """
    is_early = step < max(MIN_STEPS, COLLAPSE_FROM * num_steps)
    if is_early or metrics["perplexity"] >= COLLAPSED_SHARE * min(config.codebook, num_tokens):
        return None
    return (
        f"warning: the codebook has collapsed: {metrics['codes_used']:.0f} of {config.codebook:,} codes in use "
        f"(perplexity {metrics['perplexity']:.3g}): start again with a larger --balance (it is {config.balance:g}), a "
        "lower --base-lr or a smaller --codebook"
    )
