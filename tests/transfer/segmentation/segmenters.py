"""Small segmentation models for tests."""

import torch

from openmae.config import SegmenterShape, ViTShape
from openmae.transfer.segmentation.segmenter import Segmenter


def segmenter_shape(patch_size=4, image_size=(16, 24), **encoder):
    vit = {"channels": 3, "width": 16, "depth": 4, "num_heads": 2, **encoder}
    return SegmenterShape(
        encoder=ViTShape(image_size=image_size, patch_size=patch_size, **vit),
        num_classes=5,
        pyramid_blocks=(0, 1, 2, 3),
        head_width=12,
        auxiliary_width=8,
    )


def make_segmenter(shape=None, seed=0):
    torch.manual_seed(seed)
    return Segmenter.from_shape(segmenter_shape() if shape is None else shape)
