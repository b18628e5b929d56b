"""The files that a run writes as it trains: metrics.jsonl, TensorBoard, pictures, and summary.json at its end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openmae.machine.files import atomic_write, disk_faults, write_json
from openmae.run.quarantine import Quarantine
from openmae.training.telemetry import filter_lines


class RunLog:
    """The files that a run writes as it trains.

    Args:
        run: the run folder.
        resume_step: keep the lines up to this step and append to them.
        evaluated: whether the evaluations of that step are done; else their lines will be written again.
        writes: False in all processes but the first, which only count.

    Attributes:
        quarantine: the bad inputs.
    """

    def __init__(self, run: Path, resume_step: int = 0, evaluated: bool = True, writes: bool = True) -> None:
        self.run, self.writes = run, writes
        self.metrics_path = run / "metrics.jsonl"
        self.quarantine = Quarantine(run, keeps_known=resume_step > 0, writes=writes)
        if writes:
            from torch.utils.tensorboard import SummaryWriter  # takes half a second

            self.rewind(resume_step, evaluated)
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=resume_step + 1)

    def rewind(self, step: int, evaluated: bool) -> None:
        """Remove the lines of metrics.jsonl after `step`, and those of its evaluations unless they are done."""
        if self.writes:
            end = step + 1 if evaluated else step
            filter_lines(
                self.metrics_path,
                lambda line: line.get("step", end) < end or (line.get("step") == step and "lr" in line),
            )

    def metrics(self, **values: float | None) -> None:
        """Append a line to metrics.jsonl; `step` must be among the values, and those that are None are left out."""
        if not self.writes:
            return
        measured = {name: value for name, value in values.items() if value is not None}
        with disk_faults(self.metrics_path, is_resumable=True), self.metrics_path.open("a") as file:
            file.write(json.dumps(measured) + "\n")
        for name, value in measured.items():
            if name != "step":
                self.board.add_scalar(name, value, int(measured["step"]))

    def picture(self, picture: Image.Image, step: int) -> None:
        """Write a sheet of reconstructions to RUN/pictures and TensorBoard."""
        if not self.writes:
            return
        path = self.run / "pictures" / f"step-{step:08d}.png"
        with disk_faults(path), atomic_write(path) as partial:
            picture.save(partial)
        self.board.add_image("reconstructions", np.asarray(picture), step, dataformats="HWC")

    def summary(self, values: dict[str, Any]) -> None:
        """Write summary.json."""
        if not self.writes:
            return
        with disk_faults(self.run / "summary.json", is_resumable=True):
            write_json(self.run / "summary.json", values)

    def close(self) -> None:
        if self.writes:
            self.board.close()
