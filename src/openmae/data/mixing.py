"""Regularisation of batches: mixup, cutmix, random erasing, drop path, dropout (paper, table 9; docs/paper.md).

All randomness derives from the samples' keys or from (seed, step), so neither micro-batches nor the number of
processes change a step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from openmae.config import check_range
from openmae.data.randomness import hash_ints, seeded_global_rng, seeds, uniforms
from openmae.errors import RequestError

SWITCH_PROBABILITY = 0.5  # of cutmix, where mixup is on too (timm's `switch_prob`)
ERASED_AREA = (0.02, 1 / 3)  # of the image
ERASED_ASPECT = (0.3, 1 / 0.3)  # height over width
ERASE_ATTEMPTS = 10

Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Mixup, cutmix and label smoothing of a batch, as in timm's `Mixup(mode="batch")`.

    The global batch of a step has one λ and, for cutmix, one box. Samples 2j and 2j + 1 are mixed with each other: the
    order of samples is random, so this equals mixing with the reversed batch, as the released code does, and any
    micro-batch of even size can be mixed alone.

    Attributes:
        mixup, cutmix: α of the Beta distribution that λ is drawn from; 0 is off; with both, one is chosen at random.
        label_smoothing: the probability that is taken from the true class and spread evenly over all classes.
        num_classes: K.
    """

    mixup: float
    cutmix: float
    label_smoothing: float
    num_classes: int

    def __post_init__(self) -> None:
        check_range("--mixup", self.mixup, 0)
        check_range("--cutmix", self.cutmix, 0)
        check_range("--label-smoothing", self.label_smoothing, 0, 1, open_high=True)
        check_range("the number of classes", self.num_classes, 1)

    def __call__(
        self,
        images: Float[Tensor, "b c h w"],
        labels: Int64[Tensor, " b"] | Float[Tensor, "b k"],
        *,
        seed: int,
        step: int,
    ) -> tuple[Tensor, Float[Tensor, "b k"]]:
        """Mix a micro-batch: the mixed images and their soft targets. Multi-label targets are not smoothed.

        Raises:
            RequestError: an odd number of images.
        """
        targets = labels.to(torch.float32) if labels.ndim == 2 else self._smoothed(labels)
        if not (self.mixup or self.cutmix):
            return images, targets
        if len(images) % 2:
            raise RequestError(
                f"mixup and cutmix mix pairs of images, a micro-batch has {len(images)}: give an even --batch-size and "
                "--micro-batch-size for each process, or turn off --mixup and --cutmix"
            )
        lam, box = self.draw(seed, step, (images.shape[2], images.shape[3]))
        if box is None:
            images = images * lam + _partners(images) * (1 - lam)
        else:
            top, bottom, left, right = box
            partners, images = _partners(images), images.clone()
            images[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
        return images, targets * lam + _partners(targets) * (1 - lam)

    def draw(self, seed: int, step: int, size: tuple[int, int]) -> tuple[float, Box | None]:
        """λ of a step and, for cutmix, the box that is taken from the partner: its top, bottom, left and right.

        With a box, λ is the fraction of the image outside of it, after the box was clipped to the image.
        """
        from timm.data.mixup import cutmix_bbox_and_lam

        with seeded_global_rng(int(hash_ints(seed, step).view(np.int64)[0]), "mix"):
            np.random.rand()  # timm draws here whether to mix at all, with probability 1
            is_cutmix = self.cutmix > 0
            if self.mixup and self.cutmix:
                is_cutmix = np.random.rand() < SWITCH_PROBABILITY
            alpha = self.cutmix if is_cutmix else self.mixup
            lam = float(np.random.beta(alpha, alpha))
            if not is_cutmix or lam == 1:
                return lam, None
            (top, bottom, left, right), lam = cutmix_bbox_and_lam(size, lam)
            return float(lam), (int(top), int(bottom), int(left), int(right))

    def _smoothed(self, labels: Tensor) -> Tensor:
        off = self.label_smoothing / self.num_classes
        return F.one_hot(labels, self.num_classes).float() * (1 - self.label_smoothing) + off


def _partners(values: Tensor) -> Tensor:
    """The batch in the order 1, 0, 3, 2, …; its size is even."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def erase(images: Float[Tensor, "b c h w"], keys: Int64[Tensor, " b"], probability: float) -> Tensor:
    """Random erasing: fill one box of some of the images with noise of mean 0 and deviation 1, in place.

    As timm's `RandomErasing(mode="pixel")`. The noise is drawn on the CPU, so that it does not depend on the device.

    Args:
        images: normalised, on any device; changed in place.
        keys: the samples' keys, on the CPU.
        probability: that an image is erased.

    Returns:
        The same images.
    """
    height, width = images.shape[2:]
    draws = uniforms(keys.numpy(), 1 + 4 * ERASE_ATTEMPTS, "erase")
    boxes = [
        (i, box)
        for i, (decision, *box_draws) in enumerate(draws.tolist())
        if decision < probability and (box := erased_box(height, width, box_draws)) is not None
    ]
    if not boxes:
        return images
    noise_seeds = seeds(keys.numpy(), "erase").tolist()
    noise = [
        torch.randn(images.shape[1] * h * w, generator=torch.Generator().manual_seed(noise_seeds[i]))
        for i, (_, _, h, w) in boxes
    ]
    together = torch.cat(noise)  # one transfer for all, to a GPU from page-locked memory
    on_device = (together.pin_memory() if images.is_cuda else together).to(images, non_blocking=True)
    for (i, (top, left, h, w)), values in zip(boxes, on_device.split([len(n) for n in noise]), strict=True):
        images[i, :, top : top + h, left : left + w] = values.view(images.shape[1], h, w)
    return images


def erased_box(height: int, width: int, draws: Sequence[float]) -> Box | None:
    """Top, left, height, width of the box to erase; None if ten attempts do not fit the image (timm's algorithm).

    Args:
        draws: 4 · ERASE_ATTEMPTS uniform random numbers: area, aspect, top, left of each attempt.
    """
    low, high = math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1])
    for start in range(0, 4 * ERASE_ATTEMPTS, 4):
        u_area, u_aspect, u_top, u_left = draws[start : start + 4]
        area = height * width * (ERASED_AREA[0] + u_area * (ERASED_AREA[1] - ERASED_AREA[0]))
        aspect = math.exp(low + u_aspect * (high - low))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            return int(u_top * (height - h + 1)), int(u_left * (width - w + 1)), h, w
    return None


def drop_path_masks(keys: Int64[Tensor, " b"], rates: Sequence[float]) -> Float[Tensor, "depth 2 b"]:
    """Stochastic depth: the factor of each residual branch, for each sample: 0 where dropped, else 1 / (1 − rate).

    Args:
        keys: the samples' keys, on the CPU.
        rates: each block's probability of being dropped, for each of its two branches (attention, MLP).
    """
    for rate in rates:
        check_range("--drop-path", rate, 0, 1, open_high=True)
    draws = torch.from_numpy(uniforms(keys.numpy(), 2 * len(rates), "drop-path")).view(-1, len(rates), 2)
    probabilities = torch.tensor(rates, dtype=torch.float64).view(-1, 1, 1)
    return ((draws.permute(1, 2, 0) >= probabilities) / (1 - probabilities)).float()


def drop_path_rates(rate: float, depth: int, num_blocks: float | None = None) -> list[float]:
    """The drop-path rate of each block: linear from 0 to `rate` over depth; frozen blocks drop nothing.

    Args:
        num_blocks: how many of the last blocks are trained, half ones counted whole; None: all.
    """
    first = 0 if num_blocks is None else depth - math.ceil(num_blocks)
    rates = [rate * block / max(depth - 1, 1) for block in range(depth)]
    return [0.0 if block < first else value for block, value in enumerate(rates)]


def channel_masks(keys: Int64[Tensor, " b"], num_channels: int, rate: float) -> Float[Tensor, "b c"]:
    """Dropout of whole channels: the factor of each, for each sample: 0 where dropped, else 1 / (1 − rate).

    Args:
        keys: the samples' keys, on the CPU.
    """
    draws = torch.from_numpy(uniforms(keys.numpy(), num_channels, "dropout"))
    return ((draws >= rate) / (1 - rate)).float()
