"""Large-scale jitter: objects move as their pixels do, and what is no longer visible is dropped."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openmae.data.coco.annotations import Annotations
from openmae.data.coco.augment import NUM_BOX_UNIFORMS, DetectionAugmentation, crop_objects, fitted_size
from openmae.data.coco.shapes import bounds, rasterised
from openmae.data.masks.augment import nearest

FILL = (7.0,)
UNIFORMS = st.lists(st.floats(0, 0.999), min_size=NUM_BOX_UNIFORMS, max_size=NUM_BOX_UNIFORMS).map(np.array)
SHAPES = st.tuples(st.integers(16, 60), st.integers(16, 60))


def annotations(*polygons, is_crowd=None, boxes=None):
    points = [np.array(polygon, np.float64).reshape(-1, 2) for polygon in polygons]
    if boxes is None:
        boxes = [[*p.min(axis=0), *p.max(axis=0)] for p in points]
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    crowd = np.zeros(len(boxes), bool) if is_crowd is None else np.array(is_crowd)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return Annotations(boxes, np.arange(len(boxes)), crowd, areas, [[p.ravel().tolist()] for p in points])


def blob(chance, shape):
    """A polygon around a middle, of which no point lies outside of the image."""
    angles = np.sort(chance.uniform(0, 2 * np.pi, 8))
    middle = chance.uniform(0.2, 0.8, 2) * (shape[1], shape[0])
    radius = chance.uniform(0.15, 0.5) * min(shape)
    points = middle + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return points.clip(0, (shape[1], shape[0]))


@given(shape=SHAPES, draw=UNIFORMS, seed=st.integers(0, 99))
def test_masks_of_moved_polygons_are_moved_masks(shape, draw, seed):
    """Drawn at the crop, a polygon covers what its mask, drawn at the image's size and scaled, does; but for edges."""
    polygon = blob(np.random.default_rng(seed), shape)
    augmentation = DetectionAugmentation(kind="jitter", resize_range=(0.5, 2.0))
    image = rasterised([polygon], *shape)[..., None] * np.uint8(255)
    square, objects = augmentation(image, annotations(polygon), (32, 32), draw, FILL, True)
    height, width = objects.size
    is_white = (square[0, :height, :width] > 127).numpy()
    mask = objects.masks[0] > 0 if len(objects.masks) else np.zeros((32, 32), bool)
    assert not mask[height:].any()
    assert not mask[:, width:].any()
    assert (square[0, height:] == 7).all()
    assert (square[0, :, width:] == 7).all()
    differs = mask[:height, :width] != is_white
    scale = (
        (0.5 + 1.5 * draw[0]) * 32 / max(shape)
    )  # the side of a stored pixel: edges differ by about one of each kind
    assert not _eroded(differs, int(np.ceil((scale + 1) / 2))).any()


def _eroded(values, steps):
    for _ in range(steps):
        padded = np.pad(values, 1)
        values = values & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return values


@given(shape=SHAPES, draw=UNIFORMS, seed=st.integers(0, 99), with_masks=st.booleans())
def test_boxes_lie_in_the_image_and_bound_their_masks(shape, draw, seed, with_masks):
    chance = np.random.default_rng(seed)
    found = annotations(*(blob(chance, shape) for _ in range(4)), is_crowd=[False, True, False, False])
    augmentation = DetectionAugmentation(kind="jitter")
    _, objects = augmentation(np.zeros((*shape, 1), np.uint8), found, (32, 48), draw, FILL, with_masks)
    height, width = objects.size
    assert 1 not in objects.labels
    assert objects.boxes.dtype == np.float32
    assert len(objects.boxes) == len(objects.labels)
    left, top, right, bottom = objects.boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= width).all()
    assert (bottom <= height).all()
    assert (right - left >= 1).all()
    assert (bottom - top >= 1).all()
    if not with_masks:
        assert objects.masks is None
        return
    assert objects.masks.shape == (len(objects.labels), 32, 48)
    for mask, box in zip(objects.masks, objects.boxes.tolist(), strict=True):
        assert bounds(mask) == tuple(box)


@given(shape=SHAPES, seed=st.integers(0, 99), is_rle=st.booleans())
def test_mirrored_twice_is_as_before(shape, seed, is_rle):
    polygon = blob(np.random.default_rng(seed), shape)
    found = annotations(polygon)
    if is_rle:
        found.segmentations[0] = run_lengths_of(rasterised([polygon], *shape))
    box, inner = (2, 3, shape[0] - 4, shape[1] - 5), (24, 20)
    plain, mirrored = (crop_objects(found, box, inner, (24, 32), flip, True) for flip in (False, True))
    again = mirrored.boxes.copy()
    again[:, [0, 2]] = inner[1] - again[:, [2, 0]]
    np.testing.assert_array_equal(again, plain.boxes)
    np.testing.assert_array_equal(mirrored.masks[:, :, :20][:, :, ::-1], plain.masks[:, :, :20])
    assert not mirrored.masks[:, :, 20:].any()


def run_lengths_of(mask):
    flat = np.concatenate([[0], mask.T.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, mask.size]).tolist()}


def test_run_lengths_are_cropped_as_labels_are():
    mask = (np.random.default_rng(0).random((20, 30)) < 0.5).astype(np.uint8)
    found = annotations([0, 0, 30, 0, 30, 20])
    found.segmentations[0] = run_lengths_of(mask)
    objects = crop_objects(found, (2, 4, 10, 20), (20, 40), (48, 48), False, True)
    np.testing.assert_array_equal(objects.masks[0, :20, :40], nearest(mask, (2, 4, 10, 20), (20, 40)))


def test_without_augmentation_the_long_side_fits_the_square():
    image = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    found = annotations([4, 2, 24, 2, 24, 12, 4, 12])
    draws = [np.full(NUM_BOX_UNIFORMS, value) for value in (0.1, 0.9)]
    (one, objects), (other, _) = (
        DetectionAugmentation(kind="none")(image, found, (20, 20), draw, (1.0, 2.0, 3.0), True) for draw in draws
    )
    assert torch.equal(one, other)
    assert objects.size == (10, 20)
    assert objects.boxes.tolist() == [[2, 1, 12, 6]]
    assert objects.masks[0].sum() == 50
    assert one[:, 10:].float().mean(dim=(1, 2)).tolist() == [1, 2, 3]


def test_the_factor_is_uniform_and_the_crop_lies_anywhere():
    """The image's long side is the factor times the square's; what is larger is cropped at a random place."""
    image = np.zeros((30, 60, 1), np.uint8)
    image[..., 0] = np.arange(60) * 4
    augmentation = DetectionAugmentation(kind="jitter", resize_range=(0.5, 1.5))
    nothing = annotations(boxes=[])
    sizes = []
    for value in np.linspace(0, 0.999, 21).tolist():
        _, objects = augmentation(image, nothing, (64, 64), np.array([value, 0.9, 0, 0]), FILL, False)
        sizes.append(objects.size[1])
    np.testing.assert_allclose(sizes, np.minimum(64 * np.linspace(0.5, 1.5, 21), 64), atol=1)
    starts = [
        int(augmentation(image, nothing, (64, 64), np.array([0.999, 0.9, 0, u]), FILL, False)[0][0, 0, 0]) // 4
        for u in (0.0, 0.5, 0.999)
    ]
    assert starts == [0, 10, 20]
    flipped, _ = augmentation(image, nothing, (64, 64), np.array([0.0, 0.4, 0, 0]), FILL, False)
    assert flipped[0, 0, 0] > 200  # mirrored within its own part
    assert flipped[0, 0, 31] < 20
    assert (flipped[0, 0, 32:] == 7).all()


def test_what_is_out_of_sight_or_too_small_is_dropped():
    found = annotations([0, 0, 4, 0, 4, 4, 0, 4], [10, 10, 30, 10, 30, 30, 10, 30], [20, 20, 21, 20, 21, 39, 20, 39])
    for with_masks in (False, True):
        objects = crop_objects(found, (8, 8, 32, 32), (16, 16), (16, 16), False, with_masks)
        assert objects.labels.tolist() == [1]
        assert objects.boxes.tolist() == [[1, 1, 11, 11]]


def test_an_object_of_which_only_the_box_is_in_sight_is_dropped():
    """A frame around the crop has no pixel in it."""
    outer, inner = [0, 0, 40, 0, 40, 40, 0, 40], [10, 10, 10, 30, 30, 30, 30, 10]
    found = annotations([*outer, 0, 0, *inner, 10, 10])
    assert len(crop_objects(found, (12, 12, 16, 16), (16, 16), (16, 16), False, False).labels) == 1
    objects = crop_objects(found, (12, 12, 16, 16), (16, 16), (16, 16), False, True)
    assert len(objects.labels) == len(objects.boxes) == len(objects.masks) == 0


@pytest.mark.parametrize(
    ("shape", "size", "factor", "expected"),
    [
        ((480, 640), (1024, 1024), 1.0, (768, 1024)),
        ((640, 480), (1024, 1024), 2.0, (2048, 1536)),
        ((480, 640), (32, 32), 0.1, (2, 3)),
        ((2, 2000), (32, 32), 0.1, (1, 3)),
    ],
)
def test_fitted_size(shape, size, factor, expected):
    assert fitted_size(shape, size, factor) == expected


def test_crops_that_are_stretched_move_x_and_y_by_their_own_factors():
    found = annotations([4, 2, 8, 2, 8, 6, 4, 6])
    objects = crop_objects(found, (0, 0, 10, 20), (20, 20), (20, 20), False, True)
    assert objects.boxes.tolist() == [[4, 4, 8, 12]]
