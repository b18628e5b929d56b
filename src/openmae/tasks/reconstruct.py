"""`openmae reconstruct`: a sheet of masked | reconstruction | truth for files or a data set."""

import os
from pathlib import Path
from typing import Any

from openmae.config import ReconstructConfig
from openmae.data.decode import BadImage
from openmae.data.sources import open_source
from openmae.errors import RequestError, shown
from openmae.model.targets import NormPixelTarget
from openmae.tasks.load import ImageLike, Model, load_mae
from openmae.tasks.pictures import sheet
from openmae.tasks.quality import interpolate_visible, mean_of_visible, psnr
from openmae.training.files import disk_faults, written_aside

LABELS = {"neighbours": "statistics from visible neighbours", "true": "LEAKS: true patch statistics"}


def reconstruct(config: ReconstructConfig) -> dict[str, Any]:
    """Write the sheet; return PSNR on the masked pixels beside the two baselines.

    Raises:
        RequestError: no readable image, an unknown model, a mask or size that does not fit.
    """
    spare_input(config)
    model = load_mae(config.init, config.device)
    images, skipped = gather_images(config, model)
    for line in skipped:
        print(f"skipped {shown(line)}")
    normalised = isinstance(model.mae.target, NormPixelTarget)
    ways = ("neighbours", "true") if config.undo == "both" and normalised else (config.undo,)
    ways = ways if normalised else ("neighbours",)
    results = [
        model.reconstruct(
            images,
            mask=config.mask,
            mask_ratio=config.mask_ratio,
            mask_file=config.mask_file,
            seed=config.seed,
            undo=way,
            paste=config.paste,
            size=config.size,
        )
        for way in ways
    ]
    first = results[0]
    headers = (
        ["masked"] + [f"reconstruction ({LABELS[w]})" if normalised else "reconstruction" for w in ways] + ["truth"]
    )
    rows = [
        [first.masked[i], *(result.prediction[i] for result in results), first.truth[i]] for i in range(len(images))
    ]
    out = Path(config.out)
    with disk_faults(out), written_aside(out) as partial:
        sheet(rows, headers, blocks=2 if len(rows) > 4 else 1).save(partial)
    summary: dict[str, Any] = {"images": len(images), "skipped": len(skipped)}
    for way, result in zip(ways, results, strict=True):
        name = "psnr" if way == ways[0] else f"psnr_{way}"
        summary[name] = psnr(result.prediction, result.truth, result.is_masked)
        told = f" ({LABELS[way]})" if normalised else ""
        print(f"PSNR {summary[name]:.2f} dB on masked pixels{told}")
    summary["psnr_mean"] = psnr(mean_of_visible(first.truth, first.is_masked), first.truth, first.is_masked)
    summary["psnr_interpolation"] = psnr(
        interpolate_visible(first.truth, first.is_masked), first.truth, first.is_masked
    )
    print(f"PSNR {summary['psnr_mean']:.2f} dB for the mean of the visible pixels")
    print(f"PSNR {summary['psnr_interpolation']:.2f} dB for interpolation from visible patches")
    print(f"wrote {out}")
    return summary


def spare_input(config: ReconstructConfig) -> None:
    """Raise RequestError where the sheet would replace an image that was named or lies in a named folder."""
    out = Path(os.path.realpath(config.out))
    for name in config.images:
        if out.is_relative_to(os.path.realpath(name)):
            raise RequestError(f"--out {config.out} is, or lies among, the images to reconstruct: choose another name")


def gather_images(config: ReconstructConfig, model: Model) -> tuple[list[ImageLike], list[str]]:
    """The named files or the first images of the named data set, and a line about each that cannot be read.

    Raises:
        RequestError: none can be read.
    """
    names = config.images
    files = [name for name in names if Path(name).is_file() and not name.endswith(".parquet")]
    skipped: list[str] = []
    images: list[ImageLike] = []
    if len(files) == len(names):
        for name in files:
            try:
                model.prepare(name, config.size, config.max_pixels)
                images.append(name)
            except RequestError as error:
                skipped.append(str(error))
    elif len(names) == 1:
        options: dict[str, Any] = {"background": model.preprocessing.background, "max_pixels": config.max_pixels}
        parts = (open_source(names[0], split, **options) for split in ("test", "val", "train"))
        source = next(part for part in parts if part is not None)
        for index in range(len(source)):
            if len(images) == config.limit:
                break
            try:
                image = source.read(index)
                model.prepare(image, config.size)
                images.append(image)
            except (BadImage, RequestError) as error:
                skipped.append(f"{source.name(index)}: {error}")
    else:
        missing = next(name for name in names if name not in files)
        raise RequestError(f"{missing} is not an image file: name image files, or one data set alone")
    if not images:
        raise RequestError(f"no image could be read: {'; '.join(skipped[:3])}")
    return images, skipped
