"""JSON-lines files, and progress on the screen."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from openmae.machine.files import atomic_write, disk_faults

PLAIN_LINE_EVERY = 10.0  # seconds between progress lines where stdout is no terminal


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


def filter_lines(path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a file of JSON lines with those that `is_kept` accepts, without one that was cut short."""
    if path.exists():
        kept = [json.dumps(line) + "\n" for line in read_lines(path) if is_kept(line)]
        with disk_faults(path, is_resumable=True), atomic_write(path) as partial:
            partial.write_text("".join(kept))


class ProgressBar:
    """Progress on the screen: a live bar on a terminal, elsewhere a plain line from time to time.

    Args:
        is_timed_from_start: whether the time left is estimated from the first step on; else from `start_clock` on.
    """

    def __init__(
        self, total_steps: int, first_step: int, title: str, quiet: bool = False, is_timed_from_start: bool = True
    ) -> None:
        self.console = Console(stderr=False, highlight=False, quiet=quiet)
        self.total, self.first, self.title = total_steps, first_step, title
        self.last_line = time.monotonic()
        self.started = self.last_line if is_timed_from_start else None
        self.progress: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self.console.quiet:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                console=self.console,
            )
            self.progress.start()
            self.task = self.progress.add_task(self.title, total=self.total, completed=self.first, status="starting")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def update(self, step: int, status: str) -> None:
        """Show progress; `status` holds loss, images/s and so on."""
        left = self.time_left(step)
        text = f"{status}  {format_duration(left)} left" if left is not None and step < self.total else status
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=step, status=text)
        elif time.monotonic() - self.last_line >= PLAIN_LINE_EVERY or step >= self.total:
            self.last_line = time.monotonic()
            self.print(f"{self.title} {step}/{self.total}  {text}")

    def start_clock(self, step: int) -> None:
        """Measure speed from this step on: before it, readers started and kernels were chosen."""
        self.first, self.started = step, time.monotonic()

    def exclude_time(self, seconds: float) -> None:
        """Leave this many of the last seconds out of the measured speed."""
        if self.started is not None:
            self.started += seconds

    def time_left(self, step: int) -> float | None:
        """Seconds until the last step at the speed so far; None while that is not known."""
        if self.started is None or step <= self.first:
            return None
        return (time.monotonic() - self.started) / (step - self.first) * (self.total - step)

    def print(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        self.console.print(text, markup=False, soft_wrap=True)
        self.console.file.flush()


def format_duration(seconds: float) -> str:
    """Seconds in readable units: 42 s, 3 min 20 s, 5 h 03 min, 2 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
