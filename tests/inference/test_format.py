"""A checkpoint of format_version 1, as the first release wrote it, stays readable for ever."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from openmae.inference.load import load
from openmae.training.checkpoint import verify_checkpoint

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format-1"


def test_its_files_are_those_that_were_written():
    assert verify_checkpoint(FIXTURE).state["step"] == 30


def test_its_model_gives_the_features_it_gave():
    model = load(str(FIXTURE), "cpu")
    assert model.description["format_version"] == 1
    assert model.description["step"] == 30
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1) * 4
    features = model.encode(image)
    assert features.shape == (1, 17, 16)
    # Written when the fixture was made; fp32 on other machines differs by about 1e-6.
    expected = torch.tensor(FEATURES)
    assert features[0, :2, :4].flatten().tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_nobody_has_made_it_anew():
    digest = hashlib.sha256((FIXTURE / "model.safetensors").read_bytes()).hexdigest()
    assert digest == "f6ef1dd42ebd48854ff62b14b47c310c91a646017a1ec874e761d9080857ce5a"


FEATURES = [0.19376, -1.11604, 1.81391, -0.52797, -1.32251, -1.85323, 1.13698, -0.67707]
