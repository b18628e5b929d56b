"""Mask R-CNN on the maps of any pyramid: region proposals, then what is in each region.

He et al., Mask R-CNN, 2017. Of torchvision's modules, set to the conventions of `config/detector_shape.py`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from openmae.config import DetectorShape
from openmae.transfer.detection.detections import Detections
from openmae.transfer.detection.proposals import RegionProposals, Target
from openmae.transfer.detection.regions import RegionHeads
from openmae.transfer.detection.sampling import generators_of

if TYPE_CHECKING:  # transfer knows no data: it takes this as it is
    from openmae.data.instances import Instances


class MaskRCNN(nn.Module):
    """Region proposal network and heads on five maps of equal width, finest first."""

    def __init__(self, shape: DetectorShape) -> None:
        super().__init__()
        self.rpn = RegionProposals(shape.head_width, shape.encoder.patch_size, shape.conventions)
        self.regions = RegionHeads(shape)

    def forward(
        self, maps: Sequence[Float[Tensor, "b w _ _"]], instances: "Instances", keys: Int64[Tensor, " b"]
    ) -> dict[str, Float[Tensor, " b"]]:
        """The losses of each image; see `Detector.forward`."""
        generators = generators_of(keys)  # of an image, for its anchors, then for its regions
        self.rpn.fg_bg_sampler.generators = self.regions.fg_bg_sampler.generators = generators
        targets = targets_of(instances)
        proposals, logits, moves, anchors = self.rpn.propose(maps, pairs_of(instances.sizes))
        with torch.autocast(logits.device.type, enabled=False):
            losses = self.rpn.losses(logits, moves, anchors, targets)
        return {**losses, **self.regions.losses(maps, proposals, targets)}

    def detect(self, maps: Sequence[Float[Tensor, "b w _ _"]], sizes: Int64[Tensor, "b 2"]) -> list[Detections]:
        """The objects of each image; see `Detector.detect`."""
        pairs = pairs_of(sizes)
        proposals = self.rpn.propose(maps, pairs)[0]
        return self.regions.detect(maps, proposals, pairs)


def targets_of(instances: "Instances") -> list[Target]:
    """The objects of each image, their labels from 1."""
    counts = instances.counts.tolist()
    boxes, labels = instances.boxes.float().split(counts), (instances.labels + 1).split(counts)
    masks: Sequence[Tensor | None] = [None] * len(counts) if instances.masks is None else instances.masks.split(counts)
    return [Target(*parts) for parts in zip(boxes, labels, masks, strict=True)]


def pairs_of(sizes: Int64[Tensor, "b 2"]) -> list[tuple[int, int]]:
    """Height and width of each image."""
    return [(height, width) for height, width in sizes.tolist()]
