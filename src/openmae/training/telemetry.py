"""Files of JSON lines, and progress on the screen."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from openmae.machine.files import disk_faults, written_aside

PLAIN_LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file; a line cut short by a crash is left out, a missing file is empty."""
    lines = []
    if path.exists():
        for text in path.read_text(errors="replace").splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict):
                lines.append(line)
    return lines


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Write a file of JSON lines again without those that are not wanted, and without one that was cut short."""
    if path.exists():
        kept = [json.dumps(line) + "\n" for line in read_lines(path) if wanted(line)]
        with disk_faults(path, is_resumable=True), written_aside(path) as partial:
            partial.write_text("".join(kept))


class Screen:
    """Progress for a person: a live bar on a terminal, a plain line now and then elsewhere.

    Args:
        has_pace: whether the first step counts for the time left; else that is left open until `start_clock`.
    """

    def __init__(
        self, total_steps: int, first_step: int, title: str, quiet: bool = False, has_pace: bool = True
    ) -> None:
        self.console = Console(stderr=False, highlight=False, quiet=quiet)
        self.total, self.first, self.title = total_steps, first_step, title
        self.last_line = time.monotonic()
        self.started = self.last_line if has_pace else None
        self.progress: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self.console.quiet:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[say]}"),
                console=self.console,
            )
            self.progress.start()
            self.task = self.progress.add_task(self.title, total=self.total, completed=self.first, say="starting")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def update(self, step: int, say: str) -> None:
        """Show where the run stands; `say` holds loss, images/s and so on."""
        left = self.time_left(step)
        text = f"{say}  {duration(left)} left" if left is not None and step < self.total else say
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=step, say=text)
        elif time.monotonic() - self.last_line >= PLAIN_LINE_EVERY or step >= self.total:
            self.last_line = time.monotonic()
            self.say(f"{self.title} {step}/{self.total}  {text}")

    def start_clock(self, step: int) -> None:
        """Count the pace from this step on: before it, readers started and kernels were chosen."""
        self.first, self.started = step, time.monotonic()

    def leave_out(self, seconds: float) -> None:
        """The last so many seconds do not count for the pace."""
        if self.started is not None:
            self.started += seconds

    def time_left(self, step: int) -> float | None:
        """Seconds until the last step, at the pace so far; None while there is none."""
        if self.started is None or step <= self.first:
            return None
        return (time.monotonic() - self.started) / (step - self.first) * (self.total - step)

    def say(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        self.console.print(text, markup=False, soft_wrap=True)
        self.console.file.flush()


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 3 min 20 s, 5 h 03 min, 2 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
