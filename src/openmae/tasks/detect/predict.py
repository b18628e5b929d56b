"""`openmae detect IMAGES --init RUN --predict --out FOLDER`: the objects of new images."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from openmae.config import DetectConfig
from openmae.data.annotated.whole_images import WholeImage
from openmae.data.coco.augment import fitted_size
from openmae.errors import RequestError, quoted, shown
from openmae.inference.detection.detector_model import DetectorModel
from openmae.inference.detection.whole_image import ImageDetections
from openmae.inference.load import load
from openmae.machine.files import write_json
from openmae.tasks.detect.prediction_files import coco_results, write_detections, write_results
from openmae.tasks.prediction.files import write_classes
from openmae.tasks.prediction.predict import Predict, Prediction
from openmae.tasks.prediction.predict import predict_images as predict_all

DRAWN = 0.5  # the score above which objects are drawn; predictions.json has all


@dataclass(frozen=True)
class Kept:
    """What is kept of an image until all are known: its name, height and width, and what was found."""

    name: str
    size: tuple[int, int]
    found: ImageDetections


def predict_images(config: DetectConfig) -> dict[str, Any]:
    """Write OUT/predictions.json, images.json and classes.csv, and OUT/overlays, a file for each image.

    predictions.json has the format of COCO's results; images.json says, as a COCO file does, which image and class its
    numbers are. Those of classes are of the file that the model was trained on.

    Returns and raises what `openmae.tasks.prediction.predict.predict_images` does; RequestError where `--init` is no
    detector.
    """

    def predict(model: DetectorModel) -> Predict:
        detector = model.whole_image_detector(precision=config.precision or "fp32")

        def write(whole: WholeImage, path: PurePosixPath) -> Kept:
            assert isinstance(whole.image, torch.Tensor) and whole.picture is not None
            found = detector.detect(whole.image, whole.size)
            write_detections(Path(config.out), path, whole.picture, found.above(DRAWN), model.classes)
            return Kept(whole.name, whole.size, found)

        return write

    return predict_all(
        config,
        Prediction(
            verb="search",
            load=load_detector,
            predict=predict,
            scaling=fitted_size,
            begin=lambda out, model: write_classes(out, model.classes, model.category_ids),
            finish=write_predictions,
            files=("predictions.json", "overlays"),
        ),
    )


def load_detector(init: str, device: str) -> DetectorModel:
    """The detector that `--init` names. Raises RequestError where it is another kind of model."""
    model = load(init, device, verbose=True)
    if not isinstance(model, DetectorModel):
        raise RequestError(
            f"--init {shown(init)} is no detector: train one, openmae detect DATA --init {quoted(init)} --out RUN"
        )
    return model


def write_predictions(out: Path, model: DetectorModel, kept: list[Kept]) -> None:
    """Write OUT/predictions.json and OUT/images.json, in the order of the images, which are numbered from 1.

    Raises:
        Fault: a file cannot be written.
    """
    images = [
        {"id": number, "file_name": image.name, "height": image.size[0], "width": image.size[1]}
        for number, image in enumerate(kept, start=1)
    ]
    entries = (
        entry
        for number, image in enumerate(kept, start=1)
        for entry in coco_results(image.found, number, model.category_ids)
    )
    write_results(out / "predictions.json", entries)
    categories = [{"id": k, "name": name} for k, name in zip(model.category_ids, model.classes, strict=True)]
    write_json(out / "images.json", {"images": images, "categories": categories})
