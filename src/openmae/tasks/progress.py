"""Where a run stands: what it has seen, waited for and measured, between two lines of metrics.jsonl."""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from openmae.data.loader import Batch
from openmae.errors import Fault, RequestError
from openmae.training.telemetry import RunLog

DATA_BOUND = 0.2  # share of waiting from which the readout says what to do


class Progress:
    """Counts and measures a run and writes it to its log.

    Args:
        log: the run's files.
        num_images: images of the training set; an epoch.
        num_inputs: all inputs, of which at most `max_bad` may be unreadable.
        state: what `to_dict` gave at the checkpoint that the run goes on from.
    """

    def __init__(
        self, log: RunLog, *, batch_size: int, num_images: int, num_inputs: int, max_bad: float, state: dict[str, Any]
    ) -> None:
        self.log, self.batch_size, self.num_images = log, batch_size, num_images
        self.num_inputs, self.max_bad = num_inputs, max_bad
        self.results: dict[str, float] = state.get("results", {})
        self.evaluated_step = int(state.get("evaluated_step", 0))
        self.loss_sum = torch.tensor(state.get("loss_sum", 0.0))
        self.loss_steps = int(state.get("loss_steps", 0))
        self.started = time.monotonic() - state.get("seconds", 0.0)
        self.line_at, self.line_steps, self.waited = time.monotonic(), 0, 0.0

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run writes the same lines. Waits for the device.

        Raises:
            Fault: the loss is not finite; what led to it must not be saved.
        """
        self._check_finite(float(self.loss_sum))
        return {
            "results": self.results,
            "evaluated_step": self.evaluated_step,
            "loss_sum": float(self.loss_sum),
            "loss_steps": self.loss_steps,
            "seconds": self.seconds,
        }

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 1)

    def wait_for(self, batches: Iterator[list[Batch]]) -> list[Batch]:
        """The next step's micro-batches, with the waiting timed."""
        before = time.monotonic()
        parts = next(batches)
        self.waited += time.monotonic() - before
        return parts

    def add(self, loss: Tensor) -> None:
        """Count a step; its loss stays on the device."""
        self.loss_sum = self.loss_sum.to(loss.device) + loss
        self.loss_steps += 1
        self.line_steps += 1

    def line(self, step: int, rate: float, norm: Tensor | None, memory: int) -> str:
        """Write a line of metrics.jsonl and return its short form for the screen. Waits for the device.

        Raises:
            Fault: the loss is not finite.
        """
        loss = float(self.loss_sum) / max(self.loss_steps, 1)
        self._check_finite(loss)
        elapsed = time.monotonic() - self.line_at
        speed = self.line_steps * self.batch_size / max(elapsed, 1e-9)
        waiting = min(self.waited / max(elapsed, 1e-9), 1.0)
        self.results["loss"] = loss
        self.log.metrics(
            step=step,
            epoch=round(step * self.batch_size / self.num_images, 4),
            images_seen=step * self.batch_size,
            loss=loss,
            lr=rate,
            grad_norm=float(norm) if norm is not None else None,
            images_per_second=round(speed, 2),
            data_wait=round(waiting, 4),
            memory=memory,
            seconds=self.seconds,
        )
        self.loss_sum, self.loss_steps = torch.zeros_like(self.loss_sum), 0
        self.line_at, self.line_steps, self.waited = time.monotonic(), 0, 0.0
        held_out = f"  held out {self.results['held_out_loss']:.4f}" if "held_out_loss" in self.results else ""
        bound = f"  waiting for data {waiting:.0%} (more --workers?)" if waiting > DATA_BOUND else ""
        return f"loss {loss:.4f}{held_out}  {speed:.0f} images/s{bound} "

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise Fault(
                f"the loss has become {loss}: try a lower --base-lr or --precision fp32; nothing of it was saved"
            )

    def evaluated(self, step: int, results: dict[str, float], seconds: float) -> None:
        """Write what evaluators found; the time they took is not the training's."""
        self.line_at += seconds
        self.evaluated_step = step
        self.results |= results
        if results:
            images_seen = step * self.batch_size
            self.log.metrics(
                step=step, epoch=round(images_seen / self.num_images, 4), images_seen=images_seen, **results
            )

    def note_bad(self, bad: dict[str, str]) -> list[str]:
        """Put unreadable inputs on record; return those that were not known.

        Raises:
            RequestError: they are more than `max_bad` of all inputs.
        """
        new = self.log.quarantine(bad)
        count = len(self.log.quarantined)
        if count > self.max_bad * self.num_inputs:
            last = f", the last {new[-1]!r} ({bad[new[-1]]})" if new else ""
            raise RequestError(
                f"{count} of {self.num_inputs:,} inputs cannot be read{last}: more "
                f"than --max-bad {self.max_bad:g}; {self.log.quarantine_path} names them, a higher --max-bad skips them"
            )
        return new

    def summary(self, status: str, step: int) -> dict[str, Any]:
        """What summary.json holds."""
        return {
            "status": status,
            "step": step,
            "images_seen": step * self.batch_size,
            "epoch": round(step * self.batch_size / self.num_images, 4),
            **self.results,
            "bad_inputs": len(self.log.quarantined),
            "seconds": self.seconds,
        }
