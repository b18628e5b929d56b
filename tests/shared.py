"""What tests of runs share: their settings, a signal in the middle of one, and comparing what they left."""

import itertools
import json
import os
import signal
from pathlib import Path

import numpy as np
import torch

from openmae.config import Preprocessing, TokenizerShape
from openmae.data.batch import Batch, Crops
from openmae.experiments import experiment
from openmae.experiments.trials import trial
from openmae.model.tokenizer import DiscreteVAE
from openmae.run.progress import Progress
from openmae.training.checkpoint import save_checkpoint
from openmae.training.telemetry import read_lines

from .processes import TIMES


def metrics(run):
    return read_lines(Path(run) / "metrics.jsonl")


def untimed(lines):
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def snapshot(folder):
    """Every file below a folder with its content and time of change."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def same_training_state(one, two, step=12):
    for name in ("model.safetensors", "optimizer.safetensors"):
        paths = [run / "checkpoints" / f"step-{step:08d}" / name for run in (one, two)]
        assert paths[0].read_bytes() == paths[1].read_bytes(), name
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


def pixel_config(digits_config, out, **changes):
    """The settings of the fixture `pixel_run`, with changes."""
    return digits_config(out, **{"target": "pixel", **changes})


def gradients_config(digits_config, data, out, **changes):
    settings = {
        "data": str(data),
        "image_size": 16,
        "patch_size": 4,
        "width": 48,
        "num_heads": 4,
        "decoder_width": 32,
        "target": "pixel",
        "batch_size": 8,
        "held_out": 4,
    }
    return digits_config(out, **{**settings, **changes})


def signal_at(monkeypatch, step, number=signal.SIGTERM):
    """Send this process a signal in the middle of its step with that number, counted from here."""
    counter, add = itertools.count(1), Progress.add

    def add_and_signal(self, *arguments):
        add(self, *arguments)
        if next(counter) == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Progress, "add", add_and_signal)


def whole_micro_batches():
    """A step of four whole images of 20 x 24 pixels, each with its box and flip, in micro-batches of 3 and 1."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 20, 24, 3), dtype=np.uint8))
    boxes = torch.tensor([(0, 0, 20, 24), (3, 5, 16, 16), (1, 2, 9, 11), (4, 0, 13, 10)])
    is_flipped, keys = torch.tensor([True, False, True, False]), torch.arange(4)
    return [
        Batch(images[part], keys[part], {}, None, Crops(boxes[part], is_flipped[part]))
        for part in (slice(3), slice(3, 4))
    ]


def save_tokenizer(out, *, patch_size=2, stride=2, channels=3, codebook=16, seed=0, mean=0.4, value_range=(0.0, 255.0)):
    """The run folder of a tokenizer that was never trained; equal seeds give equal weights."""
    torch.manual_seed(seed)
    settings = {"patch_size": patch_size, "stride": stride, "channels": channels, "codebook": codebook}
    vae = DiscreteVAE(TokenizerShape(**settings, width=16, depth=1))
    preprocessing = Preprocessing(
        channels=channels, value_range=value_range, mean=(mean,) * channels, std=(0.25,) * channels, image_size=(8, 8)
    )
    description = {"kind": "tokenizer", "shape": vae.shape.to_dict(), "preprocessing": preprocessing.to_dict()}
    optimizer = torch.optim.SGD(vae.parameters(), lr=0.1)
    save_checkpoint(Path(out), 1, vae, optimizer, {**description, "seed": seed, "step": 1}, {}, keep=1)
    return Path(out)


def run_trials_here(monkeypatch):
    """Let an experiment run its trials in this process, one after another, where a test can reach into them."""

    def run(jobs, resources, watch, on_end):
        for job in [job for job in jobs if job.state == "waiting"]:
            place = trial.Place(folder=job.folder, device=resources.devices[0], workers=0)
            trial.run_trial(trial.Trial.from_dict(json.loads((job.folder / trial.TRIAL).read_bytes())), place)
            job.state = "done"
            watch()
            on_end(job)

    monkeypatch.setattr(experiment, "run_side_by_side", run)
