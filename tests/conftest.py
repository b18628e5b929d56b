"""What every test shares: shapes in signatures are checked, hypothesis is repeatable, models are small."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import jaxtyping
import pytest

# Before torch is loaded: on tensors this small a second thread gains nothing, and where other programs are busy on the
# same cores it waits for them. Measured on two busy cores: 1 second with one thread, 27 with two.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Must stand before anything imports openmae.model: from here on a wrong shape in a signature is an error.
jaxtyping.install_import_hook("openmae.model", "beartype.beartype")

from openmae.config import DecoderShape, MAEShape, ViTShape  # noqa: E402

# Loader workers that are spawned (macOS) unpickle a test's classes by the name that pytest gave the test's module.
sys.path.append(str(Path(__file__).parents[1]))

# Their fixtures, loaded behind the hook above.
pytest_plugins = ["tests.tiny_runs", "tests.scenes", "tests.objects", "tests.inference.detection.detectors"]

# No deadline, because CI machines stall; no new random examples, because CI must not fail on some days only.
hypothesis.settings.register_profile("openmae", deadline=None, derandomize=True, max_examples=50, database=None)
hypothesis.settings.load_profile("openmae")

ENCODER_FIELDS = {"image_size", "patch_size", "channels", "width", "depth", "num_heads"}


def make_tiny_shape(**changes: Any) -> MAEShape:
    """A masked autoencoder of 4x4 patches that trains in milliseconds; `decoder_…` changes its decoder."""
    encoder = {"image_size": (16, 16), "patch_size": 4, "channels": 3, "width": 24, "depth": 2, "num_heads": 3}
    decoder = {"width": 16, "depth": 2, "num_heads": 2}
    rest = {}
    for name, value in changes.items():
        if name in ENCODER_FIELDS:
            encoder[name] = value
        elif name.startswith("decoder_"):
            decoder[name.removeprefix("decoder_")] = value
        else:
            rest[name] = value
    return MAEShape(encoder=ViTShape(**encoder), decoder=DecoderShape(**decoder), **rest)


@pytest.fixture(scope="session")
def tiny_shape() -> Callable[..., MAEShape]:
    """`tiny_shape(**changes)`: see `make_tiny_shape`."""
    return make_tiny_shape
