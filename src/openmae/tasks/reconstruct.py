"""`openmae reconstruct`: a sheet of masked | reconstruction | truth for files or a data set."""

from pathlib import Path
from typing import Any

from openmae.config import ReconstructConfig
from openmae.errors import shown
from openmae.inference.images import gather_images, matched_to_images
from openmae.inference.load import load_mae
from openmae.inference.psnr import interpolate_visible, mean_of_visible, psnr
from openmae.inference.reconstruction import check_draws
from openmae.machine.files import atomic_write, disk_faults
from openmae.model.targets import NormPixelTarget
from openmae.pictures.sheet import sheet
from openmae.preflight.pictures import check_sheet_path

LABELS = {"neighbours": "statistics from visible neighbours", "true": "LEAKS: true patch statistics"}


def reconstruct(config: ReconstructConfig) -> dict[str, Any]:
    """Write a sheet of pictures, masked | reconstruction | truth, a row for each image.

    Returns:
        images, skipped, psnr on the masked pixels in dB (psnr_true for the second way of `undo="both"`), and that of
        two baselines: psnr_mean of the visible pixels, psnr_interpolation from them.

    Raises:
        RequestError: no readable image, an unknown model, a mask or size that does not fit.

    Example:
        >>> config = openmae.ReconstructConfig(images=("photos",), init="runs/photos", out="reconstructions.png")
        >>> openmae.reconstruct(config)["images"]
        8
    """
    config = config.plain()
    check_sheet_path(config.images, config.out)
    model = load_mae(config.init, config.device)
    check_draws(model.mae)
    model, lines = matched_to_images(model, config)
    images, skipped = gather_images(config, model)
    for line in [*lines, *(f"skipped {shown(line)}" for line in skipped)]:
        print(line)
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
    with disk_faults(out), atomic_write(out) as partial:
        sheet(rows, headers, blocks=2 if len(rows) > 4 else 1).save(partial)
    if not first.is_measured.any():
        print("no masked patch holds values, they stand for none (nodata): there is no PSNR")
    summary: dict[str, Any] = {"images": len(images), "skipped": len(skipped)}
    for way, result in zip(ways, results, strict=True):
        name = "psnr" if way == ways[0] else f"psnr_{way}"
        summary[name] = psnr(result.prediction, result.truth, result.is_measured)
        label = f" ({LABELS[way]})" if normalised else ""
        print(f"PSNR {summary[name]:.2f} dB on masked pixels{label}")
    summary["psnr_mean"] = psnr(mean_of_visible(first.truth, first.is_unknown), first.truth, first.is_measured)
    summary["psnr_interpolation"] = psnr(
        interpolate_visible(first.truth, first.is_unknown), first.truth, first.is_measured
    )
    print(f"PSNR {summary['psnr_mean']:.2f} dB for the mean of the visible pixels")
    print(f"PSNR {summary['psnr_interpolation']:.2f} dB for interpolation from visible patches")
    print(f"wrote {out}")
    return summary
