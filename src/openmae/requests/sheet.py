"""`attention`, `reconstruct`: a sheet that replaces no image, the model, the images."""

import os
from pathlib import Path

from openmae.config import AttentionConfig, ReconstructConfig
from openmae.data.sources.named import check_images
from openmae.errors import RequestError
from openmae.inference.mask_file import check_mask_file
from openmae.interchange.incoming.named import check_init
from openmae.machine.device_name import check_device


def check_attention(config: AttentionConfig) -> None:
    """Raise RequestError where there is nothing to show or no place to write it."""
    config = config.plain()
    protect_images(config.images, config.out)
    check_init(config.init)
    check_device(config.device)
    check_images(config.images)


def check_reconstruct(config: ReconstructConfig) -> None:
    """Raise RequestError where there is nothing to show or no place to write it."""
    config = config.plain()
    protect_images(config.images, config.out)
    check_init(config.init)
    check_device(config.device)
    check_images(config.images)
    if config.mask_file is not None:
        check_mask_file(config.mask_file)


def protect_images(names: tuple[str, ...], out: str) -> None:
    """Raise RequestError where the sheet would replace an image that was named or lies in a named folder."""
    place = Path(os.path.realpath(out))
    for name in names:
        if place.is_relative_to(os.path.realpath(name)):
            raise RequestError(f"--out {out} is, or lies among, the images to show: choose another name")
