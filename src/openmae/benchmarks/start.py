"""`openmae bench start`: the start-up time of commands, until their first line or their end, each in its own process.

A case is `--help`, `pretrain --help`, a refusal (DATA does not exist), or the first line of `pretrain` and `knn` on
small images that are made for it. The first three are compared with a Python that runs nothing, the others with one
that only imports torch: no command of ours can be quicker than that.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from openmae.benchmarks.rows import Measurement, Row, run_interleaved
from openmae.config import BenchConfig, PretrainConfig
from openmae.config.bench import BENCHMARKS
from openmae.errors import Fault
from openmae.tasks.pretrain.pretrain import pretrain

PYTHON, IMPORT_TORCH = "python -c pass", "python -c 'import torch'"
STATEMENTS = {PYTHON: "pass", IMPORT_TORCH: "import torch"}


@dataclass(frozen=True)
class Case:
    """A command whose start is timed.

    Attributes:
        title: in the table.
        baseline: what it is compared with, a key of `STATEMENTS`.
        goal: the time that we want.
    """

    title: str
    baseline: str
    goal: str | None = None


CASES = {
    "help": Case("openmae --help", PYTHON, "0.4 s"),
    "pretrain-help": Case("openmae pretrain --help", PYTHON, "0.8 s"),
    "refusal": Case("openmae pretrain, refused: no such DATA", PYTHON, "1 s"),
    "pretrain": Case("openmae pretrain, its first line", IMPORT_TORCH),
    "knn": Case("openmae knn, its first line", IMPORT_TORCH),
}
TIMEOUT = 600  # seconds for a process to end; the wait for a first line has no limit
NUM_CLASSES, IMAGES_PER_CLASS, IMAGE_SIZE = 2, 10, 32


def start_rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """A row for each case; the baselines run in the same rounds.

    Raises:
        Fault: a command does not do what it is timed for.
    """
    with tempfile.TemporaryDirectory(prefix="openmae-bench-") as name:
        folder = Path(name)
        cases = {name: CASES[name] for name in config.case or BENCHMARKS["start"]}
        needs_data = any(name in ("pretrain", "knn") for name in cases)
        commands = all_commands(folder, str(device)) if needs_data else commands_without_torch(folder)
        baselines = list(dict.fromkeys(case.baseline for case in cases.values()))
        measurements = [time_of_statement(STATEMENTS[baseline]) for baseline in baselines]
        times = run_interleaved(config.rounds, *measurements, *(commands[name] for name in cases))
    theirs, ours = dict(zip(baselines, times[: len(baselines)], strict=True)), times[len(baselines) :]
    return [
        Row(
            case=case.title,
            peer=case.baseline,
            ours=seconds,
            theirs=theirs[case.baseline],
            details={} if case.goal is None else {"goal": case.goal},
        )
        for case, seconds in zip(cases.values(), ours, strict=True)
    ]


def commands_without_torch(folder: Path) -> dict[str, Measurement]:
    """The cases of commands that end before torch is imported."""
    missing, out = str(folder / "missing"), str(folder / "out")
    return {
        "help": time_to_exit(["--help"], 0),
        "pretrain-help": time_to_exit(["pretrain", "--help"], 0),
        "refusal": time_to_exit(["pretrain", missing, "--out", out], 2),
    }


def all_commands(folder: Path, device: str) -> dict[str, Measurement]:
    """All cases. Makes the images and trains the model that some of them need."""
    data, run, out = str(write_classes(folder / "images")), str(folder / "run"), folder / "new"
    shape = {"image_size": IMAGE_SIZE, "patch_size": 8, "width": 32, "depth": 1, "num_heads": 2}
    small = {**shape, "decoder_width": 32, "decoder_depth": 1, "batch_size": 4, "held_out": 2, "workers": 0}
    with redirect_stdout(StringIO()):
        pretrain(PretrainConfig(data=data, out=run, steps=1, precision="fp32", device="cpu", **small))  # type: ignore[arg-type]
    flags = [word for name, value in small.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    on_device = ["--device", device, "--out", str(out)]
    knn = ["knn", data, "--init", run, "--k", "1", "--workers", "0", *on_device]
    return commands_without_torch(folder) | {
        "pretrain": time_to_first_line(["pretrain", data, "--steps", "1000", *flags, *on_device], out),
        "knn": time_to_first_line(knn, out),
    }


def write_classes(folder: Path) -> Path:
    """Write class folders of small images of noise."""
    rng = np.random.default_rng(0)
    for number in range(NUM_CLASSES * IMAGES_PER_CLASS):
        path = folder / f"class-{number % NUM_CLASSES}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)).save(path)
    return folder


def time_of_statement(statement: str) -> Measurement:
    """Measures the seconds of a Python process that runs one statement."""
    return _seconds(lambda: subprocess.run([sys.executable, "-c", statement], check=True, timeout=TIMEOUT))


def time_to_exit(arguments: list[str], exit_code: int) -> Measurement:
    """Measures the seconds of a command from its start to its end, which must be with `exit_code`."""

    def run_command() -> None:
        finished = subprocess.run(_command(arguments), capture_output=True, text=True, timeout=TIMEOUT)
        if finished.returncode != exit_code or not (finished.stdout or finished.stderr):
            ending = f"ended with {finished.returncode} and not {exit_code}"
            raise Fault(f"openmae {arguments[0]} {ending}: {finished.stderr[-300:]}")

    return _seconds(run_command)


def time_to_first_line(arguments: list[str], out: Path) -> Measurement:
    """Measures the seconds of a command from its start to its first line; it is then killed, and its `out` removed."""

    def measure() -> float:
        start = time.perf_counter()
        pipe = subprocess.PIPE
        with subprocess.Popen(_command(arguments), stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            seconds = time.perf_counter() - start
            process.kill()
            _, errors = process.communicate(timeout=TIMEOUT)
        if not line.strip():
            raise Fault(f"openmae {arguments[0]} ended without a line: {errors[-300:]}")
        shutil.rmtree(out, ignore_errors=True)
        return seconds

    return measure


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "openmae", *arguments]


def _seconds(action: Callable[[], object]) -> Measurement:
    def measure() -> float:
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    return measure
