"""Evaluation of a detector on real files: coordinates from image to metric, shares of processes, images that vanish."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from openmae.config import Preprocessing
from openmae.data.coco.open import open_detection
from openmae.errors import Fault, RequestError
from openmae.inference.detection.result import detection_metrics, merge_parts
from openmae.inference.detection.whole_image import ImageDetections
from openmae.machine.parallel import Processes
from openmae.machine.signals import EvaluationStopped
from openmae.run.quarantine import Quarantine
from openmae.tasks.detect.evaluation import DetectEvaluation, measure_images

from ...machine.threads import two_processes
from ...objects import write_objects

SIDE = 64  # of the model's square; images have 96 px
PREPROCESSING = Preprocessing(
    channels=3, value_range=(0, 255), mean=(0.5,) * 3, std=(0.2,) * 3, image_size=(SIDE, SIDE)
)


def by_colour(image, size):
    """A detector without a network: the connected regions of each colour, red, green and blue, in the small image."""
    values, scale = image.numpy().astype(int), np.tile([size[1] / image.shape[2], size[0] / image.shape[1]], 2)
    boxes, labels = [], []
    for k in range(3):
        regions, _ = ndimage.label((values.argmax(0) == k) & (values[k] > 120))
        for rows, columns in ndimage.find_objects(regions):
            if (columns.stop - columns.start) * (rows.stop - rows.start) > 16:
                boxes.append(np.array([columns.start, rows.start, columns.stop, rows.stop]) * scale)
                labels.append(k)
    return ImageDetections(np.reshape(boxes, (-1, 4)).astype(float), np.array(labels, np.int64), np.ones(len(boxes)))


@pytest.fixture(scope="module")
def data(objects):
    return open_detection(str(objects), background=1.0, max_pixels=10**6)


def measured(source, indices, workers=0):
    return measure_images(by_colour, source, indices, PREPROCESSING, workers=workers)


def test_what_is_found_in_the_small_image_fits_the_annotations(data):
    result = merge_parts([measured(data.train, range(len(data.train)))], data.classes, False)
    metrics = detection_metrics(result)
    assert metrics["box_ap50"] > 85  # rectangles of one colour that touch are taken for one
    assert metrics["images"] == 24
    assert {image.size for image in result.images} == {(96, 96), (96, 72)}
    assert (result.objects == data.objects).all()


def test_shares_of_processes_make_the_whole(data):
    whole = detection_metrics(merge_parts([measured(data.train, range(24))], data.classes, False))
    shares = [Processes(rank=rank, count=3).share(24) for rank in range(3)]
    parts = [measured(data.train, share) for share in reversed(shares)]
    assert detection_metrics(merge_parts(parts, data.classes, False)) == whole


@pytest.mark.slow
def test_readers_change_nothing(data):
    alone, read = (measured(data.train, range(12), workers) for workers in (0, 2))
    assert [image.name for image in alone.images] == [image.name for image in read.images]
    assert all(np.array_equal(a.found.boxes, b.found.boxes) for a, b in zip(alone.images, read.images, strict=True))


class ByColour(torch.nn.Module):
    pass


def evaluation_of(data, stop=lambda: False, processes=None, has_masks=False):
    plan = SimpleNamespace(
        preprocessing=PREPROCESSING,
        config=SimpleNamespace(precision="fp32", workers=0),
        shape=SimpleNamespace(has_masks=has_masks),
    )
    stop = SimpleNamespace(is_received=stop)
    evaluation = DetectEvaluation(plan, data, ByColour(), torch.device("cpu"), processes or Processes(), stop)
    evaluation.detector = SimpleNamespace(detect=by_colour)
    return evaluation


@pytest.mark.slow
def test_the_last_evaluation_is_the_final_one(data, tmp_path, monkeypatch):
    evaluation = evaluation_of(data)
    metrics = evaluation.evaluate(5)
    assert metrics["box_ap50"] > 85
    monkeypatch.setattr(evaluation, "_measure", None)
    quarantine = Quarantine(tmp_path)
    summary = evaluation.finish(tmp_path, 5, quarantine)
    assert summary["box_ap"] == metrics["box_ap"]
    assert (summary["report"], summary["report_images"], summary["train_images"], summary["classes"]) == (
        "val",
        8,
        24,
        3,
    )
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    assert {entry["category_id"] for entry in predictions} <= {3, 7, 11}
    assert {entry["image_id"] for entry in predictions} <= {10 * number + 5 for number in range(8)}
    assert (tmp_path / "pictures" / "detection.png").is_file()


@pytest.mark.slow
def test_an_image_that_vanished_is_named_and_not_replaced(tmp_path):
    data = open_detection(str(write_objects(tmp_path / "data")), background=1.0, max_pixels=10**6, max_bad=0.5)
    (tmp_path / "data" / "images" / "val" / "03.png").write_bytes(b"no image")
    evaluation = evaluation_of(data)
    metrics = evaluation.evaluate(1)
    assert (metrics["images"], metrics["unreadable"]) == (7, 1)
    ((name, _),) = evaluation.bad["val"].items()
    assert name.endswith("03.png")
    evaluation.finish(tmp_path, 1, Quarantine(tmp_path))
    (line,) = map(json.loads, (tmp_path / "quarantine.jsonl").read_text().splitlines())
    assert line["name"].endswith("03.png")
    for path in (tmp_path / "data" / "images" / "val").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(RequestError, match="none of 8 images can be read"):
        evaluation.evaluate(2)


def test_a_signal_ends_an_evaluation(data):
    with pytest.raises(EvaluationStopped):
        evaluation_of(data, stop=lambda: True).evaluate(1)


def test_only_the_first_process_measures_and_all_get_the_metrics(data):
    whole = evaluation_of(data).evaluate(1)
    evaluations = [evaluation_of(data, processes=one) for one in two_processes()]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda evaluation: evaluation.evaluate(1), evaluations))
    assert found == [whole, whole]
    assert evaluations[0].last[2].scores
    assert evaluations[1].last[2] is None


def test_a_process_that_fails_leaves_no_other_waiting(data):
    def damaged(image, size):
        raise Fault("the detector's boxes or scores are not finite")

    evaluations = [evaluation_of(data, processes=one) for one in two_processes()]
    evaluations[1].detector = SimpleNamespace(detect=damaged)
    with ThreadPoolExecutor(2) as threads:
        first, second = (threads.submit(evaluation.evaluate, 1) for evaluation in evaluations)
    assert isinstance(first.exception(), EvaluationStopped)
    assert isinstance(second.exception(), Fault)
