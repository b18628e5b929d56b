"""A detector on whole images: boxes and masks come back in the pixels of the image as it is stored."""

import numpy as np
import pytest
import torch
from torch import nn

from openmae.config import Preprocessing
from openmae.data.coco.run_lengths import mask_of
from openmae.errors import Fault
from openmae.inference.detection.whole_image import WholeImageDetector
from openmae.transfer.detection.detections import Detections

SIDE = 32
IMAGE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 16, SIDE)).astype(np.uint8))


class Fixed(nn.Module):
    """For a detector: finds the left half of each image, and a box that reaches beyond it."""

    def __init__(self, has_masks=True, **changes):
        super().__init__()
        self.has_masks, self.changes, self.seen = has_masks, changes, []

    def detect(self, images, sizes):
        self.seen.append((images, sizes))
        height, width = sizes[0].tolist()
        values = {
            "boxes": torch.tensor([[0.0, 0, width / 2, height], [width / 2, 0, width + 0.5, height]]),
            "labels": torch.tensor([1, 0]),
            "scores": torch.tensor([0.75, 0.5]),
            "masks": torch.stack([torch.ones(28, 28), torch.eye(28)]) if self.has_masks else None,
        }
        return [Detections(**values | self.changes)]


def detector_of(model):
    preprocessing = Preprocessing(
        channels=3, value_range=(0, 255), mean=(0.5,) * 3, std=(0.2,) * 3, image_size=(SIDE, SIDE)
    )
    return WholeImageDetector(model=model, preprocessing=preprocessing, device=torch.device("cpu"), precision="fp32")


def test_boxes_and_masks_are_of_the_stored_image():
    model = Fixed()
    found = detector_of(model).detect(IMAGE, (50, 101))
    assert found.boxes.tolist() == [[0, 0, 50.5, 50], [50.5, 0, 101, 50]]
    assert found.labels.tolist() == [1, 0]
    assert found.scores.tolist() == [0.75, 0.5]
    masks = [mask_of(mask) for mask in found.masks]
    assert masks[0].shape == (50, 101)
    assert masks[0][:, :50].all()
    assert not masks[0][:, 51:].any()
    assert not masks[1][:, :50].any()
    assert 0 < masks[1].sum() < 50 * 51 / 4
    assert detector_of(Fixed(has_masks=False)).detect(IMAGE, (50, 101)).masks is None


def test_the_image_lies_in_the_left_upper_corner_of_a_square_that_is_zero_elsewhere():
    model = Fixed()
    detector_of(model).detect(IMAGE, (16, SIDE))
    ((images, sizes),) = model.seen
    assert images.shape == (1, 3, SIDE, SIDE)
    assert sizes.tolist() == [[16, SIDE]]
    assert torch.allclose(images[0, :, :16], (IMAGE / 255 - 0.5) / 0.2, atol=1e-5)
    assert not images[0, :, 16:].any()


def test_those_above_a_score():
    found = detector_of(Fixed()).detect(IMAGE, (16, SIDE))
    assert found.above(0.5).labels.tolist() == [1, 0]
    likely = found.above(0.6)
    assert (likely.labels.tolist(), len(likely.masks), len(likely)) == ([1], 1, 1)
    assert len(found.above(2)) == 0


def test_nothing_found_is_no_error():
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
    for masks in (torch.zeros(0, 28, 28), None):
        found = detector_of(Fixed(**nothing, masks=masks)).detect(IMAGE, (16, SIDE))
        assert len(found) == 0
        assert found.masks == (None if masks is None else [])


@pytest.mark.parametrize("name", ["boxes", "scores"])
def test_what_is_not_finite_is_a_fault(name):
    values = {"boxes": torch.full((2, 4), torch.nan), "scores": torch.tensor([torch.inf, 0])}
    with pytest.raises(Fault, match="not finite"):
        detector_of(Fixed(**{name: values[name]})).detect(IMAGE, (16, SIDE))


def test_weights_that_are_not_finite_are_a_fault_though_nothing_is_found():
    model = Fixed(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), scores=torch.zeros(0), masks=None)
    model.weight = nn.Parameter(torch.tensor([1.0, torch.nan]))
    with pytest.raises(Fault, match="not finite"):
        detector_of(model).detect(IMAGE, (16, SIDE))


def test_too_little_memory_is_a_fault_and_another_error_is_not():
    model = Fixed()

    def full(images, sizes):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.detect = full
    with pytest.raises(Fault, match="out of memory with one image of 32x32 px"):
        detector_of(model).detect(IMAGE, (16, SIDE))
    model.detect = lambda images, sizes: torch.zeros(1) @ torch.zeros(2)
    with pytest.raises(RuntimeError, match="size"):
        detector_of(model).detect(IMAGE, (16, SIDE))
