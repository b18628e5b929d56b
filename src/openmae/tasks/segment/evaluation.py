"""Evaluation of a segmenter: while it trains, and at the end; every image once, whole, at its own size."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmae.config import Preprocessing
from openmae.data.annotated.whole_images import read_whole, whole_images
from openmae.data.decoding.decode import BadImage
from openmae.data.masks.augment import nearest
from openmae.data.masks.segmentation import SegmentationData
from openmae.data.masks.source import Masked
from openmae.data.preprocess import normalise, to_unit
from openmae.inference.segmentation import WholeImageSegmenter, Windows
from openmae.inference.segmentation_metrics import ConfusionMatrix
from openmae.inference.segmentation_result import (
    ImageScore,
    SegmentationResult,
    merge_results,
    segmentation_metrics,
)
from openmae.machine.parallel import Processes
from openmae.machine.shared_work import gather_work
from openmae.machine.signals import StopRequest
from openmae.pictures.segmentation_sheet import SegmentedImage
from openmae.pictures.sheet import to_picture
from openmae.planning.segment import SegmentPlan
from openmae.run.quarantine import Quarantine
from openmae.tasks.segment.report import write_report
from openmae.transfer.segmentation.segmenter import Segmenter

MIN_IMAGES = 16  # of fewer images, readers take longer to start than to read


class SegmentEvaluation:
    """Class maps of the validation images and the final split, counted in one confusion matrix.

    Where these are the same images, the last evaluation is the final one.
    """

    def __init__(
        self,
        plan: SegmentPlan,
        data: SegmentationData,
        model: Segmenter,
        device: torch.device,
        processes: Processes,
        stop: StopRequest,
    ) -> None:
        self.plan, self.data, self.model = plan, data, model
        self.processes, self.stop = processes, stop
        c = plan.config
        self.segmenter = WholeImageSegmenter(
            model=model,
            preprocessing=plan.preprocessing,
            windows=Windows.from_settings(c.inference, c.stride, c.size),
            device=device,
            precision=c.precision,
        )
        self.last: tuple[int, SegmentationResult] | None = None  # the step, where it was the final split
        self.bad: dict[str, dict[str, str]] = {}  # by split, of its last evaluation: name and reason

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics by name after a step.

        Where the final split is another one, their names begin with `val_`, or with `held_out_` for a split of train.
        """
        data = self.data
        if data.validation is None:
            result = self._measure(data.test, data.final_split)
            self.last = step, result
            return segmentation_metrics(result)
        split, prefix = ("split of train", "held_out_") if data.is_validation_split else ("val", "val_")
        return segmentation_metrics(self._measure(data.validation, split), prefix)

    def finish(self, run: Path, step: int, quarantine: Quarantine) -> dict[str, Any]:
        """Measure on the final split after the last step, and write the report; what the summary says of it."""
        self.model.eval()
        data = self.data
        known = self.last is not None and self.last[0] == step
        result = self.last[1] if self.last is not None and known else self._measure(data.test, data.final_split)
        if self.processes.is_first:
            # Those that were left out before training are named too, also of a split that nothing is measured on.
            for split in sorted({"val", "test"} | self.bad.keys()):
                quarantine.replace_part(split, {**data.bad.get(split, {}), **self.bad.get(split, {})})
            write_report(run, result, self.picture, f"{run.name}, {data.final_split}")
        counts = {"report": data.final_split, "report_images": len(data.test)}
        return {**segmentation_metrics(result), **counts, "train_images": len(data.train), "classes": len(data.classes)}

    def picture(self, index: int) -> SegmentedImage:
        """An image of the final split, its labels and what the model says, at the size that the model sees.

        Raises:
            BadImage: it can no longer be read.
        """
        whole, p = read_whole(self.data.test, self.plan.preprocessing, index, with_labels=True), self.plan.preprocessing
        if isinstance(whole.image, str):
            raise BadImage(whole.image)
        assert whole.labels is not None
        image = np.asarray(to_picture(to_unit(normalise(whole.image[None], p), p)[0]))
        size = (image.shape[0], image.shape[1])
        truth = nearest(whole.labels, (0, 0, *whole.size), size)
        return SegmentedImage(
            image=image, truth=truth, prediction=self.segmenter.class_map(whole.image, size).cpu().numpy()
        )

    def _measure(self, source: Masked, split: str) -> SegmentationResult:
        """Segment all images of a split; unreadable ones are left out and named.

        Each process segments its share, and every process gets the result of all.

        Raises:
            EvaluationStopped: a signal came to one of the processes, or another one failed.
            Fault: memory is short, or the operating system killed reader processes of this one, twice.
        """
        share = self.processes.share(len(source))

        def measure() -> SegmentationResult:
            return measure_images(
                self.segmenter.class_map,
                source,
                share,
                self.plan.preprocessing,
                self.data.classes,
                workers=self.plan.config.workers if len(share) >= MIN_IMAGES else 0,
                should_stop=self.stop.is_received,
            )

        result = merge_results(gather_work(measure, self.processes, self.stop))
        self.bad[split] = result.bad
        return result


def measure_images(
    class_map_of: Callable[[Tensor, tuple[int, int]], Tensor],
    source: Masked,
    indices: range | NDArray[np.int64],
    preprocessing: Preprocessing,
    classes: tuple[str, ...],
    *,
    workers: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> SegmentationResult:
    """Segment the images at `indices`, each whole, and count their pixels at their own size.

    Args:
        class_map_of: from an image, as `whole_images` gives it, and its own size to the class of each pixel.

    Raises:
        Fault: an image does not fit into memory, or the operating system killed the reader processes, twice.
    """
    matrix, scores, bad = ConfusionMatrix.empty(len(classes)), list[ImageScore](), dict[str, str]()
    images = whole_images(source, preprocessing, indices, workers=workers, with_labels=True, should_stop=should_stop)
    with closing(images):
        for whole in images:
            if isinstance(whole.image, str):
                bad[whole.name] = whole.image
                continue
            assert whole.labels is not None
            predicted = class_map_of(whole.image, whole.size)
            truth = torch.from_numpy(whole.labels).to(predicted.device)
            of_image = ConfusionMatrix.count(truth, predicted, len(classes)).cpu()
            matrix += of_image
            scores.append(ImageScore.of(whole.index, whole.name, of_image))
    return SegmentationResult(matrix=matrix, images=tuple(scores), bad=bad, classes=classes)
