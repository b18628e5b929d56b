"""What fine-tuning does to whole batches: mixup and cutmix, random erasing, drop path (paper, table 9; docs/paper.md).

All chance comes from the samples' keys or from (seed, step), so neither micro-batches nor processes change a step.
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

SWITCH_PROBABILITY = 0.5  # the chance of cutmix where mixup would be possible too
ERASED_AREA = (0.02, 1 / 3)  # of the image
ERASED_ASPECT = (0.3, 1 / 0.3)  # height over width
ERASE_ATTEMPTS = 10

Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Mixup, cutmix and label smoothing of a batch, as timm's `Mixup(mode="batch")` does them.

    One λ, and for cutmix one box, serves the global batch of a step. The partner of sample 2j is sample 2j + 1 and the
    reverse: the stream's order is random, so up to the order of samples this is the reversed batch of the released
    code, and any even part of a batch can be mixed alone.

    Attributes:
        mixup, cutmix: α of the Beta distribution that λ is drawn from; 0 is off, with both one of them is drawn.
        label_smoothing: what is taken from the true class and spread evenly over all.
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
        """Mix a micro-batch: the mixed images and their soft targets. Several labels for an image are not smoothed.

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
        kept, box = self.draw(seed, step, (images.shape[2], images.shape[3]))
        if box is None:
            images = images * kept + _partners(images) * (1 - kept)
        else:
            top, bottom, left, right = box
            partners, images = _partners(images), images.clone()
            images[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
        return images, targets * kept + _partners(targets) * (1 - kept)

    def draw(self, seed: int, step: int, size: tuple[int, int]) -> tuple[float, Box | None]:
        """The λ of a step, and for cutmix the box that comes from the partner: its top, bottom, left and right.

        With a box, λ is the share of the image that it leaves, after it was clipped.
        """
        from timm.data.mixup import cutmix_bbox_and_lam

        with seeded_global_rng(int(hash_ints(seed, step).view(np.int64)[0]), "mix"):
            np.random.rand()  # timm asks here whether to mix at all, with probability 1
            is_cutmix = self.cutmix > 0
            if self.mixup and self.cutmix:
                is_cutmix = np.random.rand() < SWITCH_PROBABILITY
            alpha = self.cutmix if is_cutmix else self.mixup
            kept = float(np.random.beta(alpha, alpha))
            if not is_cutmix or kept == 1:
                return kept, None
            (top, bottom, left, right), kept = cutmix_bbox_and_lam(size, kept)
            return float(kept), (int(top), int(bottom), int(left), int(right))

    def _smoothed(self, labels: Tensor) -> Tensor:
        off = self.label_smoothing / self.num_classes
        return F.one_hot(labels, self.num_classes).float() * (1 - self.label_smoothing) + off


def _partners(values: Tensor) -> Tensor:
    """Samples 1, 0, 3, 2, … of an even batch."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def erase(images: Float[Tensor, "b c h w"], keys: Int64[Tensor, " b"], probability: float) -> Tensor:
    """Random erasing: put noise of mean 0 and deviation 1 into one box of some of the images, in place.

    As timm's `RandomErasing(mode="pixel")`. The noise is drawn on the CPU, so that no device changes it.

    Args:
        images: normalised, on any device; changed.
        keys: the samples', on the CPU.
        probability: of an image being erased.

    Returns:
        The same images.
    """
    height, width = images.shape[2:]
    chances = uniforms(keys.numpy(), 1 + 4 * ERASE_ATTEMPTS, "erase")
    boxes = [
        (i, box)
        for i, (decision, *numbers) in enumerate(chances.tolist())
        if decision < probability and (box := erased_box(height, width, numbers)) is not None
    ]
    if not boxes:
        return images
    of_sample = seeds(keys.numpy(), "erase").tolist()
    noise = [
        torch.randn(images.shape[1] * h * w, generator=torch.Generator().manual_seed(of_sample[i]))
        for i, (_, _, h, w) in boxes
    ]
    numbers = torch.cat(noise)  # one transfer for all, to a GPU from page-locked memory
    on_device = (numbers.pin_memory() if images.is_cuda else numbers).to(images, non_blocking=True)
    for (i, (top, left, h, w)), values in zip(boxes, on_device.split([len(n) for n in noise]), strict=True):
        images[i, :, top : top + h, left : left + w] = values.view(images.shape[1], h, w)
    return images


def erased_box(height: int, width: int, chance: Sequence[float]) -> Box | None:
    """Top, left, height, width of the box to erase; None if ten attempts do not fit the image (timm's algorithm).

    Args:
        chance: 4 · ERASE_ATTEMPTS uniform numbers: area, aspect, top, left of each attempt.
    """
    low, high = math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1])
    for start in range(0, 4 * ERASE_ATTEMPTS, 4):
        area_chance, aspect_chance, top_chance, left_chance = chance[start : start + 4]
        area = height * width * (ERASED_AREA[0] + area_chance * (ERASED_AREA[1] - ERASED_AREA[0]))
        aspect = math.exp(low + aspect_chance * (high - low))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            return int(top_chance * (height - h + 1)), int(left_chance * (width - w + 1)), h, w
    return None


def drop_path_masks(keys: Int64[Tensor, " b"], rates: Sequence[float]) -> Float[Tensor, "depth 2 b"]:
    """What each branch of each block is multiplied by, for each sample: 0 where dropped, else 1 / (1 − rate).

    Args:
        keys: the samples', on the CPU.
        rates: the chance of being dropped, one for each block; both of its branches have it.
    """
    for rate in rates:
        check_range("--drop-path", rate, 0, 1, open_high=True)
    chances = torch.from_numpy(uniforms(keys.numpy(), 2 * len(rates), "drop-path")).view(-1, len(rates), 2)
    dropped = torch.tensor(rates, dtype=torch.float64).view(-1, 1, 1)
    return ((chances.permute(1, 2, 0) >= dropped) / (1 - dropped)).float()
