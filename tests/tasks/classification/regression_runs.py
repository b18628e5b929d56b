"""What tests of regression share: settings of tiny runs, and what runs left."""

import csv
import json
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

import openmae
from openmae.config import FinetuneConfig, Preprocessing, ProbeConfig
from openmae.data.labels.labelled import open_labelled
from openmae.tasks.finetune.finetune import finetune
from openmae.tasks.probe.probe import probe

from ...shared import metrics

TINY = {"batch_size": 8, "device": "cpu", "workers": 0, "save_every": 1000, "evaluate_every": 1000, "log_every": 1}
CONFIGS = {finetune: FinetuneConfig, probe: ProbeConfig}


def config(kind, data, out, init, **changes):
    settings = {
        "data": str(data),
        "out": str(out),
        "init": str(init),
        "task": "regression",
        **TINY,
        "steps": 4,
        **changes,
    }
    if data != "embedded:digits":
        settings["label_file"] = f"{data}.csv"
    return CONFIGS[kind](**settings)


def weights(run):
    return load_file(Path(run) / "model.safetensors")


def losses(run):
    return [line["loss"] for line in metrics(run) if "loss" in line]


def summary_of(run):
    return json.loads((Path(run) / "summary.json").read_text())


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def opened(data, **changes):
    label_file = None if data == "embedded:digits" else f"{data}.csv"
    settings = {"labels": None, "label_file": label_file, "held_out": None, "background": 1.0, "max_pixels": 10**6}
    return open_labelled(str(data), **settings, task="regression", **changes)


def features(init, source):
    """Pooled features of grey images and their numbers: the encoder as it is loaded."""
    model = openmae.load(str(init), "cpu")
    model = type(model)(**{**vars(model), "preprocessing": replaced_margin(model.preprocessing, source)})
    values = model.features([source.read(i) for i in range(len(source))])
    return values.double().numpy(), np.array([source.label(i) for i in range(len(source))])


def replaced_margin(preprocessing, source):
    crop_fraction = 224 / 256 if source.read(0).shape[0] > 8 else 1.0
    return Preprocessing(**{**vars(preprocessing), "margin": crop_fraction})
