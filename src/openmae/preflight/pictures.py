"""Checks of `attention` and `reconstruct`: the picture to write, the model, the images."""

import os
from pathlib import Path

from openmae.config import AttentionConfig, ReconstructConfig
from openmae.data.sources.named import check_images
from openmae.errors import RequestError
from openmae.inference.mask_file import check_mask_file
from openmae.interchange.incoming.named import check_init
from openmae.machine.device_name import check_device
from openmae.run.lock import check_file_path


def check_attention(config: AttentionConfig) -> None:
    """Raise RequestError where the model or the images cannot be found, or the picture would replace an image."""
    config = config.plain()
    check_sheet_path(config.images, config.out)
    check_init(config.init)
    check_device(config.device)
    check_images(config.images)


def check_reconstruct(config: ReconstructConfig) -> None:
    """Raise RequestError where model, images or mask cannot be found, or the picture would replace an image."""
    config = config.plain()
    check_sheet_path(config.images, config.out)
    check_init(config.init)
    check_device(config.device)
    check_images(config.images)
    if config.mask_file is not None:
        check_mask_file(config.mask_file)


def check_sheet_path(images: tuple[str, ...], out: str) -> None:
    """Raise RequestError where the picture cannot be written, would replace an image, or lie in a folder of images.

    Args:
        images: paths of image files, or of one data set.
    """
    check_file_path(Path(out), "--out")
    real_out = Path(os.path.realpath(out))
    for path in images:
        if real_out.is_relative_to(os.path.realpath(path)):
            raise RequestError(f"--out {out} is, or lies among, the images to show: choose another name")
