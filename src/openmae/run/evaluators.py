"""Evaluations while training: `(every n steps, function)`, the one hook of the training loop."""

import time
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from openmae.machine.signals import EvaluationStopped, StopRequest
from openmae.run.progress import Progress


class Evaluator(NamedTuple):
    """An evaluation of the model every so many steps, and after the last.

    Attributes:
        every: steps between evaluations.
        function: from the step to metrics by name.
        is_shared: all processes take part; else only the first one evaluates.
    """

    every: int
    function: Callable[[int], dict[str, float]]
    is_shared: bool = False


def evaluate(
    evaluators: list[Evaluator], step: int, num_steps: int, model: nn.Module, progress: Progress, stop: StopRequest
) -> None:
    """Run the evaluators that are due; each runs after the last step too.

    A stop request ends them early; a resumed run runs them again.
    """
    due = [e for e in evaluators if step % e.every == 0 or step == num_steps]
    is_shared = any(e.is_shared for e in due)
    should_stop = progress.processes.any(stop.received is not None) if is_shared else bool(stop.received)
    if not (is_shared or progress.processes.is_first) or step == progress.evaluated_step or should_stop:
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
