"""Every command at tiny scale, by default and on a device with its index: exit code, what it leaves, finite numbers."""

import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu_parts.data import corrupted, labelled, masked, photographs, with_objects
from gpu_parts.part import NO_COMPILER, Context, Failed, read_json, read_metrics, start_python

MODEL = "--image-size 32 --patch-size 8 --width 48 --depth 2 --num-heads 3"
DECODER = "--decoder-width 32 --decoder-depth 1 --decoder-num-heads 2"
TINY = f"{MODEL} {DECODER} --batch-size 16 --steps 12 --log-every 2 --evaluate-every 6 --save-every 6 --workers 1"
LABELLED = "--steps 8 --batch-size 16 --log-every 2 --workers 1"
PHOTO_COPIES = {"gpu": 50, "cpu": 1}  # copies of each photograph: 2000 images
PACKS = {"jpeg": 256, "raw": 256}  # short side in pixels

Check = Callable[[Path], None]


def default_run(context: Context) -> Path:
    """The pre-training run that later parts start from."""
    return context.work / "parts" / "pretrain" / "default"


def run_on_devices(
    context: Context, arguments: Callable[[Path], str], check: Check, *names: str, end: str = ""
) -> None:
    """Run a command once for each way to name a device, side by side, and check what each wrote.

    Args:
        arguments: from a path to the command line that writes to it.
        check: checks the path; raises Failed.
        names: of devices; `default` passes none. Unless given, that and the device with its index.
        end: the extension of the path.
    """
    names = names or ("default", context.expected_device)
    runs = []
    for name in names:
        out, log = context.here / f"{name.replace(':', '-')}{end}", context.here / f"{name.replace(':', '-')}.log"
        device = f" --device {name}" if name != "default" else ""
        runs.append((name, out, log, context.openmae(arguments(out) + device, log, NO_COMPILER), time.monotonic()))
    for name, out, log, process, began in runs:
        try:
            context.completed(process, log)
            check(out)
        except Failed as failure:
            raise Failed(f"{name}: {failure}") from None
        context.note(**{name: f"{time.monotonic() - began:.1f} s"})


def is_good_run(context: Context, steps: int | None = None) -> Check:
    """A check of a run folder: complete, all numbers finite, on a device with an index."""

    def check(run: Path) -> None:
        summary, config = read_json(run / "summary.json"), read_json(run / "config.json")
        if summary.get("status") != "complete" or (steps is not None and summary.get("step") != steps):
            raise Failed(f"summary.json says {summary.get('status')!r} at step {summary.get('step')}")
        if config.get("device") != context.expected_device:
            raise Failed(f"config.json says device {config.get('device')!r}, not {context.expected_device!r}")
        lines = read_metrics(run)
        losses = [line["loss"] for line in lines if "loss" in line]
        if not losses:
            raise Failed("metrics.jsonl holds no loss")
        check_finite(lines, "metrics.jsonl")
        check_finite(summary, "summary.json")

    return check


def check_finite(values: Any, where: str) -> None:
    """Raise Failed where a number in nested values is not finite or is missing."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, dict | list):
            check_finite(value, where)
        elif isinstance(value, float) and not math.isfinite(value):
            raise Failed(f"{where} holds {value}")
        elif value is None and where == "metrics.jsonl":
            raise Failed(f"{where} holds a loss or norm that was not finite")


def holds_something(path: Path) -> None:
    size = path.stat().st_size if path.is_file() else sum(1 for _ in path.glob("*")) if path.is_dir() else 0
    if not size:
        raise Failed(f"{path.name} is missing or empty")


def has_finite_summary(out: Path) -> None:
    check_finite(read_json(out / "summary.json"), "summary.json")


def pretrain(context: Context) -> None:
    names = ("default", "cuda", "cuda:0") if context.is_gpu else ("default", "cpu")
    data = labelled(context.work)
    run_on_devices(
        context, lambda out: f"pretrain {data} --out {out} {TINY} --compile False", is_good_run(context, 12), *names
    )


def pretrain_compiled(context: Context) -> None:
    """Compiled, the default on a GPU: a line announces it before the first step, and the first gradients are equal."""
    out, log = context.here / "run", context.here / "run.log"
    began = time.monotonic()
    process = context.openmae(
        f"pretrain {labelled(context.work)} --out {out} {TINY} --compile {context.is_gpu} --steps 40", log
    )
    context.completed(process, log)
    is_good_run(context, 40)(out)
    output = log.read_text(errors="replace").replace(str(out), "OUT").splitlines()
    lines = [line.strip() for line in output if "ompil" in line and "--compile" not in line]
    context.note(seconds=time.monotonic() - began, output=" / ".join(lines)[:400] or "nothing")
    if context.is_gpu and not any("compiling" in line.lower() for line in lines):
        raise Failed("no line says that the step is being compiled")
    if context.is_gpu and any(re.search(r"going on (eagerly|without compiling)", line) for line in lines):
        raise Failed("the compiled gradients were given up")


def finetune(context: Context) -> None:
    data, init = labelled(context.work), default_run(context)
    run_on_devices(
        context, lambda out: f"finetune {data} --init {init} --out {out} {LABELLED}", is_good_run(context, 8)
    )


def probe(context: Context) -> None:
    data, init = labelled(context.work), default_run(context)
    run_on_devices(context, lambda out: f"probe {data} --init {init} --out {out} {LABELLED}", is_good_run(context, 8))


def segment(context: Context) -> None:
    data, init = masked(context.work), default_run(context)
    run_on_devices(
        context,
        lambda out: f"segment {data} --init {init} --out {out} --steps 8 --batch-size 8 --log-every 2 --workers 1",
        is_good_run(context, 8),
    )
    run_on_devices(
        context,
        lambda out: (
            f"segment {data}/images/val --init {out.parent / out.name.removesuffix('-masks')} --predict "
            f"--out {out} --workers 1"
        ),
        lambda out: holds_something(out / "masks"),
        end="-masks",
    )


def detect(context: Context) -> None:
    data, init = with_objects(context.work), default_run(context)
    run_on_devices(
        context,
        lambda out: f"detect {data} --init {init} --out {out} --steps 8 --batch-size 4 --log-every 2 --workers 1",
        is_good_run(context, 8),
    )
    run_on_devices(
        context,
        lambda out: (
            f"detect {data}/images/val --init {out.parent / out.name.removesuffix('-found')} --predict "
            f"--out {out} --workers 1"
        ),
        lambda out: holds_something(out / "overlays"),
        end="-found",
    )


def knn(context: Context) -> None:
    data, init = labelled(context.work), default_run(context)
    run_on_devices(context, lambda out: f"knn {data} --init {init} --out {out} --k 5 --workers 1", has_finite_summary)


def embed(context: Context) -> None:
    import numpy as np

    data, init = labelled(context.work), default_run(context)

    def check(out: Path) -> None:
        features = np.load(out)["features"]
        if not np.isfinite(features).all() or not features.std() > 0:
            raise Failed(f"features of shape {features.shape} are not finite, or all alike")

    run_on_devices(context, lambda out: f"embed {data} --init {init} --out {out} --workers 1", check, end=".npz")


def attention(context: Context) -> None:
    data, init = labelled(context.work), default_run(context)
    run_on_devices(context, lambda out: f"attention {data} --init {init} --out {out}", holds_something, end=".png")


def reconstruct(context: Context) -> None:
    data, init = labelled(context.work), default_run(context)
    run_on_devices(context, lambda out: f"reconstruct {data} --init {init} --out {out}", holds_something, end=".png")


def robustness(context: Context) -> None:
    images, init = corrupted(context.work), context.work / "parts" / "finetune" / "default"
    run_on_devices(
        context,
        lambda out: f"robustness --init {init} --out {out} --imagenet-c {images} --workers 1",
        has_finite_summary,
    )


def experiment(context: Context) -> None:
    data = labelled(context.work)

    def check(out: Path) -> None:
        found = read_json(out / "results.json")
        check_finite(found, "results.json")
        assert all("failed" not in row for row in found["rows"]), "a row has failed: see results.md"

    settings = "--scale tiny --jobs 2 --held-out 12 --workers 1"
    run_on_devices(context, lambda out: f"experiment table-1c {data} --out {out} {settings}", check)


def demo(context: Context) -> None:
    steps = 20 if context.is_gpu else 2
    run_on_devices(context, lambda out: f"demo --out {out} --steps {steps}", is_good_run(context, steps))


def bench(context: Context) -> None:
    def check(out: Path) -> None:
        if not any(row["ours"] for row in read_json(out)["rows"]):
            raise Failed("no row was measured")

    run_on_devices(context, lambda out: f"bench step --case tiny --quick --json {out}", check, end=".json")


def convert(context: Context) -> None:
    """Runs on no device, as `inspect`."""
    _one_after_another(
        context,
        [f"convert {default_run(context)} {context.here / 'timm'} --to timm --part encoder"],
        [f"convert {default_run(context)} {context.here / 'model.pth'} --to reference"],
    )
    holds_something(context.here / "timm")
    holds_something(context.here / "model.pth")


def inspect(context: Context) -> None:
    _one_after_another(
        context,
        [f"inspect {labelled(context.work)} --workers 1 --out {context.here / 'data'}"],
        [f"inspect {default_run(context)}"],
        [f"inspect {default_run(context) / 'model.safetensors'}"],
    )


def pack(context: Context) -> None:
    """Packs of photographs as JPEGs and as raw values, which later parts read; verified after writing."""
    data = photographs(context.work, PHOTO_COPIES["gpu" if context.is_gpu else "cpu"])
    commands = []
    for form, size in PACKS.items():
        out = context.here / form
        commands.append([f"pack {data} {out} --format {form} --size {size}", f"pack {out} --verify"])
    _one_after_another(context, *commands)


def _one_after_another(context: Context, *lines: Sequence[str]) -> None:
    """Run lines of commands side by side, the commands of each one after another."""
    began, waiting = time.monotonic(), [list(commands) for commands in lines]
    running: dict[int, Any] = {}
    while any(waiting) or running:
        for number, commands in enumerate(waiting):
            if number in running and running[number].poll() is not None:
                context.completed(running.pop(number), context.here / f"{number}.log")
            if number not in running and commands:
                running[number] = context.openmae(commands.pop(0), context.here / f"{number}.log", NO_COMPILER)
        time.sleep(0.02)
    context.note(seconds=time.monotonic() - began)


def torchrun(context: Context) -> None:
    """As many processes as there are GPUs, two at most: NCCL takes a GPU for each."""
    import torch

    count = min(2, torch.cuda.device_count()) if context.is_gpu else 2
    out, log = context.here / "run", context.here / "run.log"
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "openmae", "pretrain"]
    words += [str(labelled(context.work)), "--out", str(out), *TINY.split(), "--compile", "False"]
    process = start_python(words, log, {"OMP_NUM_THREADS": "1"})
    context.note(processes=count)
    context.completed(process, log)
    is_good_run(context, 12)(out)
