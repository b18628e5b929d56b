"""The model as a training step calls it: itself, compiled and checked, wrapped for several processes."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from openmae.tasks.model_input import ModelInput
from openmae.tasks.recovery import is_out_of_memory
from openmae.training.compiler import compiled
from openmae.training.copy_ahead import StepInputs
from openmae.training.gradients import GradientCheck, Gradients, compare, differences, gradients_of
from openmae.training.parallel import Processes, parallelise
from openmae.training.signals import StopRequest
from openmae.training.telemetry import duration

# The loss of a micro-batch, a mean over its images, by a model at a precision (fp32 or bf16).
LossOf = Callable[[nn.Module, ModelInput, str], Tensor]


class StepModel:
    """What a training step calls, chosen before the first one.

    Args:
        is_compiled: through torch.compile, unless its gradients turn out wrong.
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
    ) -> None:
        self._model, self._processes, self._device = model, processes, device
        self._precision, self._loss_of = precision, loss_of
        self.needs_warm_up = is_compiled
        self._compiled = compiled(model) if is_compiled else model
        self._wrapped = None if is_compiled else parallelise(model, processes, device)

    @property
    def wrapped(self) -> nn.Module:
        assert self._wrapped is not None, "warm up first"
        return self._wrapped

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
        is_wrong = self._processes.any(any(check is not None and not check.is_good for check in checks))
        if self._wrapped is None or is_wrong:
            self._wrapped = parallelise(self._model if is_wrong else self._compiled, self._processes, self._device)
        line = f"compiled   in {duration(took)}, checked in {duration(time.monotonic() - before - took)}: "
        worst = max((check for check in checks if check is not None), key=lambda check: check.ratio, default=None)
        if is_wrong:
            self._compiled = self._model
            return f"{line}{worst.result_line if worst else 'wrong in another process'}: going on without compiling"
        return line + (worst.result_line if worst else "gradients could not be compared")

    def _compile(self, inputs: StepInputs, stop: StopRequest) -> dict[int, Gradients] | None:
        """The compiled gradients of a micro-batch of each size, by its number; None where a stop came meanwhile.

        The signal may have reached the compiler's own processes, too: what fails then is no fault.
        """
        found = {}
        try:
            for number in numbers_of_sizes(inputs):
                found[number] = self._gradients(self._compiled, [inputs[number]], self._precision)
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)
                if stop.received:
                    return None
        except Exception:
            if not stop.received:
                raise
            return None
        return found

    def _gradients(self, model: nn.Module, parts: Sequence[ModelInput], precision: str) -> Gradients:
        total = sum(len(part) for part in parts)
        losses = [lambda part=part: self._loss_of(model, part, precision) * (len(part) / total) for part in parts]
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
