"""`openmae demo`: train, reconstruct and measure in a few minutes, and name the next command to type."""

import shutil
from pathlib import Path
from typing import Any

import torch

from openmae.config import DemoConfig, PretrainConfig
from openmae.data.sources.open import open_source
from openmae.inference.load import load_mae
from openmae.inference.psnr import interpolate_visible, mean_of_visible, psnr
from openmae.machine.device import pick_device
from openmae.machine.files import atomic_write, disk_faults, write_json
from openmae.pictures.sheet import loss_curve, sheet
from openmae.preflight.demo import DEMO_DATA, is_earlier_demo, pretrain_settings
from openmae.tasks.pretrain.pretrain import pretrain
from openmae.training.telemetry import read_lines

MASK_SEED = 7
NUM_PICTURED = 12


def demo(config: DemoConfig) -> dict[str, Any]:
    """Pre-train on embedded photographs and show reconstructions of regions that were held out.

    Returns:
        What OUT/summary.json holds: the run's summary, and psnr, psnr_mean, psnr_interpolation in dB.

    Raises:
        RequestError: the folder exists and is no earlier demo.
    """
    out, settings = Path(config.out), pretrain_settings(config)
    pick_device(settings.device)  # wrong before anything is deleted
    remove_previous_demo(out, settings)
    summary = pretrain(settings)

    # Measure on held-out regions, with other masks than while training.
    model = load_mae(config.out, settings.device)
    source = open_source(DEMO_DATA, "val")
    assert source is not None
    results = model.reconstruct([source.read(index) for index in range(len(source))], seed=MASK_SEED)
    truth, is_masked = results.truth, results.is_masked
    summary["psnr"] = psnr(results.prediction, truth, is_masked)
    summary["psnr_mean"] = psnr(mean_of_visible(truth, is_masked), truth, is_masked)
    summary["psnr_interpolation"] = psnr(interpolate_visible(truth, is_masked), truth, is_masked)
    summary["gap_to_mean"] = summary["psnr"] - summary["psnr_mean"]
    summary["gap_to_interpolation"] = summary["psnr"] - summary["psnr_interpolation"]

    # Pictures.
    indices = torch.linspace(0, len(truth) - 1, NUM_PICTURED).long().tolist()
    rows = [[results.masked[i], results.prediction[i], truth[i]] for i in indices]
    with disk_faults(out):
        with atomic_write(out / "reconstructions.png") as partial:
            sheet(rows, ["masked", "reconstruction", "truth"], blocks=2).save(partial)
        loss_curve(out / "loss.png", read_lines(out / "metrics.jsonl"), "openmae demo")
        write_json(out / "summary.json", summary)
    print(result_text(summary, out))
    return summary


def remove_previous_demo(out: Path, settings: PretrainConfig) -> None:
    """Remove an earlier demo at `out`; anything else is left alone.

    Raises:
        RequestError: the folder holds something that is no demo.
    """
    if is_earlier_demo(out, settings):
        shutil.rmtree(out)


def result_text(summary: dict[str, Any], out: Path) -> str:
    """The results as they are printed at the end."""
    return f"""
On parts of the photographs that were never trained on, three quarters hidden (masked pixels only):
  reconstruction                  {summary["psnr"]:6.2f} dB PSNR
  mean of the visible pixels      {summary["psnr_mean"]:6.2f} dB  ({summary["gap_to_mean"]:+.2f} dB for the model)
  interpolation from visible ones {summary["psnr_interpolation"]:6.2f} dB  ({summary["gap_to_interpolation"]:+.2f} dB)

Look at   {out / "reconstructions.png"}   masked | reconstruction | truth
          {out / "loss.png"}              the loss while it learned
Next      openmae pretrain PATH/TO/YOUR/IMAGES --out runs/mine"""
