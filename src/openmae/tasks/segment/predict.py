"""`openmae segment IMAGES --init RUN --predict --out FOLDER`: the class of each pixel of new images."""

from pathlib import Path, PurePosixPath
from typing import Any

import torch

from openmae.config import SegmentConfig
from openmae.data.annotated.whole_images import WholeImage
from openmae.data.masks.augment import scaled_size
from openmae.errors import RequestError, quoted, shown
from openmae.inference.load import load
from openmae.inference.segmentation import WINDOWS_AT_ONCE, WholeImageSegmenter
from openmae.inference.segmenter_model import SegmenterModel
from openmae.tasks.prediction.files import write_classes
from openmae.tasks.prediction.predict import Predict, Prediction
from openmae.tasks.prediction.predict import predict_images as predict_all
from openmae.tasks.segment.prediction_files import write_prediction


def predict_images(config: SegmentConfig) -> dict[str, Any]:
    """Write OUT/masks and OUT/overlays, a file for each image, and OUT/classes.csv.

    Returns and raises what `openmae.tasks.prediction.predict.predict_images` does; RequestError where `--init` is no
    segmenter.
    """

    def predict(model: SegmenterModel) -> Predict:
        segmenter = segmenter_for(config, model)

        def write(whole: WholeImage, path: PurePosixPath) -> None:
            assert isinstance(whole.image, torch.Tensor) and whole.picture is not None
            labels = segmenter.class_map(whole.image, whole.size).cpu().numpy()
            write_prediction(Path(config.out), path, whole.picture, labels, len(model.classes))

        return write

    return predict_all(
        config,
        Prediction(
            verb="segment",
            load=load_segmenter,
            predict=predict,
            scaling=scaled_size,
            begin=lambda out, model: write_classes(out, model.classes),
            finish=lambda out, model, kept: None,
            files=("masks", "overlays"),
        ),
    )


def load_segmenter(init: str, device: str) -> SegmenterModel:
    """The segmenter that `--init` names. Raises RequestError where it is another kind of model."""
    model = load(init, device, verbose=True)
    if not isinstance(model, SegmenterModel):
        raise RequestError(
            f"--init {shown(init)} is no segmenter: train one, openmae segment DATA --init {quoted(init)} --out RUN"
        )
    return model


def segmenter_for(config: SegmentConfig, model: SegmenterModel) -> WholeImageSegmenter:
    """The model as `--inference`, `--stride`, `--precision` and `--micro-batch-size` say, else as it was evaluated.

    Raises:
        RequestError: the stride is larger than the model's crops.
    """
    return model.whole_image_segmenter(
        inference=config.inference,
        stride=config.stride,
        precision=config.precision or "fp32",
        windows_at_once=config.micro_batch_size or WINDOWS_AT_ONCE,
    )
