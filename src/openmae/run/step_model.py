"""The model as a training step calls it: perhaps compiled, its gradients checked, wrapped for several processes."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from openmae.machine.device import is_out_of_memory
from openmae.machine.parallel import Processes, accumulating, parallelise
from openmae.machine.signals import StopRequest
from openmae.run.model_input import ModelInput
from openmae.training.gradients import (
    GradientCheck,
    Gradients,
    compare_gradients,
    compute_gradients,
    gradient_differences,
)
from openmae.training.prefetch import StepInputs
from openmae.training.telemetry import format_duration

# The loss of a micro-batch, a mean over its images, by a model at a precision (fp32 or bf16).
LossFn = Callable[[nn.Module, ModelInput, str], Tensor]


class StepModel:
    """The model as a training step calls it.

    Args:
        is_compiled: use torch.compile, unless its gradients turn out to be wrong.
        on_wrong_gradients: called in that case, so that a resumed run knows.

    Attributes:
        wrapped: the model, compiled or not, whose gradients are averaged over processes.
        needs_warm_up: whether it has to be compiled and checked for each size of micro-batch.
    """

    def __init__(
        self,
        model: nn.Module,
        processes: Processes,
        device: torch.device,
        *,
        is_compiled: bool,
        precision: str,
        loss_fn: LossFn,
        on_wrong_gradients: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self._processes, self._device = model, processes, device
        self._precision, self._loss_fn, self._on_wrong_gradients = precision, loss_fn, on_wrong_gradients
        self.needs_warm_up = is_compiled
        # Wrapped before it is compiled: only then is the backward pass cut where a bucket of gradients is full.
        self.wrapped = parallelise(model, processes, device, is_compiled=is_compiled)

    def warm_up(self, inputs: StepInputs, stop: StopRequest) -> str:
        """Compile for the sizes of these micro-batches and check the gradients; no weight changes.

        All processes take part.

        Returns:
            The result as a line to print. Where gradients are wrong, the step is not compiled from here on.
        """
        before = time.monotonic()
        gradients = self._compile(inputs, stop)
        took = time.monotonic() - before
        is_stopped = self._processes.any(gradients is None)
        if gradients is None or is_stopped:
            return f"compiler   stopped after {format_duration(took)}"
        checks = [self._check(inputs[number], compiled) for number, compiled in gradients.items()]
        if self._device.type == "cuda":  # the step's peak does not include the check
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        worst = max((check for check in checks if check is not None), key=lambda check: check.ratio, default=None)
        is_wrong_here = worst is not None and not worst.is_good
        line = (
            f"compiled   in {format_duration(took)}, checked in {format_duration(time.monotonic() - before - took)}: "
        )
        if self._processes.any(is_wrong_here):
            self.needs_warm_up = False
            self.wrapped = parallelise(self._model, self._processes, self._device)
            self._on_wrong_gradients()
            result = worst.result_line if worst and is_wrong_here else "gradients differ in another process"
            return f"{line}{result}: going on without compiling"
        return line + (worst.result_line if worst else "gradients could not be compared")

    def _compile(self, inputs: StepInputs, stop: StopRequest) -> dict[int, Gradients] | None:
        """The compiled gradients of one micro-batch of each size, by its index; None where a stop was requested.

        The signal may have reached the compiler's own processes, too. What then follows may be of any class; without a
        requested stop every error is raised, and after one the resumed run meets it again if it was not the signal's.
        """
        gradients = {}
        try:
            for number in first_of_each_size(inputs):
                gradients[number] = self._gradients(self.wrapped, [inputs[number]], self._precision)
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)
                if stop.is_received():
                    return None
        except Exception:
            if not stop.is_received():
                raise
            return None
        return gradients

    def _gradients(self, model: nn.Module, micro_batches: Sequence[ModelInput], precision: str) -> Gradients:
        """The mean loss's gradients over some micro-batches, of this process alone: they are not averaged."""
        total = max(1, sum(micro_batch.weight for micro_batch in micro_batches))
        losses = [
            lambda micro_batch=micro_batch: self._loss_fn(model, micro_batch, precision) * (micro_batch.weight / total)
            for micro_batch in micro_batches
        ]
        with accumulating(model, is_last=False):
            return compute_gradients(self._model, losses)

    def _check(self, micro_batch: ModelInput, compiled_gradients: Gradients) -> GradientCheck | None:
        """Compare compiled gradients with eager ones; None without enough memory, or where some are not finite."""
        size = max(1, len(micro_batch) // 4)  # eager float32 takes about four times the memory of a compiled step
        while True:
            try:
                pieces = micro_batch.split(size)
                reference = self._gradients(self._model, pieces, "fp32")
                of_compiled, eager = gradient_differences(compiled_gradients, reference), None
                if self._precision != "fp32":
                    eager = gradient_differences(self._gradients(self._model, pieces, self._precision), reference)
                return compare_gradients(self._model, reference, of_compiled, eager)
            except RuntimeError as error:
                self._model.zero_grad(set_to_none=True)
                if not is_out_of_memory(error):
                    raise
            if size == 1:
                return None
            size //= 2
            if self._device.type == "cuda":
                torch.cuda.empty_cache()


def first_of_each_size(inputs: StepInputs) -> list[int]:
    """The index of the first micro-batch of each size: the last one of a step may be smaller."""
    sizes = {len(micro_batch.keys): number for number, micro_batch in reversed(list(enumerate(inputs.micro_batches)))}
    return sorted(sizes.values())
