"""What a run tells: metrics.jsonl, TensorBoard, summary.json, quarantine.jsonl and the progress on the screen."""

import json
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from torch.utils.tensorboard import SummaryWriter

from openmae.machine.files import disk_faults, write_json, written_aside

PLAIN_LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal


class RunLog:
    """The files of a run that grow or change as it goes.

    Args:
        run: the run folder.
        resume_step: keep the lines up to this step and go on behind them.
        evaluated: whether the evaluations of that step are done; else their lines will be written anew.
        writes: False in all processes but the first: they only keep count.
    """

    def __init__(self, run: Path, resume_step: int = 0, evaluated: bool = True, writes: bool = True) -> None:
        self.run, self.writes = run, writes
        self.metrics_path = run / "metrics.jsonl"
        self.quarantine_path = run / "quarantine.jsonl"
        if writes and resume_step == 0:  # what an earlier try found may have been repaired
            self.quarantine_path.unlink(missing_ok=True)
        known = read_lines(self.quarantine_path) if resume_step else []
        self.quarantined = {line["name"] for line in known if "name" in line and "part" not in line}
        if writes:
            self.rewind(resume_step, evaluated)
            _keep_lines(self.quarantine_path, lambda line: True)
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=resume_step + 1)

    def rewind(self, step: int, evaluated: bool) -> None:
        """Forget the lines of metrics.jsonl behind `step`, and its evaluations unless they are done."""
        if self.writes:
            behind = step + 1 if evaluated else step
            _keep_lines(
                self.metrics_path,
                lambda line: line.get("step", behind) < behind or (line.get("step") == step and "lr" in line),
            )

    def metrics(self, **values: float | None) -> None:
        """Append a line; `step` is among the values, what was not measured is None and left out."""
        if not self.writes:
            return
        measured = {name: value for name, value in values.items() if value is not None}
        with disk_faults(self.metrics_path, is_resumable=True), self.metrics_path.open("a") as file:
            file.write(json.dumps(measured) + "\n")
        for name, value in measured.items():
            if name != "step":
                self.board.add_scalar(name, value, int(measured["step"]))

    def picture(self, picture: Image.Image, step: int) -> None:
        """Keep a sheet of reconstructions: RUN/pictures and TensorBoard."""
        path = self.run / "pictures" / f"step-{step:08d}.png"
        with disk_faults(path), written_aside(path) as partial:
            picture.save(partial)
        self.board.add_image("reconstructions", np.asarray(picture), step, dataformats="HWC")

    def quarantine(self, bad: dict[str, str]) -> list[str]:
        """Append the inputs that were not known as bad yet; return their names."""
        new = {name: reason for name, reason in bad.items() if name not in self.quarantined}
        if new:
            self.quarantined |= new.keys()
        if new and self.writes:
            with disk_faults(self.quarantine_path, is_resumable=True), self.quarantine_path.open("a") as file:
                file.writelines(json.dumps({"name": name, "reason": reason}) + "\n" for name, reason in new.items())
        return list(new)

    def quarantine_of(self, part: str, bad: dict[str, str]) -> None:
        """Put the unreadable inputs of a part that is only measured on record; they never count against `max_bad`."""
        if self.writes:
            _keep_lines(self.quarantine_path, lambda line: line.get("part") != part)
            if bad:
                lines = [json.dumps({"name": name, "reason": reason, "part": part}) for name, reason in bad.items()]
                with disk_faults(self.quarantine_path, is_resumable=True), self.quarantine_path.open("a") as file:
                    file.writelines(line + "\n" for line in lines)

    def summary(self, values: dict[str, Any]) -> None:
        if not self.writes:
            return
        with disk_faults(self.run / "summary.json", is_resumable=True):
            write_json(self.run / "summary.json", values)

    def close(self) -> None:
        if self.writes:
            self.board.close()


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


def _keep_lines(path: Path, wanted: Any) -> None:
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
