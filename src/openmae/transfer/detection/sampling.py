"""Which anchors and regions of an image a step trains on, drawn from the image's key."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler


class KeyedSampler(BalancedPositiveNegativeSampler):
    """torchvision's sampler, with a generator for each image.

    torchvision's draws from the global generator of the device: what is drawn would depend on the device, on the number
    of processes and on where a run was interrupted.

    Attributes:
        generators: of the images of the next call, in their order; on the CPU, where all machines draw alike.
    """

    generators: Sequence[torch.Generator] = ()

    def __call__(
        self, matched_idxs: list[Float[Tensor, " n"] | Int64[Tensor, " n"]]
    ) -> tuple[list[UInt8[Tensor, " n"]], list[UInt8[Tensor, " n"]]]:
        """For each image, 1 where an element is drawn: among the positive ones (1 and above), and the negative (0)."""
        drawn_positive, drawn_negative = [], []
        for labels, generator in zip(matched_idxs, self.generators, strict=True):
            positive, negative = torch.where(labels >= 1)[0], torch.where(labels == 0)[0]
            num_positive = min(len(positive), int(self.batch_size_per_image * self.positive_fraction))
            drawn_positive.append(_drawn(labels, positive, num_positive, generator))
            drawn_negative.append(_drawn(labels, negative, self.batch_size_per_image - num_positive, generator))
        return drawn_positive, drawn_negative


def generators_of(keys: Int64[Tensor, " b"]) -> list[torch.Generator]:
    """A generator for each image, seeded with its key."""
    return [torch.Generator().manual_seed(key) for key in keys.tolist()]


def _drawn(
    labels: Tensor, candidates: Int64[Tensor, " k"], count: int, generator: torch.Generator
) -> UInt8[Tensor, " n"]:
    """1 at `count` of the candidates, or at all of them where there are fewer."""
    is_drawn = torch.zeros_like(labels, dtype=torch.uint8)
    chosen = torch.randperm(len(candidates), generator=generator)[:count]
    is_drawn[candidates[chosen.to(candidates.device)]] = 1
    return is_drawn
