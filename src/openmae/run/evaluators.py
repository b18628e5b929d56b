"""What is looked at while training: `(every n steps, function)`, the one seam of a task's loop."""

import time
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from openmae.machine.signals import EvaluationStopped, StopRequest
from openmae.run.progress import Progress


class Evaluator(NamedTuple):
    """A look at the model every so many steps, and after the last.

    Attributes:
        function: from the step to what was found.
        is_shared: all processes take part; else the first alone looks.
    """

    every: int
    function: Callable[[int], dict[str, float]]
    is_shared: bool = False


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
