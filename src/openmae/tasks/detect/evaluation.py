"""Evaluation of a detector: while it trains, and at the end; every image once, whole, at its own size."""

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
from openmae.data.coco.augment import fitted_size
from openmae.data.coco.detection_data import DetectionData
from openmae.data.coco.source import Annotated
from openmae.data.decoding.decode import BadImage
from openmae.data.preprocess import normalise, to_unit
from openmae.errors import Fault, RequestError
from openmae.inference.detection.metrics import MeasuredImage
from openmae.inference.detection.result import DetectionPart, DetectionResult, detection_metrics, merge_parts
from openmae.inference.detection.whole_image import ImageDetections, WholeImageDetector
from openmae.machine.parallel import Processes
from openmae.machine.shared_work import gather_work
from openmae.machine.signals import StopRequest
from openmae.pictures.sheet import to_picture
from openmae.planning.detect import DetectPlan
from openmae.run.quarantine import Quarantine
from openmae.tasks.detect.report import write_report
from openmae.transfer.detection.detector import Detector

MIN_IMAGES = 16  # of fewer images, readers take longer to start than to read


class DetectEvaluation:
    """Objects found in the validation images and the final split, and their average precision.

    Where these are the same images, the last evaluation is the final one.
    """

    def __init__(
        self,
        plan: DetectPlan,
        data: DetectionData,
        model: Detector,
        device: torch.device,
        processes: Processes,
        stop: StopRequest,
    ) -> None:
        self.plan, self.data, self.model = plan, data, model
        self.processes, self.stop = processes, stop
        self.detector = WholeImageDetector(
            model=model, preprocessing=plan.preprocessing, device=device, precision=plan.config.precision
        )
        # The step and the metrics, where it was the final split; the result, in the first process alone.
        self.last: tuple[int, dict[str, float], DetectionResult | None] | None = None
        self.bad: dict[str, dict[str, str]] = {}  # by split, of its last evaluation: name and reason

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics by name after a step.

        Where the final split is another one, their names begin with `val_`, or with `held_out_` for a split of train.
        """
        data = self.data
        if data.validation is None:
            metrics, result = self._measure(data.test, data.final_split)
            self.last = step, metrics, result
            return metrics
        split, prefix = ("split of train", "held_out_") if data.is_validation_split else ("val", "val_")
        metrics, _ = self._measure(data.validation, split)
        return {prefix + name: value for name, value in metrics.items()}

    def finish(self, run: Path, step: int, quarantine: Quarantine) -> dict[str, Any]:
        """Measure on the final split after the last step, and write the report; what the summary says of it."""
        self.model.eval()
        data = self.data
        if self.last is not None and self.last[0] == step:
            _, metrics, result = self.last
        else:
            metrics, result = self._measure(data.test, data.final_split)
        if self.processes.is_first:
            assert result is not None
            # Those that were left out before training are named too, also of a split that nothing is measured on.
            for split in sorted({"val", "test"} | self.bad.keys()):
                quarantine.replace_part(split, {**data.bad.get(split, {}), **self.bad.get(split, {})})
            write_report(
                run,
                result,
                self.picture,
                f"{run.name}, {data.final_split}",
                image_ids=[data.test.image_id(image.index) for image in result.images],
                category_ids=data.category_ids,
            )
        counts = {"report": data.final_split, "report_images": len(data.test)}
        return {**metrics, **counts, "train_images": len(data.train), "classes": len(data.classes)}

    def picture(self, index: int) -> NDArray[np.uint8]:
        """An image of the final split at the size that the model sees: (h, w, 3).

        Raises:
            BadImage: it can no longer be read.
        """
        p = self.plan.preprocessing
        whole = read_whole(self.data.test, p, index, scaling=fitted_size)
        if isinstance(whole.image, str):
            raise BadImage(whole.image)
        return np.asarray(to_picture(to_unit(normalise(whole.image[None], p), p)[0]))

    def _measure(self, source: Annotated, split: str) -> tuple[dict[str, float], DetectionResult | None]:
        """Find the objects of all images of a split; unreadable ones are left out and named.

        Each process searches its share. The first one measures them all, and every process gets the metrics.

        Returns:
            The metrics; the result itself in the first process, elsewhere None.

        Raises:
            RequestError: no image can be read, or there is no object in any.
            EvaluationStopped: a signal came to one of the processes, or another one failed.
            Fault: the model's numbers are not finite, memory is short, or the system killed reader processes, twice.
        """
        share = self.processes.share(len(source))

        def measure() -> DetectionPart:
            return measure_images(
                self.detector.detect,
                source,
                share,
                self.plan.preprocessing,
                workers=self.plan.config.workers if len(share) >= MIN_IMAGES else 0,
                should_stop=self.stop.is_received,
            )

        parts = gather_work(measure, self.processes, self.stop)
        result: DetectionResult | None = None
        metrics: dict[str, float] | RequestError | Fault | None = None
        if self.processes.is_first:
            result = merge_parts(parts, self.data.classes, self.plan.shape.has_masks)
            try:
                metrics = detection_metrics(result)
            except (RequestError, Fault) as error:  # the other processes wait for this one
                metrics = error
        self.bad[split] = dict(sorted((name, reason) for part in parts for name, reason in part.bad.items()))
        found = self.processes.gather(metrics)[0]
        if isinstance(found, Exception):
            raise found
        return found, result


def measure_images(
    detect: Callable[[Tensor, tuple[int, int]], ImageDetections],
    source: Annotated,
    indices: range | NDArray[np.int64],
    preprocessing: Preprocessing,
    *,
    workers: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> DetectionPart:
    """Find the objects of the images at `indices`, each whole.

    Args:
        detect: from an image, as `whole_images` gives it, and its own size to what is found in it.

    Raises:
        Fault: see `WholeImageDetector.detect`, or the operating system killed the reader processes, twice.
    """
    measured, bad = list[MeasuredImage](), dict[str, str]()
    images = whole_images(
        source,
        preprocessing,
        indices,
        workers=workers,
        scaling=fitted_size,
        with_annotations=True,
        should_stop=should_stop,
    )
    with closing(images):
        for whole in images:
            if isinstance(whole.image, str):
                bad[whole.name] = whole.image
                continue
            assert whole.annotations is not None
            found = detect(whole.image, whole.size)
            measured.append(
                MeasuredImage(index=whole.index, name=whole.name, size=whole.size, truth=whole.annotations, found=found)
            )
    return DetectionPart(images=tuple(measured), bad=bad)
