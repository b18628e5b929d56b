"""The cost of a segmentation model against what is measured."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from openmae.config import SegmenterShape, ViTShape
from openmae.transfer.segmentation.segmenter import Segmenter
from openmae.transfer.segmentation.segmenter_cost import segmenter_activation_bytes, segmenter_parameters

from .segmenters import make_segmenter, segmenter_shape


@pytest.mark.parametrize("relative_positions", ["none", "bias"])
def test_parameters_are_counted(relative_positions):
    shape = segmenter_shape(relative_positions=relative_positions)
    assert segmenter_parameters(shape) == sum(p.numel() for p in make_segmenter(shape).parameters())


def kept_bytes(shape, batch, bytes_per_value, frozen):
    """What a training step keeps for its backward pass, parameters left out, and the logits that the losses read."""
    model = Segmenter.from_shape(shape)
    if frozen:
        model.train_only_heads()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, (height, width) = {}, shape.encoder.image_size

    def pack(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return value

    images = torch.randn(batch, 3, height, width)
    scales = {
        "branch_scales": torch.ones(shape.encoder.depth, 2, batch),
        "channel_scales": torch.ones(batch, shape.head_width + shape.auxiliary_width),
    }
    is_16_bit = bytes_per_value == 2
    with saved_tensors_hooks(pack, lambda value: value), torch.autocast("cpu", torch.bfloat16, enabled=is_16_bit):
        logits = [model.at_size(x, height, width) for x in model(images, **scales)]
        labels = torch.zeros(batch, height, width, dtype=torch.long)
        losses = [F.cross_entropy(x, labels) for x in logits]  # kept alive: their graphs hold the tensors
    assert len(losses) == 2
    return sum(s.nbytes() for s in kept.values()) + sum(x.untyped_storage().nbytes() for x in logits)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("bytes_per_value", [4, 2])
@pytest.mark.parametrize("relative_positions", ["none", "bias"])
@pytest.mark.parametrize(
    ("size", "width", "head_width", "num_classes"), [((64, 96), 48, 48, 8), ((96, 96), 64, 24, 30)]
)
def test_activation_bytes_are_near_what_is_kept(
    size, width, head_width, num_classes, relative_positions, bytes_per_value, frozen
):
    """Ratios measured with a trained encoder: 1.03 in float32, .94 to 1.13 in bf16."""
    vit = {"channels": 3, "width": width, "depth": 4, "num_heads": 4, "relative_positions": relative_positions}
    shape = SegmenterShape(
        encoder=ViTShape(image_size=size, patch_size=8, **vit),
        num_classes=num_classes,
        pyramid_blocks=(0, 1, 2, 3),
        head_width=head_width,
        auxiliary_width=32,
    )
    measured = kept_bytes(shape, 3, bytes_per_value, frozen) - kept_bytes(shape, 2, bytes_per_value, frozen)
    estimate = segmenter_activation_bytes(shape, bytes_per_value, frozen=frozen)
    assert 0.77 < estimate / measured < 1.3
