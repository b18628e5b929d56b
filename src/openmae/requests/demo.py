"""`demo`: a folder with nothing in it, or with an earlier demo."""

import json
from pathlib import Path

from openmae.config import DemoConfig, PretrainConfig
from openmae.errors import RequestError
from openmae.machine.device_name import check_device

DATA = "embedded:photos"
STEPS = 1000


def check_demo(config: DemoConfig) -> None:
    """Raise RequestError where something else would be replaced."""
    check_device(config.device)
    is_earlier_demo(Path(config.out), pretrain_settings(config))


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


def is_earlier_demo(out: Path, settings: PretrainConfig) -> bool:
    """Whether an earlier demo lies there; False where nothing does.

    Raises:
        RequestError: the folder holds something that is no demo.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / "config.json").read_bytes())
        varies = {"out", "seed", "steps", "device", "save_every"}
        fixed = {name: value for name, value in settings.explicit().items() if name not in varies}
        is_demo = all(found[name] == value for name, value in fixed.items())
    except (OSError, ValueError, KeyError, TypeError):
        is_demo = False
    if not is_demo:
        raise RequestError(f"{out} exists and is no earlier demo: choose another --out")
    return True
