"""Where a run stands: images seen, time waited and metrics, from one line of metrics.jsonl to the next."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openmae.config import ResolvedTrainingConfig
from openmae.data.batch import Batch
from openmae.machine.device import num_cores
from openmae.machine.files import disk_faults
from openmae.machine.parallel import Processes
from openmae.run.advice import reading_advice
from openmae.run.folder import PreviousRun
from openmae.run.log import RunLog
from openmae.run.quarantine import BadInputs
from openmae.run.spikes import RecentLosses
from openmae.training.prefetch import DeviceT, StepInputs

DATA_BOUND = 0.2  # share of time spent waiting for data from which a line gives advice
MAX_SKIPPED = 10  # steps in a row without a finite gradient after which the run goes back to its last checkpoint
PRINTED_METRICS = ("knn_top1", "probe_top1")  # per cent, printed beside the losses


class Progress:
    """Counts and measures a run, and writes that to its log.

    Args:
        log: the run's files.
        num_images: images of the training set, which make an epoch.
        num_inputs: all inputs, of which at most a share of `max_bad` may be unreadable.
        state: the `to_dict` of the checkpoint that the run resumes from; empty for a new run.
        advice: what to do where a run waits for its data.
        is_tiled: samples are tiles, of which some may be blank.

    Attributes:
        is_resumed: whether the run resumes from a checkpoint, which may be of step 0.
        results: the latest value of each metric.
        notes: what evaluators found, in words, for the summary; not saved, for they find it again in a resumed run.
        skipped_steps: the numbers of the steps that the last line reported as skipped.
        skipped_in_row: consecutive steps, up to the last line, that were skipped for gradients that were not finite.
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
        """Set everything to the state of a checkpoint."""
        self.results: dict[str, float] = dict(state.get("results", {}))
        self.counts = {"skipped_steps": 0, "loss_spikes": 0, "rollbacks": 0, **state.get("counts", {})}
        if self.is_tiled:  # samples that were blank and replaced, up to the last line; and since then
            self.counts.setdefault("blank_tiles", 0)
        self.blank, self.arrived_blank = int(state.get("blank", 0)) if self.processes.is_first else 0, 0
        self.evaluated_step = int(state.get("evaluated_step", 0))
        # Each process continues its own part of the sum, or a line's last bit would differ; where the number of
        # processes has changed, the first one takes the whole sum.
        loss_parts = state.get("loss_parts", [0.0])
        if len(loss_parts) != self.processes.count:
            loss_parts = [sum(loss_parts)] + [0.0] * (self.processes.count - 1)
        self.loss_sum = torch.tensor(loss_parts[self.processes.rank])
        self.loss_steps = int(state.get("loss_steps", 0))
        self.skipped = torch.tensor(float(state.get("skipped", 0)))  # steps since the last line
        self.in_row = torch.tensor(float(state.get("in_row", 0)))
        self.skipped_in_row = 0
        self.flags, self.skipped_steps = list[Tensor](), list[int]()
        if self.processes.is_first:
            self.unreported |= state.get("unreported", {})
        self.recent = RecentLosses(state.get("recent", []))
        self.line_at, self.line_steps, self.waited = time.monotonic(), 0, 0.0

    def to_dict(self) -> dict[str, Any]:
        """The state that a checkpoint keeps, so that a resumed run writes the same lines. Waits for all devices."""
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

    def next_inputs(self, inputs: Iterator[StepInputs[Batch, DeviceT]]) -> StepInputs[Batch, DeviceT] | None:
        """The next step's micro-batches, the wait for them timed; None where a stop request ended the wait."""
        before = time.monotonic()
        step_inputs = next(inputs, None)
        self.waited += time.monotonic() - before
        micro_batches = step_inputs.micro_batches if step_inputs is not None else ()
        for micro_batch in micro_batches:
            self.unreported |= micro_batch.bad
        self.arrived_blank = sum(micro_batch.num_blank for micro_batch in micro_batches)
        return step_inputs

    def exclude_time(self, seconds: float) -> None:
        """Do not count the last so many seconds as training time."""
        self.line_at += seconds

    def add(self, loss: Tensor, is_skipped: Tensor) -> None:
        """Count a step without waiting for it: its loss (this process's part) and skip flag stay on the device."""
        device = loss.device
        self.loss_sum = self.loss_sum.to(device) + torch.where(is_skipped > 0, torch.zeros_like(loss), loss)
        self.skipped = self.skipped.to(device) + is_skipped
        self.flags.append(is_skipped)
        self.in_row = (self.in_row.to(device) + 1) * is_skipped
        self.blank += self.arrived_blank  # only now: a stop or lack of memory may come between the batch and its step
        self.loss_steps += 1
        self.line_steps += 1

    def line(self, step: int, lr: float, grad_norm: Tensor, memory: int) -> list[str]:
        """Write a line of metrics.jsonl. Waits for the device, and for the other processes.

        Args:
            lr: the learning rate.
            grad_norm: the norm of all gradients.
            memory: peak memory of the device, in bytes.

        Returns:
            A short line for the screen, then a line about each unusual event.

        Raises:
            RequestError: too many inputs are unreadable.
        """
        skipped, self.skipped_in_row = int(self.skipped), int(self.in_row)
        counted = self.loss_steps - skipped
        loss = float(self.processes.sum(self.loss_sum)) / counted if counted else None
        elapsed = max(time.monotonic() - self.line_at, 1e-9)
        images_per_second, data_wait = self.line_steps * self.batch_size / elapsed, min(self.waited / elapsed, 1.0)
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
            lr=lr,
            grad_norm=float(grad_norm) if math.isfinite(grad_norm) else None,
            skipped_steps=skipped or None,
            loss_spike=1 if is_spike else None,
            images_per_second=round(images_per_second, 2),
            data_wait=round(data_wait, 4),
            memory=memory,
            seconds=self.seconds,
        )
        self.loss_sum, self.loss_steps = torch.zeros_like(self.loss_sum), 0
        self.skipped = torch.zeros_like(self.skipped)
        self.line_at, self.line_steps, self.waited = time.monotonic(), 0, 0.0
        bad, self.unreported = self._all_unreported(), {}
        unusual += [f"unreadable, replaced by another: {name!r} ({bad[name]})" for name in self.bad_inputs.note(bad)]
        wait = f"  waiting for data {data_wait:.0%} ({self.advice})" if data_wait > DATA_BOUND else ""
        shown = f"{loss:.4f}" if loss is not None else "not finite"
        return [f"loss {shown}{self._evaluations()}  {images_per_second:.0f} images/s{wait} ", *unusual]

    def _evaluations(self) -> str:
        text = f"  held out {self.results['held_out_loss']:.4f}" if "held_out_loss" in self.results else ""
        text += f" ({self.notes['health']})" if "health" in self.notes else ""
        for name in PRINTED_METRICS:
            text += f"  {name.replace('_', ' ')} {self.results[name]:.1f} %" if name in self.results else ""
        return text

    def evaluated(self, step: int, results: dict[str, float], seconds: float) -> None:
        """Write the results of evaluators; their time is not counted as training."""
        self.exclude_time(seconds)
        self.evaluated_step = step
        results = {name: value for name, value in results.items() if math.isfinite(value)}
        self.results |= results
        if results:
            images_seen = step * self.batch_size
            self.log.metrics(
                step=step, epoch=round(images_seen / self.num_images, 4), images_seen=images_seen, **results
            )

    def summary(self, status: str, step: int) -> dict[str, Any]:
        """The content of summary.json."""
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
    """The numbers of the steps whose flag is set; the last flag is of step `last`. Waits for the device."""
    first = last - len(flags) + 1
    return [first + index for index, flag in enumerate(torch.stack(flags).tolist()) if flag] if flags else []


def open_progress(
    run: Path,
    config: ResolvedTrainingConfig,
    previous: PreviousRun | None,
    processes: Processes,
    num_images: int,
    num_inputs: int,
) -> Progress:
    """The progress of a new or a resumed run.

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
            can_read_packs=getattr(config, "can_read_packs", True),
        ),
        is_tiled=getattr(config, "tiles", None) is not None,
    )
