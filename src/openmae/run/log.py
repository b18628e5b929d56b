"""The files of a run that grow as it goes: metrics.jsonl, TensorBoard, pictures; and summary.json at its end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openmae.machine.files import disk_faults, write_json, written_aside
from openmae.run.quarantine import Quarantine
from openmae.training.telemetry import keep_lines


class RunLog:
    """The files of a run that grow or change as it goes.

    Args:
        run: the run folder.
        resume_step: keep the lines up to this step and go on behind them.
        evaluated: whether the evaluations of that step are done; else their lines will be written anew.
        writes: False in all processes but the first: they only keep count.

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
        """Forget the lines of metrics.jsonl behind `step`, and its evaluations unless they are done."""
        if self.writes:
            behind = step + 1 if evaluated else step
            keep_lines(
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
        if not self.writes:
            return
        path = self.run / "pictures" / f"step-{step:08d}.png"
        with disk_faults(path), written_aside(path) as partial:
            picture.save(partial)
        self.board.add_image("reconstructions", np.asarray(picture), step, dataformats="HWC")

    def summary(self, values: dict[str, Any]) -> None:
        if not self.writes:
            return
        with disk_faults(self.run / "summary.json", is_resumable=True):
            write_json(self.run / "summary.json", values)

    def close(self) -> None:
        if self.writes:
            self.board.close()
