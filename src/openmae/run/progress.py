"""Where a run stands: what it has seen, waited for and measured, between two lines of metrics.jsonl."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openmae.config import ResolvedFinetuneConfig, ResolvedPretrainConfig, ResolvedProbeConfig
from openmae.data.batch import Batch
from openmae.machine.device import num_cores
from openmae.machine.files import disk_faults
from openmae.machine.parallel import Processes
from openmae.run.advice import reading_advice
from openmae.run.folder import PreviousRun
from openmae.run.log import RunLog
from openmae.run.quarantine import BadInputs
from openmae.run.spikes import RecentLosses
from openmae.training.prefetch import D, StepInputs

DATA_BOUND = 0.2  # share of waiting from which the readout says what to do
MAX_SKIPPED = 10  # steps in a row without a finite gradient after which the run goes back to its last checkpoint
WATCHED = ("knn_top1", "probe_top1")  # per cent, said beside the losses


class Progress:
    """Counts and measures a run and writes it to its log.

    Args:
        log: the run's files.
        num_images: images of the training set; an epoch.
        num_inputs: all inputs, of which at most `max_bad` may be unreadable.
        state: what `to_dict` gave at the checkpoint that the run goes on from.
        advice: what to do where a run waits for its data.
        is_tiled: samples are tiles, of which some may be blank.

    Attributes:
        is_resumed: whether there was such a checkpoint; it may be of step 0.
        skipped_steps: since the line before the last one, by number; only of this start of the run.
        skipped_in_row: steps without a finite gradient up to the last line; they changed no weight.
        notes: what evaluators found in words; the summary holds it. They find it anew in a resumed run.
    """

    def __init__(
        self,
        log: RunLog,
        processes: Processes,
        *,
        batch_size: int,
        num_images: int,
        num_inputs: int,
        max_bad: float,
        state: dict[str, Any],
        advice: str = "",
        is_tiled: bool = False,
    ) -> None:
        self.advice, self.is_tiled = advice, is_tiled
        self.log, self.processes = log, processes
        self.batch_size, self.num_images = batch_size, num_images
        self.bad_inputs = BadInputs(log.quarantine, max_bad, num_inputs)
        self.is_resumed = bool(state)
        self.started = time.monotonic() - state.get("seconds", 0.0)
        self.unreported: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.restore(state)

    def restore(self, state: dict[str, Any]) -> None:
        """Go (back) to where a checkpoint stands."""
        self.results: dict[str, float] = dict(state.get("results", {}))
        self.counts = {"skipped_steps": 0, "loss_spikes": 0, "rollbacks": 0, **state.get("counts", {})}
        if self.is_tiled:  # samples that were blank and replaced, up to the last line; and since then
            self.counts.setdefault("blank_tiles", 0)
        self.blank, self.arrived_blank = int(state.get("blank", 0)) if self.processes.is_first else 0, 0
        self.evaluated_step = int(state.get("evaluated_step", 0))
        # Each process carries its own part on, or a line's last bit would differ; another number of them cannot.
        parts = state.get("loss_parts", [0.0])
        if len(parts) != self.processes.count:
            parts = [sum(parts)] + [0.0] * (self.processes.count - 1)
        self.loss_sum = torch.tensor(parts[self.processes.rank])
        self.loss_steps = int(state.get("loss_steps", 0))
        self.skipped = torch.tensor(float(state.get("skipped", 0)))  # since the last line
        self.in_row = torch.tensor(float(state.get("in_row", 0)))
        self.skipped_in_row = 0
        self.flags, self.skipped_steps = list[Tensor](), list[int]()
        if self.processes.is_first:
            self.unreported |= state.get("unreported", {})
        self.recent = RecentLosses(state.get("recent", []))
        self.line_at, self.line_steps, self.waited = time.monotonic(), 0, 0.0

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run writes the same lines. Waits for all devices."""
        return {
            "results": self.results,
            "counts": self.counts,
            "evaluated_step": self.evaluated_step,
            "loss_parts": self.processes.gather(float(self.loss_sum)),
            "loss_steps": self.loss_steps,
            "skipped": int(self.skipped),
            "in_row": int(self.in_row),
            "recent": self.recent.to_list(),
            "unreported": self._all_unreported(),
            "seconds": self.seconds,
            **({"blank": sum(self.processes.gather(self.blank))} if self.is_tiled else {}),
        }

    def _all_unreported(self) -> dict[str, str]:
        return {name: reason for bad in self.processes.gather(self.unreported) for name, reason in bad.items()}

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 1)

    def wait_for(self, inputs: Iterator[StepInputs[Batch, D]]) -> StepInputs[Batch, D] | None:
        """The next step's micro-batches, with the waiting timed; None where the wait was given up."""
        before = time.monotonic()
        found = next(inputs, None)
        self.waited += time.monotonic() - before
        parts = found.parts if found is not None else ()
        for part in parts:
            self.unreported |= part.bad
        self.arrived_blank = sum(part.blank for part in parts)
        return found

    def leave_out(self, seconds: float) -> None:
        """The last so many seconds were not the training's."""
        self.line_at += seconds

    def add(self, loss: Tensor, is_skipped: Tensor) -> None:
        """Count a step: its loss (this process's part of it) and whether it was skipped stay on the device."""
        device = loss.device
        self.loss_sum = self.loss_sum.to(device) + torch.where(is_skipped > 0, torch.zeros_like(loss), loss)
        self.skipped = self.skipped.to(device) + is_skipped
        self.flags.append(is_skipped)
        self.in_row = (self.in_row.to(device) + 1) * is_skipped
        self.blank += self.arrived_blank  # now that the step was taken: a stop or short memory may come in between
        self.loss_steps += 1
        self.line_steps += 1

    def line(self, step: int, rate: float, norm: Tensor, memory: int) -> list[str]:
        """Write a line of metrics.jsonl. Waits for the device, and for the other processes.

        Returns:
            Its short form for the screen, then a line about each unusual thing.

        Raises:
            RequestError: too many inputs are unreadable.
        """
        skipped, self.skipped_in_row = int(self.skipped), int(self.in_row)
        counted = self.loss_steps - skipped
        loss = float(self.processes.sum(self.loss_sum)) / counted if counted else None
        elapsed = max(time.monotonic() - self.line_at, 1e-9)
        speed, waiting = self.line_steps * self.batch_size / elapsed, min(self.waited / elapsed, 1.0)
        unusual = []
        flags, self.flags = self.flags, []
        self.skipped_steps = _numbers_of(flags, step) if skipped else []
        if skipped:
            self.counts["skipped_steps"] += skipped
            unusual.append(f"{skipped} of the last {self.loss_steps} steps had no finite gradient and were skipped")
        is_spike = loss is not None and self.recent.is_spike(loss)
        if is_spike:
            self.counts["loss_spikes"] += 1
            unusual.append(f"loss spike at step {step:,}: {loss:.4f}, lately about {self.recent.median:.4f}")
        if loss is not None:
            self.recent.add(loss)
            self.results["loss"] = loss
        if self.is_tiled:
            self.counts["blank_tiles"] += sum(self.processes.gather(self.blank))
            self.blank = 0
        self.log.metrics(
            step=step,
            epoch=round(step * self.batch_size / self.num_images, 4),
            images_seen=step * self.batch_size,
            blank_tiles=self.counts.get("blank_tiles"),
            loss=loss,
            lr=rate,
            grad_norm=float(norm) if math.isfinite(norm) else None,
            skipped_steps=skipped or None,
            loss_spike=1 if is_spike else None,
            images_per_second=round(speed, 2),
            data_wait=round(waiting, 4),
            memory=memory,
            seconds=self.seconds,
        )
        self.loss_sum, self.loss_steps = torch.zeros_like(self.loss_sum), 0
        self.skipped = torch.zeros_like(self.skipped)
        self.line_at, self.line_steps, self.waited = time.monotonic(), 0, 0.0
        found, self.unreported = self._all_unreported(), {}
        unusual += [
            f"unreadable, replaced by another: {name!r} ({found[name]})" for name in self.bad_inputs.note(found)
        ]
        bound = f"  waiting for data {waiting:.0%} ({self.advice})" if waiting > DATA_BOUND else ""
        shown = f"{loss:.4f}" if loss is not None else "not finite"
        return [f"loss {shown}{self._evaluations()}  {speed:.0f} images/s{bound} ", *unusual]

    def _evaluations(self) -> str:
        said = f"  held out {self.results['held_out_loss']:.4f}" if "held_out_loss" in self.results else ""
        said += f" ({self.notes['health']})" if "health" in self.notes else ""
        for name in WATCHED:
            said += f"  {name.replace('_', ' ')} {self.results[name]:.1f} %" if name in self.results else ""
        return said

    def evaluated(self, step: int, results: dict[str, float], seconds: float) -> None:
        """Write what evaluators found; the time they took is not the training's."""
        self.leave_out(seconds)
        self.evaluated_step = step
        results = {name: value for name, value in results.items() if math.isfinite(value)}
        self.results |= results
        if results:
            images_seen = step * self.batch_size
            self.log.metrics(
                step=step, epoch=round(images_seen / self.num_images, 4), images_seen=images_seen, **results
            )

    def summary(self, status: str, step: int) -> dict[str, Any]:
        """What summary.json holds."""
        return {
            "status": status,
            "step": step,
            "images_seen": step * self.batch_size,
            "epoch": round(step * self.batch_size / self.num_images, 4),
            **self.results,
            **self.notes,
            "bad_inputs": self.bad_inputs.count,
            **self.counts,
            "seconds": self.seconds,
        }


def _numbers_of(flags: list[Tensor], last: int) -> list[int]:
    """The steps whose flag is set, of those up to the last one. Waits for the device."""
    first = last - len(flags) + 1
    return [first + place for place, flag in enumerate(torch.stack(flags).tolist()) if flag] if flags else []


def open_progress(
    run: Path,
    config: ResolvedPretrainConfig | ResolvedFinetuneConfig | ResolvedProbeConfig,
    previous: PreviousRun | None,
    processes: Processes,
    num_images: int,
    num_inputs: int,
) -> Progress:
    """The progress of a run that begins or goes on.

    Raises:
        Fault: the run folder cannot be written.
    """
    state = previous.state if previous else {}
    step = int(state.get("step", 0))
    with disk_faults(run):
        log = RunLog(run, step, evaluated=state.get("evaluated_step") == step, writes=processes.is_first)
    return Progress(
        log,
        processes,
        batch_size=config.batch_size,
        num_images=num_images,
        num_inputs=num_inputs,
        max_bad=config.max_bad,
        state=state,
        advice=reading_advice(
            config.dataset,
            config.workers,
            is_cpu=config.device == "cpu",
            cores=num_cores() // processes.local_count,
            crops_per_decode=getattr(config, "crops_per_decode", None),
            tiles=getattr(config, "tiles", None),
        ),
        is_tiled=getattr(config, "tiles", None) is not None,
    )
