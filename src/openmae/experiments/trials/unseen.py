"""Images that were not trained on, as a trained model draws them: the parts of figure 6's sheet, and their PSNR."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from openmae.config import Preprocessing, PretrainConfig
from openmae.data.decoding.decode import BadImage
from openmae.data.sources.open import Source, open_splits
from openmae.data.sources.reading import reading_options
from openmae.data.sources.views import PermutedSubset
from openmae.errors import RequestError
from openmae.inference.load import load_mae
from openmae.inference.matched import matched_model
from openmae.inference.models import ImageLike, MAEModel
from openmae.inference.psnr import psnr
from openmae.machine.files import atomic_write, disk_faults
from openmae.tasks.pretrain.data import TrainingData, open_training_data

NUM_DRAWN = 8
RECONSTRUCTED = "reconstructed.npz"  # of a trial: truth, masked and prediction, (B, C, H, W) uint8


def unseen_images(
    config: PretrainConfig, training: TrainingData, model: Preprocessing | None = None
) -> tuple[Source | None, str]:
    """Images that are not trained on, and what they are: DATA's test part, else its val part or what is held out.

    There are none where DATA has so few images that none are held out.
    """
    options = reading_options(config, model, config.background)
    sources = open_splits(config.dataset, ("test",), split_rules=config.split_rules, **options).sources
    if "test" in sources:
        return sources["test"], "test"
    return training.held_out, "val" if "val" in training.origins else "held out of train"


def reconstruct_unseen(init: str, config: PretrainConfig, path: Path) -> float:
    """Draw images that a model was not trained on, with masks as in its training, and keep them at `path`.

    Args:
        init: the model.
        config: names the data that it was trained on, and the device.

    Returns:
        The PSNR on masked pixels, in dB.

    Raises:
        RequestError: there is no such image, or none can be read.
    """
    model = load_mae(init, config.device)
    source, _ = unseen_images(config, open_training_data(config, model.preprocessing), model.preprocessing)
    if source is None:
        raise RequestError("there is no image that was not trained on")
    model, _ = matched_model(model, [source], config.value_range)
    result = model.reconstruct(_readable(PermutedSubset(source, 0, len(source)), model))
    with disk_faults(path), atomic_write(path) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file, truth=_bytes(result.truth), masked=_bytes(result.masked), prediction=_bytes(result.prediction)
        )
    return psnr(result.prediction, result.truth, result.is_measured)


def _readable(source: PermutedSubset, model: MAEModel) -> list[ImageLike]:
    images: list[ImageLike] = []
    for index in range(len(source)):
        try:
            image = source.read(index)
            model.prepare(image)
        except (BadImage, RequestError):
            continue
        images.append(image)
        if len(images) == NUM_DRAWN:
            break
    if not images:
        raise RequestError(f"none of {len(source)} images that were not trained on can be read")
    return images


def _bytes(images: Tensor) -> NDArray[np.uint8]:
    return (images.clamp(0, 1) * 255).round().byte().numpy()
