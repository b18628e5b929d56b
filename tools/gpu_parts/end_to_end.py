"""ViT-B at 224 px from files to weights: images/s, the share of waiting, and the same loop on a batch that is ready."""

import itertools
import json
import signal
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from gpu_parts.commands import PHOTO_COPIES, TINY
from gpu_parts.data import photographs
from gpu_parts.part import Context, Failed, read_json, read_metrics, tail

BATCH = 512
SETTINGS = f"--model base --image-size 224 --patch-size 16 --batch-size {BATCH} --compile True --log-every 5"
NEVER = "--evaluate-every 100000 --save-every 100000 --picture-every 100000"
TRAINED = 20.0  # seconds that are looked at
FIRST_STEP = 10  # before it readers start and kernels are chosen
READY_STEPS = 160
KINDS = ("folder", "jpeg", "raw")
STOPPED_BY = 60.0  # seconds that the last save may take


def from_files(context: Context, kind: str) -> None:
    """A run that is stopped after some seconds of training; what metrics.jsonl says of them.

    Args:
        kind: folder, jpeg or raw.
    """
    if kind == "folder":
        data = photographs(context.work, PHOTO_COPIES["gpu" if context.is_gpu else "cpu"])
    else:
        data = context.work / "parts" / "pack" / kind
    run, log = context.here / "run", context.here / "run.log"
    settings = SETTINGS if context.is_gpu else f"{TINY} --compile False --log-every 5"
    began = time.monotonic()
    process = context.openmae(f"pretrain {data} --out {run} {settings} {NEVER} --steps 100000", log)
    while _trained(lines := _lines(run)) < (TRAINED if context.is_gpu else 0.5):
        if process.poll() is not None:
            raise Failed(f"the run ended: {tail(log)}")
        time.sleep(0.05)
    stopped = time.monotonic()
    process.send_signal(signal.SIGTERM)
    rate, waiting = rate_of(lines, read_json(run / "config.json")["batch_size"])
    context.note(images_per_second=rate, share_of_waiting=waiting)
    _keep(context, rate)
    if (ready := _kept(context, "ready")) is not None:
        context.note(of_ready_batches=rate / ready)
    context.note(workers=read_json(run / "config.json")["workers"], seconds_to_begin=stopped - began - _trained(lines))
    context.completed(process, log, limit=STOPPED_BY, codes=(3,))
    context.note(seconds_to_exit=time.monotonic() - stopped)


def on_ready(context: Context) -> None:
    """The same loop where every step's batch is the first one, already read: what reading cannot exceed."""
    import openmae
    from openmae.run import batches as batches_of_steps

    real = batches_of_steps.read_steps

    def read_steps(*arguments: Any, **options: Any) -> Generator[Any, None, None]:
        batches = real(*arguments, **options)
        micro_batches = next(batches)
        batches.close()
        yield from itertools.repeat(micro_batches)

    data, run = context.work / "parts" / "pack" / "jpeg", context.here / "run"
    settings: dict[str, Any] = {
        "model": "base",
        "image_size": 224,
        "patch_size": 16,
        "batch_size": BATCH,
        "compile": True,
    }
    if not context.is_gpu:
        settings = {"image_size": 32, "patch_size": 8, "width": 48, "depth": 2, "num_heads": 3, "batch_size": 16}
    never = dict.fromkeys(("evaluate_every", "save_every", "picture_every"), 100_000)
    steps = READY_STEPS if context.is_gpu else 30
    batches_of_steps.read_steps = read_steps
    try:
        openmae.pretrain(
            openmae.PretrainConfig(data=str(data), out=str(run), steps=steps, log_every=5, **never, **settings)
        )
    finally:
        batches_of_steps.read_steps = real
    rate, waiting = rate_of(_lines(run), settings["batch_size"])
    context.note(images_per_second=rate, share_of_waiting=waiting)
    _keep(context, rate)
    for kind in KINDS:
        if (other := _kept(context, kind)) is not None:
            context.note(**{f"{kind}_of_that": other / rate})


def _keep(context: Context, rate: float) -> None:
    (context.here / "rate.json").write_text(json.dumps(rate))


def _kept(context: Context, kind: str) -> float | None:
    """Images/s that another of these parts found."""
    path = context.work / "parts" / f"e2e-{kind}" / "rate.json"
    return float(json.loads(path.read_bytes())) if path.exists() else None


def rate_of(lines: list[dict[str, Any]], batch: int) -> tuple[float, float]:
    """Images/s and share of waiting over some lines of metrics.jsonl, each weighted by its time."""
    steps = [after["step"] - before["step"] for before, after in itertools.pairwise(lines)]
    times = [count * batch / line["images_per_second"] for count, line in zip(steps, lines[1:], strict=True)]
    waited = sum(seconds * line["data_wait"] for seconds, line in zip(times, lines[1:], strict=True))
    return sum(steps) * batch / sum(times), waited / sum(times)


def _lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if "images_per_second" in line and line["step"] >= FIRST_STEP]


def _trained(lines: list[dict[str, Any]]) -> float:
    """Seconds between the first and the last of them."""
    return lines[-1]["seconds"] - lines[0]["seconds"] if len(lines) > 1 else 0.0
