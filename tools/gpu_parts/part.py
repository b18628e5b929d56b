"""A part of the check: its description, what it needs, and the context in which its function runs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).parents[2]
LAST_LINES = 12  # of an output, that a failure quotes
NO_COMPILER = {"TORCH_COMPILE_DISABLE": "1", "TORCHDYNAMO_DISABLE": "1"}  # where a command compiles unasked


class Failed(Exception):
    """A check did not hold; the message says which, with the figures that show it."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Attributes:
    name, group, does: for `--only` and the table.
    function: MODULE:NAME in this package, called with a `Context` and the `options`; or an absolute module.
    limit: seconds after which it is stopped.
    expected: seconds that it probably takes; with fewer left it is not started.
    cores, memory: what it uses of the CPU and (GB) of the GPU; parts run side by side as long as these suffice.
    alone: whether nothing may run beside it, because it measures times.
    after: parts that must have passed.
    """

    name: str
    group: str
    does: str
    function: str
    limit: float
    expected: float
    cores: int = 2
    memory: float = 2.0
    alone: bool = False
    after: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


class Running(Protocol):
    """A started command: `subprocess.Popen`, or what a test puts in its place."""

    pid: Any

    def poll(self) -> int | None: ...

    def send_signal(self, number: int) -> None: ...


@dataclass
class Context:
    """The argument of a part's function.

    Attributes:
        device: cuda; or cpu, to try the parts at tiny sizes.
        work: folder of all parts: data, and runs that later parts need.
        here: folder of this part alone.
        result: the file by which the scheduler gets the results, also of a part that is stopped.
        start: how a command is started; its output is appended to the file.
    """

    device: str
    work: Path
    here: Path
    result: Path
    start: Callable[[Sequence[str], Path, Mapping[str, str]], Running] | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def expected_device(self) -> str:
        """The device's name in a run's config.json: a CUDA device always has its index there."""
        return "cuda:0" if self.is_gpu else "cpu"

    def note(self, **figures: Any) -> None:
        """Record figures."""
        self.figures |= figures
        self.write()

    def write(self, **more: Any) -> None:
        write_atomically(self.result, json.dumps({"figures": self.figures, "rows": self.rows, **more}))

    def openmae(self, arguments: str | Sequence[str], log: Path, environment: Mapping[str, str] = {}) -> Running:
        """Start `openmae ARGUMENTS`."""
        words = arguments.split() if isinstance(arguments, str) else [str(word) for word in arguments]
        with log.open("a") as file:
            file.write(f"$ openmae {' '.join(words)}\n")
        return (self.start or start_openmae)(words, log, environment)

    def completed(self, process: Running, log: Path, limit: float = 600.0, codes: Sequence[int] = (0,)) -> float:
        """Wait for a command to end well; return the seconds waited. Raises Failed."""
        began = time.monotonic()
        while (code := process.poll()) is None:
            if time.monotonic() - began > limit:
                raise Failed(f"not ended after {limit:.0f} s; its last lines: {tail(log)}")
            time.sleep(0.02)
        if code not in codes:
            raise Failed(f"exit {code}: {tail(log)}")
        if "Traceback (most recent call last)" in (output := log.read_text(errors="replace")):
            raise Failed(f"a traceback in its output: {output[output.index('Traceback') :][:1500]}")
        return time.monotonic() - began


def start_openmae(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Running:
    return start_python(["-m", "openmae", *words], log, environment)


def start_python(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start this Python with some arguments, in the process group of whoever asks."""
    with log.open("ab") as file:
        given = {**os.environ, **environment}
        return subprocess.Popen([sys.executable, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=given)


def tail(log: Path, lines: int = LAST_LINES) -> str:
    """The last lines of an output, as one."""
    try:
        text = log.read_bytes()[-20_000:].decode(errors="replace")
    except OSError:
        return "(no output)"
    kept = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return " | ".join(kept[-lines:]) or "(no output)"


def write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(text)
    partial.replace(path)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl so far."""
    lines = []
    try:
        text = (run / "metrics.jsonl").read_text()
    except OSError:
        return []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue  # cut short: it is being written
    return lines


def read_json(path: Path) -> dict[str, Any]:
    """Raises Failed where the file is missing or no JSON."""
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Failed(f"{path.name} cannot be read: {error}") from None
    return values
