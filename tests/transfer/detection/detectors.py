"""Small detectors and their images for tests."""

import torch

from openmae.config import Conventions, DetectorShape, ViTShape
from openmae.data.instances import Instances
from openmae.transfer.detection.detector import Detector

SIDE = 64


def detector_shape(pyramid="table-4", has_masks=True, patch_size=8, side=SIDE, conventions=None, **changes):
    encoder = {"class_token": False, "window_size": 3, "global_blocks": (1, 3), "relative_positions": "bias"}
    encoder = {**encoder, "shares_relative_positions": True, **changes.pop("encoder", {})}
    vit = {"image_size": (side, side), "patch_size": patch_size, "channels": 3, "width": 16, "depth": 4, "num_heads": 2}
    settings = {"num_classes": 3, "head_width": 12, "box_width": 20, "roi_samples": 16, **changes}
    return DetectorShape(
        encoder=ViTShape(**{**vit, **encoder}),
        has_masks=has_masks,
        pyramid=pyramid,
        pyramid_blocks=settings.pop("pyramid_blocks", (0, 1, 2, 3) if pyramid == "table-4" else (3,)),
        conventions=conventions or Conventions(head_norm="layer"),
        **settings,
    )


def make_detector(shape=None, seed=0):
    torch.manual_seed(seed)
    return Detector.from_shape(detector_shape() if shape is None else shape)


def instances_of(counts, side=SIDE, num_classes=3, seed=0, with_masks=True, sizes=None):
    """Objects of images at random, so many for each."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    sizes = torch.tensor(sizes or [[side, side]] * len(counts))
    limits = sizes.flip(1).repeat(1, 2).repeat_interleave(torch.tensor(counts), 0)
    corners = torch.rand(total, 2, 2, generator=generator).sort(1).values  # (T, 2, x and y)
    boxes = corners.flatten(1) * limits
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 4).minimum(limits[:, 2:])
    boxes[:, :2] = torch.minimum(boxes[:, :2], boxes[:, 2:] - 4)
    labels = torch.randint(num_classes, (total,), generator=generator)
    masks = (torch.rand(total, side, side, generator=generator) > 0.3).to(torch.uint8) if with_masks else None
    return Instances(boxes, labels, torch.tensor(counts), sizes, masks)


def images_of(count, side=SIDE, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def keys_of(count, seed=0):
    return torch.arange(count) * 7919 + seed


def part_of(instances, start, stop):
    """The instances of some of the images."""
    ends = [0, *instances.counts.cumsum(0).tolist()]
    own, images = slice(ends[start], ends[stop]), slice(start, stop)
    masks = None if instances.masks is None else instances.masks[own]
    return Instances(
        instances.boxes[own], instances.labels[own], instances.counts[images], instances.sizes[images], masks
    )
