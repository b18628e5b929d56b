"""`openmae demo`: the whole story in a few minutes: train, reconstruct, measure, and the next command to type."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from openmae.config import DemoConfig, PretrainConfig
from openmae.data.sources.open import open_source
from openmae.errors import RequestError
from openmae.inference.load import load_mae
from openmae.inference.psnr import interpolate_visible, mean_of_visible, psnr
from openmae.machine.device import pick_device
from openmae.machine.files import atomic_write, disk_faults, write_json
from openmae.pictures.sheet import loss_curve, sheet
from openmae.tasks.pretrain.pretrain import pretrain
from openmae.training.telemetry import read_lines

DATA = "embedded:photos"
STEPS = 1000
MASK_SEED = 7
PICTURED = 12


def demo(config: DemoConfig) -> dict[str, Any]:
    """Train on embedded photographs and show what was learnt on regions that were held out.

    Returns:
        What DIR/summary.json holds: the run's, and psnr, psnr_mean, psnr_interpolation in dB.

    Raises:
        RequestError: the folder exists and is no earlier demo.
    """
    out, settings = Path(config.out), pretrain_settings(config)
    pick_device(settings.device)  # wrong before anything is deleted
    clear_earlier_demo(out, settings)
    summary = pretrain(settings)

    # Measure on held-out regions, masks other than those looked at while training.
    model = load_mae(config.out, settings.device)
    source = open_source(DATA, "val")
    assert source is not None
    results = model.reconstruct([source.read(index) for index in range(len(source))], seed=MASK_SEED)
    truth, is_masked = results.truth, results.is_masked
    summary["psnr"] = psnr(results.prediction, truth, is_masked)
    summary["psnr_mean"] = psnr(mean_of_visible(truth, is_masked), truth, is_masked)
    summary["psnr_interpolation"] = psnr(interpolate_visible(truth, is_masked), truth, is_masked)
    summary["gap_to_mean"] = summary["psnr"] - summary["psnr_mean"]
    summary["gap_to_interpolation"] = summary["psnr"] - summary["psnr_interpolation"]

    # Pictures.
    chosen = torch.linspace(0, len(truth) - 1, PICTURED).long().tolist()
    rows = [[results.masked[i], results.prediction[i], truth[i]] for i in chosen]
    with disk_faults(out):
        with atomic_write(out / "reconstructions.png") as partial:
            sheet(rows, ["masked", "reconstruction", "truth"], blocks=2).save(partial)
        loss_curve(out / "loss.png", read_lines(out / "metrics.jsonl"), "openmae demo")
        write_json(out / "summary.json", summary)
    print(story(summary, out))
    return summary


def pretrain_settings(config: DemoConfig) -> PretrainConfig:
    """A model small enough for a laptop: 60 px photographs in 6 px patches, plain pixels as the target."""
    steps = config.steps or STEPS
    return PretrainConfig(
        data=DATA,
        out=config.out,
        image_size=60,
        patch_size=6,
        width=128,
        depth=4,
        num_heads=4,
        decoder_width=96,
        decoder_depth=2,
        target="pixel",
        batch_size=64,
        base_lr=8e-3,
        steps=steps,
        precision="fp32",
        seed=config.seed,
        device=config.device,
        save_every=steps,
    )


def clear_earlier_demo(out: Path, settings: PretrainConfig) -> None:
    """Make room for a demo where an earlier one lies; touch nothing else.

    Raises:
        RequestError: the folder holds something that is no demo.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        found = json.loads((out / "config.json").read_bytes())
        varies = {"out", "seed", "steps", "device", "save_every"}
        fixed = {name: value for name, value in settings.explicit().items() if name not in varies}
        is_demo = all(found[name] == value for name, value in fixed.items())
    except (OSError, ValueError, KeyError, TypeError):
        is_demo = False
    if not is_demo:
        raise RequestError(f"{out} exists and is no earlier demo: choose another --out")
    shutil.rmtree(out)


def story(summary: dict[str, Any], out: Path) -> str:
    """What the person reads at the end."""
    return f"""
On parts of the photographs that were never trained on, three quarters hidden (masked pixels only):
  reconstruction                  {summary["psnr"]:6.2f} dB PSNR
  mean of the visible pixels      {summary["psnr_mean"]:6.2f} dB  ({summary["gap_to_mean"]:+.2f} dB for the model)
  interpolation from visible ones {summary["psnr_interpolation"]:6.2f} dB  ({summary["gap_to_interpolation"]:+.2f} dB)

Look at   {out / "reconstructions.png"}   masked | reconstruction | truth
          {out / "loss.png"}              the loss while it learned
Next      openmae pretrain PATH/TO/YOUR/IMAGES --out runs/mine"""
