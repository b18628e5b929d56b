"""Checks of `demo`: the device's name, and a folder that is empty or holds an earlier demo; and its settings."""

import json
from pathlib import Path

from openmae.config import DemoConfig, PretrainConfig
from openmae.errors import RequestError
from openmae.machine.device_name import check_device

DEMO_DATA = "embedded:photos"
DEMO_STEPS = 1000


def check_demo(config: DemoConfig) -> None:
    """Raise RequestError where the folder holds something other than an earlier demo, which would be replaced."""
    check_device(config.device)
    is_earlier_demo(Path(config.out), pretrain_settings(config))


def pretrain_settings(config: DemoConfig) -> PretrainConfig:
    """The demo's pre-training, small enough for a laptop: 60 px photographs in 6 px patches, pixels as the target."""
    steps = config.steps or DEMO_STEPS
    return PretrainConfig(
        data=DEMO_DATA,
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
    """Whether the folder `out` holds an earlier demo; False where it is empty or does not exist.

    A folder is taken for a demo by its config.json.

    Raises:
        RequestError: the folder holds something that is no demo.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / "config.json").read_bytes())
        may_differ = {"out", "seed", "steps", "device", "save_every"}
        same_in_all = {name: value for name, value in settings.explicit().items() if name not in may_differ}
        is_demo = all(found[name] == value for name, value in same_in_all.items())
    except (OSError, ValueError, KeyError, TypeError):
        is_demo = False
    if not is_demo:
        raise RequestError(f"{out} exists and is no earlier demo: choose another --out")
    return True
