"""What is looked at while training: `(every n steps, function)`, the one seam of a task's loop."""

import time
from collections.abc import Callable

import torch

from openmae.config import SettledConfig
from openmae.data.loader import Subset
from openmae.model.mae import MAE
from openmae.tasks.held_out import PICTURED, EvaluationStopped, HeldOut
from openmae.tasks.masks import MaskSampler
from openmae.tasks.progress import Progress
from openmae.tasks.settle import Settled
from openmae.tasks.training_data import TrainingData
from openmae.training.signals import StopRequest

Evaluator = tuple[int, Callable[[int], dict[str, float]]]


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
    """What is looked at while training: the held-out loss, and pictures."""
    # Pictures are of training images where none are held out.
    shown = data.held_out or Subset(data.train, 0, min(PICTURED, len(data.train)))
    look = HeldOut(shown, config, settled.preprocessing, masks)
    progress.note_bad(look.bad)
    if len(look.images) == 0:
        return []

    def picture(step: int) -> dict[str, float]:
        progress.log.picture(look.picture(model, device), step)
        return {}

    evaluators: list[Evaluator] = [(config.picture_every, picture)]
    if data.held_out is not None:
        evaluators.append((config.evaluate_every, lambda step: {"held_out_loss": look.loss(model, device, stop)}))
    return evaluators


def evaluate(
    evaluators: list[Evaluator], step: int, num_steps: int, model: MAE, progress: Progress, stop: StopRequest
) -> None:
    """Run the evaluators whose turn it is, in the first process; each runs after the last step too.

    A stop ends them early; a resumed run makes up for them.
    """
    if not progress.processes.is_first or step == progress.evaluated_step or stop.received:
        return
    due = [function for every, function in evaluators if step % every == 0 or step == num_steps]
    before, results = time.monotonic(), dict[str, float]()
    if due:
        model.eval()
        try:
            for function in due:
                results |= function(step)
        except EvaluationStopped:
            return
        finally:
            model.train()
    progress.evaluated(step, results, time.monotonic() - before)
