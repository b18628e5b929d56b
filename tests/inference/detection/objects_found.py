"""Random images with true and found objects, for tests of evaluation and of pictures."""

import numpy as np

from openmae.data.coco.annotations import Annotations
from openmae.data.coco.run_lengths import encoded, run_lengths_of
from openmae.inference.detection.metrics import MeasuredImage
from openmae.inference.detection.whole_image import ImageDetections


def random_boxes(chance, count, size, largest=1.0):
    """(count, 4) boxes within an image, of an area and with corners at hundredths of a pixel."""
    height, width = size
    low = chance.random((count, 2)) * [width - 2, height - 2]
    extent = 1 + chance.random((count, 2)) * largest * ([width, height] - low - 1)
    return np.concatenate([low, np.minimum(low + extent, [width, height])], axis=1).round(2)


def random_polygon(chance, box):
    """An ellipse within the box, of a few corners."""
    angles = np.sort(chance.random(int(chance.integers(3, 12)))) * 2 * np.pi
    centre, radius = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    return (centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)).ravel().round(2).tolist()


def noisy_mask(chance, box, size):
    """The run lengths of an ellipse in the box whose edge is ragged."""
    left, top, right, bottom = (int(edge) for edge in (*np.floor(box[:2]), *np.ceil(box[2:])))
    rows, columns = np.mgrid[top:bottom, left:right] + 0.5
    centre, radius = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    distance = ((columns - centre[0]) / radius[0]) ** 2 + ((rows - centre[1]) / radius[1]) ** 2
    return encoded(distance < 1 + 0.3 * chance.standard_normal(distance.shape), left, top, size)


def random_truth(chance, size, count, num_classes, crowd_share=0.15, with_masks=True):
    boxes = random_boxes(chance, count, size)
    is_crowd = chance.random(count) < crowd_share
    kinds = chance.integers(0, 3, count)
    segmentations = []
    for box, kind in zip(boxes, kinds, strict=True):
        polygon = [random_polygon(chance, box)]
        coded = noisy_mask(chance, box, size)
        segmentations.append([polygon, coded, run_lengths_of(polygon, size)][kind])
    return Annotations(
        boxes=boxes,
        labels=chance.integers(0, num_classes, count),
        is_crowd=is_crowd,
        areas=((boxes[:, 2:] - boxes[:, :2]).prod(1) * chance.uniform(0.5, 1, count)).round(2),
        segmentations=segmentations if with_masks else [],
    )


def random_found(chance, truth, size, num_extra, num_classes, with_masks=True):
    """Some of the true objects shifted a little, some twice, some as another class, and some that are not there."""
    near = truth.boxes[chance.random(len(truth)) < 0.7]
    labels = truth.labels[: len(near)] if len(near) == len(truth) else chance.integers(0, num_classes, len(near))
    sizes = np.concatenate([near[:, 2:] - near[:, :2]] * 2, axis=1)
    near = near + sizes * chance.normal(0, 0.06, near.shape)
    boxes = np.concatenate([near, near[: len(near) // 3] + 0.5, random_boxes(chance, num_extra, size)])
    labels = np.concatenate([labels, labels[: len(near) // 3], chance.integers(0, num_classes, num_extra)])
    height, width = size
    boxes = boxes.clip(0, [width, height, width, height]).round(2)
    has_area = (boxes[:, 2:] - boxes[:, :2]).min(1, initial=np.inf) > 0.5
    boxes, labels = boxes[has_area], labels[has_area]
    scores = chance.integers(0, 12, len(boxes)) / 12  # many ties
    order = np.argsort(-scores, kind="stable")
    masks = [noisy_mask(chance, boxes[k], size) for k in order] if with_masks else None
    return ImageDetections(boxes[order], labels[order].astype(np.int64), scores[order], masks)


def random_image(chance, index, num_classes=4, most=12, largest_side=160, with_masks=True):
    """A measured image; one in five has no objects, and in one in five nothing is found."""
    size = tuple(int(side) for side in chance.integers(20, largest_side, 2))
    count = 0 if chance.random() < 0.2 else int(chance.integers(1, most))
    truth = random_truth(chance, size, count, num_classes, with_masks=with_masks)
    extra = int(chance.integers(0, most))
    found = random_found(chance, truth, size, extra, num_classes, with_masks)
    if chance.random() < 0.2:
        found = found.above(2)
    return MeasuredImage(index=index, name=f"{index:04}.jpg", size=size, truth=truth, found=found)
