"""Tiny runs on the digits inside scikit-learn: 8 x 8 pixels, a model of a few thousand weights."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from openmae.config import PretrainConfig
from openmae.tasks.pretrain.pretrain import pretrain


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on two threads, and much slower beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_digits_config(out: Path, **changes: Any) -> PretrainConfig:
    settings: dict[str, Any] = {
        "data": "embedded:digits",
        "image_size": 8,
        "patch_size": 2,
        "width": 24,
        "depth": 1,
        "num_heads": 3,
        "decoder_width": 16,
        "decoder_depth": 1,
        "steps": 12,
        "batch_size": 16,
        "held_out": 32,
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "evaluate_every": 4,
        "picture_every": 1000,
        "save_every": 5,
        "log_every": 2,
    }
    return PretrainConfig(out=str(out), **{**settings, **changes})


@pytest.fixture(scope="session")
def digits_config() -> Callable[..., PretrainConfig]:
    """`digits_config(out, **changes)`: a run of a second."""
    return make_digits_config


@pytest.fixture(scope="session")
def pixel_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that predicts pixels. Tests only read it."""
    out = tmp_path_factory.mktemp("runs") / "pixel"
    pretrain(make_digits_config(out, target="pixel"))
    return out


@pytest.fixture(scope="session")
def norm_pixel_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that predicts normalised pixels. Tests only read it."""
    out = tmp_path_factory.mktemp("runs") / "norm-pixel"
    pretrain(make_digits_config(out, target="norm-pixel"))
    return out


@pytest.fixture(scope="session")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four smooth 16 x 16 colour images, each rising from one colour to another."""
    folder = tmp_path_factory.mktemp("data") / "gradients"
    folder.mkdir()
    chance = np.random.default_rng(0)
    row, column = np.mgrid[:16, :16] / 15
    for number in range(24):
        along = row if number % 2 else column
        start, end = chance.uniform(0, 255, (2, 3))
        values = start + along[..., None] * (end - start)
        Image.fromarray(values.round().astype(np.uint8)).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    settings = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "steps": 30, "evaluate_every": 1000}
    pretrain(make_digits_config(out, **settings, save_every=1000, target="pixel"))
    return str(out)


@pytest.fixture(scope="session")
def greys(tmp_path_factory):
    """Grey pictures, and a file of how light and how even each is: large numbers, and small ones below 0.

    A flip changes neither, a slight crop hardly.
    """
    root, chance = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (root / "greys").mkdir()
    lines = ["path,light,even"]
    across = np.linspace(-0.5, 0.5, 12)
    for number in range(60):
        light, slant = chance.uniform(60, 190), chance.uniform(-100, 100)
        values = light + slant * across + chance.uniform(0, 10, (11, 12))
        Image.fromarray(values.astype(np.uint8)).save(root / "greys" / f"{number:02}.png")
        lines.append(f"{number:02}.png,{5000 + light},{-abs(slant) / 1e4}")
    (root / "greys.csv").write_text("\n".join(lines) + "\n")
    return root / "greys"
