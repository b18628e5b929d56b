"""The model as a training step calls it: itself, compiled and checked, wrapped for several processes."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from openmae.machine.device import is_out_of_memory
from openmae.machine.parallel import Processes, accumulating, parallelise
from openmae.machine.signals import StopRequest
from openmae.run.model_input import ModelInput
from openmae.training.gradients import GradientCheck, Gradients, compare, differences, gradients_of
from openmae.training.prefetch import StepInputs
from openmae.training.telemetry import duration

# The loss of a micro-batch, a mean over its images, by a model at a precision (fp32 or bf16).
LossOf = Callable[[nn.Module, ModelInput, str], Tensor]


class StepModel:
    """What a training step calls.

    Args:
        is_compiled: through torch.compile, unless its gradients turn out wrong.
        when_wrong: called then, so that a resumed run knows.

    Attributes:
        wrapped: the model, compiled or not, and so that gradients are averaged over processes.
        needs_warm_up: whether it is to be compiled and checked for each size of micro-batch.
    """

    def __init__(
        self,
        model: nn.Module,
        processes: Processes,
        device: torch.device,
        *,
        is_compiled: bool,
        precision: str,
        loss_of: LossOf,
        when_wrong: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self._processes, self._device = model, processes, device
        self._precision, self._loss_of, self._when_wrong = precision, loss_of, when_wrong
        self.needs_warm_up = is_compiled
        # Wrapped before it is compiled: only then is the backward pass cut where a bucket of gradients is full.
        self.wrapped = parallelise(model, processes, device, is_compiled=is_compiled)

    def warm_up(self, inputs: StepInputs, stop: StopRequest) -> str:
        """Compile for the sizes of these micro-batches and check the gradients; no weight changes.

        All processes take part.

        Returns:
            What was found, as a line: where gradients are wrong, the step is not compiled from here on.
        """
        before = time.monotonic()
        gradients = self._compile(inputs, stop)
        took = time.monotonic() - before
        if self._processes.any(gradients is None):
            return f"compiler   stopped after {duration(took)}"
        assert gradients is not None
        checks = [self._check(inputs[number], found) for number, found in gradients.items()]
        if self._device.type == "cuda":  # what the check took is not the step's
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        worst = max((check for check in checks if check is not None), key=lambda check: check.ratio, default=None)
        is_wrong_here = worst is not None and not worst.is_good
        line = f"compiled   in {duration(took)}, checked in {duration(time.monotonic() - before - took)}: "
        if self._processes.any(is_wrong_here):
            self.needs_warm_up = False
            self.wrapped = parallelise(self._model, self._processes, self._device)
            self._when_wrong()
            found = worst.result_line if worst and is_wrong_here else "gradients differ in another process"
            return f"{line}{found}: going on without compiling"
        return line + (worst.result_line if worst else "gradients could not be compared")

    def _compile(self, inputs: StepInputs, stop: StopRequest) -> dict[int, Gradients] | None:
        """The compiled gradients of a micro-batch of each size, by its number; None where a stop came meanwhile.

        The signal may have reached the compiler's own processes, too: what fails then is no fault.
        """
        found = {}
        try:
            for number in numbers_of_sizes(inputs):
                found[number] = self._gradients(self.wrapped, [inputs[number]], self._precision)
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)
                if stop.is_received():
                    return None
        except Exception:
            if not stop.is_received():
                raise
            return None
        return found

    def _gradients(self, model: nn.Module, parts: Sequence[ModelInput], precision: str) -> Gradients:
        """This process's own: they are not averaged."""
        total = max(1, sum(part.weight for part in parts))
        losses = [lambda part=part: self._loss_of(model, part, precision) * (part.weight / total) for part in parts]
        with accumulating(model, is_last=False):
            return gradients_of(self._model, losses)

    def _check(self, part: ModelInput, compiled_gradients: Gradients) -> GradientCheck | None:
        """None where it cannot be told: too little memory, or numbers that are not finite."""
        size = max(1, len(part) // 4)  # float32, eager: about four times the memory of a compiled step
        while True:
            try:
                pieces = part.split(size)
                reference = self._gradients(self._model, pieces, "fp32")
                of_compiled, eager = differences(compiled_gradients, reference), None
                if self._precision != "fp32":
                    eager = differences(self._gradients(self._model, pieces, self._precision), reference)
                return compare(self._model, reference, of_compiled, eager)
            except RuntimeError as error:
                self._model.zero_grad(set_to_none=True)
                if not is_out_of_memory(error):
                    raise
            if size == 1:
                return None
            size //= 2
            if self._device.type == "cuda":
                torch.cuda.empty_cache()


def numbers_of_sizes(inputs: StepInputs) -> list[int]:
    """The first micro-batch of each size: the last of a step may be smaller."""
    sizes = {len(part.keys): number for number, part in reversed(list(enumerate(inputs.parts)))}
    return sorted(sizes.values())
