"""`openmae bench start`: how long a user waits for a command's first words, each in a process of its own.

A case is `--help`, `pretrain --help`, a refusal (DATA that is not there), or the first line of `pretrain` and `knn` on
small images that are made for it. The yardstick of the first three is an interpreter that does nothing, of the others
one that imports torch: nothing of ours can be quicker.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from openmae.benchmarks.rows import Row, Side, run_interleaved
from openmae.config import BenchConfig, PretrainConfig
from openmae.config.bench import BENCHMARKS
from openmae.errors import Fault
from openmae.tasks.pretrain.pretrain import pretrain

GOALS = {"help": "0.4 s", "pretrain-help": "0.8 s", "refusal": "1 s"}
CASE_NAMES = {
    "help": "openmae --help",
    "pretrain-help": "openmae pretrain --help",
    "refusal": "openmae pretrain, refused: no such DATA",
    "pretrain": "openmae pretrain, its first line",
    "knn": "openmae knn, its first line",
}
NOTHING, TORCH = "python -c pass", "python -c 'import torch'"
LONGEST = 600  # seconds; what takes longer has hung
CLASSES, IMAGES, SIDE = 2, 10, 32  # of each class; pixels


def start_rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """A row for each case, the yardsticks in the same rounds.

    Raises:
        Fault: a command does not do what it is timed for.
    """
    with tempfile.TemporaryDirectory(prefix="openmae-bench-") as folder:
        place = Path(folder)
        names = config.case or BENCHMARKS["start"]
        needs_data = any(name in ("pretrain", "knn") for name in names)
        commands = commands_on(place, str(device)) if needs_data else quick_commands(place)
        peers = list(dict.fromkeys(peer_of(name) for name in names))
        sides: list[Side] = [bare("pass" if peer == NOTHING else "import torch") for peer in peers]
        times = run_interleaved(config.rounds, *sides, *(commands[name] for name in names))
    theirs = dict(zip(peers, times, strict=False))
    return [
        Row(
            case=CASE_NAMES[name],
            peer=peer_of(name),
            ours=ours,
            theirs=theirs[peer_of(name)],
            details={"goal": GOALS[name]} if name in GOALS else {},
        )
        for name, ours in zip(names, times[len(peers) :], strict=True)
    ]


def peer_of(name: str) -> str:
    """What a case is compared with."""
    return NOTHING if name in GOALS else TORCH


def quick_commands(place: Path) -> dict[str, Side]:
    """Those that load no torch."""
    missing, out = str(place / "missing"), str(place / "out")
    return {
        "help": whole(["--help"], 0),
        "pretrain-help": whole(["pretrain", "--help"], 0),
        "refusal": whole(["pretrain", missing, "--out", out], 2),
    }


def commands_on(place: Path, device: str) -> dict[str, Side]:
    """All commands, and the images and the model that some of them need."""
    data, run = str(write_classes(place / "images")), str(place / "run")
    shape = {"image_size": SIDE, "patch_size": 8, "width": 32, "depth": 1, "num_heads": 2}
    small = {**shape, "decoder_width": 32, "decoder_depth": 1, "batch_size": 4, "held_out": 2, "workers": 0}
    with redirect_stdout(StringIO()):
        pretrain(PretrainConfig(data=data, out=run, steps=1, precision="fp32", device="cpu", **small))  # type: ignore[arg-type]
    flags = [word for name, value in small.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    on_device = ["--device", device, "--out", str(place / "new")]
    return quick_commands(place) | {
        "pretrain": first_line(["pretrain", data, "--steps", "1000", *flags, *on_device], place / "new"),
        "knn": first_line(["knn", data, "--init", run, "--k", "1", "--workers", "0", *on_device], place / "new"),
    }


def write_classes(folder: Path) -> Path:
    """Class folders of small images of noise."""
    rng = np.random.default_rng(0)
    for number in range(CLASSES * IMAGES):
        path = folder / f"class-{number % CLASSES}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    return folder


def bare(statement: str) -> Side:
    """Seconds of an interpreter that runs one statement."""
    return _seconds(lambda: subprocess.run([sys.executable, "-c", statement], check=True, timeout=LONGEST))


def whole(arguments: list[str], code: int) -> Side:
    """Seconds of a command from its start to its end, which must be with this exit code."""

    def go() -> None:
        done = subprocess.run(_command(arguments), capture_output=True, text=True, timeout=LONGEST)
        if done.returncode != code or not (done.stdout or done.stderr):
            raise Fault(f"openmae {arguments[0]} ended with {done.returncode} and not {code}: {done.stderr[-300:]}")

    return _seconds(go)


def first_line(arguments: list[str], out: Path) -> Side:
    """Seconds of a command from its start to its first line; then it is killed, and its `out` removed."""

    def measure() -> float:
        start = time.perf_counter()
        pipe = subprocess.PIPE
        with subprocess.Popen(_command(arguments), stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            seconds = time.perf_counter() - start
            process.kill()
            _, said = process.communicate(timeout=LONGEST)
        if not line.strip():
            raise Fault(f"openmae {arguments[0]} ended without a line: {said[-300:]}")
        shutil.rmtree(out, ignore_errors=True)
        return seconds

    return measure


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "openmae", *arguments]


def _seconds(go: Callable[[], object]) -> Side:
    def measure() -> float:
        start = time.perf_counter()
        go()
        return time.perf_counter() - start

    return measure
