"""What is looked at while training: `(every n steps, function)`, the one seam of a task's loop."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from openmae.config import SettledConfig
from openmae.data.sources.views import Subset
from openmae.inference.mask_sampler import MaskSampler
from openmae.machine.signals import StopRequest
from openmae.model.mae import MAE
from openmae.planning.decisions import total_steps
from openmae.planning.pretrain import Settled
from openmae.run.health import FEWEST_IMAGES, TOO_EARLY, Health, effective_rank, trivial_loss
from openmae.run.progress import Progress
from openmae.run.training_data import TrainingData
from openmae.tasks.pretrain.held_out import PICTURED, EvaluationStopped, HeldOut
from openmae.tasks.pretrain.watch import Watch, open_watch
from openmae.training.telemetry import read_lines


class Evaluator(NamedTuple):
    """A look at the model every so many steps, and after the last.

    Attributes:
        function: from the step to what was found.
        is_shared: all processes take part; else the first alone looks.
    """

    every: int
    function: Callable[[int], dict[str, float]]
    is_shared: bool = False


def make_evaluators(
    config: SettledConfig,
    settled: Settled,
    data: TrainingData,
    masks: MaskSampler,
    model: MAE,
    device: torch.device,
    progress: Progress,
    stop: StopRequest,
) -> list[Evaluator]:
    """What is looked at while training: pictures, the held-out loss with what it says, and labels where asked.

    Raises:
        RequestError: `--watch` cannot look at its data.
    """
    # Pictures are of training images where none are held out.
    shown = data.held_out or Subset(data.train, 0, min(PICTURED, len(data.train)))
    look = HeldOut(shown, config, settled.preprocessing, masks)
    progress.note_bad(look.bad)
    if len(look.images) == 0:
        return []

    def picture(step: int) -> dict[str, float]:
        progress.log.picture(look.picture(model, device), step)
        return {}

    evaluators = [Evaluator(config.picture_every, picture)]
    if data.held_out is not None:
        evaluators.append(
            Evaluator(config.evaluate_every, health_check(config, data, look, model, device, progress, stop))
        )
    if progress.processes.is_first and (watch_data := open_watch(config)) is not None:
        watch = Watch(watch_data, config, settled.preprocessing)
        for name, reason in watch.bad.items():
            print(f"warning: --watch leaves out {name!r} ({reason})", flush=True)
        evaluators.append(Evaluator(watch.every, lambda step: watch.measure(model, device, stop)))
    return evaluators


def health_check(
    config: SettledConfig,
    data: TrainingData,
    look: HeldOut,
    model: MAE,
    device: torch.device,
    progress: Progress,
    stop: StopRequest,
) -> Callable[[int], dict[str, float]]:
    """The held-out loss, the effective rank of the features and what they say; a new verdict is printed at once."""
    num_steps = total_steps(config, len(data.train))
    trivial = trivial_loss(model.target, look.samples)
    health = Health(
        num_steps=num_steps,
        warmup_steps=config.warmup_epochs * len(data.train) / config.batch_size,
        trivial_loss=trivial,
        lines=read_lines(progress.log.metrics_path),  # a resumed run's: the log has forgotten what comes anew
    )
    if health.points:
        progress.notes["health"] = health.verdict().word

    def check(step: int) -> dict[str, float]:
        results = {"held_out_loss": look.loss(model, device, stop)}
        if len(look.images) >= FEWEST_IMAGES:
            results["effective_rank"] = effective_rank(look.features(model, device, stop))
        if trivial is not None:
            results["trivial_loss"] = trivial
        health.record(step, results["held_out_loss"], results.get("effective_rank"))
        verdict = health.verdict()
        is_new = verdict.word not in (TOO_EARLY, progress.notes.get("health"))
        if is_new or step == num_steps:
            print(f"health     {verdict.word}: {verdict.reason}", flush=True)
        progress.notes["health"] = verdict.word
        return results

    return check


def evaluate(
    evaluators: list[Evaluator], step: int, num_steps: int, model: nn.Module, progress: Progress, stop: StopRequest
) -> None:
    """Run the evaluators whose turn it is; each runs after the last step too.

    A stop ends them early; a resumed run makes up for them.
    """
    due = [e for e in evaluators if step % e.every == 0 or step == num_steps]
    is_shared = any(e.is_shared for e in due)
    is_asked_to_stop = progress.processes.any(stop.received is not None) if is_shared else bool(stop.received)
    if not (is_shared or progress.processes.is_first) or step == progress.evaluated_step or is_asked_to_stop:
        return
    before, results = time.monotonic(), dict[str, float]()
    if due:
        model.eval()
        try:
            for evaluator in due:
                if evaluator.is_shared or progress.processes.is_first:
                    results |= evaluator.function(step)
        except EvaluationStopped:
            return
        finally:
            model.train()
    progress.evaluated(step, results, time.monotonic() - before)
