"""The moving average of a model's weights (paper, appendix A.2: .9999 in training from scratch)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from openmae.errors import RequestError


class Average:
    """An exponential moving average of all parameters, in float32 beside them; it begins as their copy.

    After every optimiser step: average <- decay · average + (1 - decay) · weight. Buffers are not averaged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Take the model where it is to stay: its parameters' device and identity must not change after this."""
        self.decay = decay
        self._weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self._averages = {name: weight.float().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, is_skipped: Tensor | None = None) -> None:
        """Follow the weights after an optimiser step.

        Args:
            is_skipped: a scalar on the weights' device; where it is 1 the average stays as it is. Not waited for.
        """
        averages, weights = list(self._averages.values()), [weight.float() for weight in self._weights.values()]
        if is_skipped is None:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        else:
            # A list of tensors: a single one would be taken for a number, and reading it waits for the device.
            share = (1 - self.decay) * (1 - is_skipped)
            torch._foreach_lerp_(averages, weights, [share] * len(averages))

    def tensors(self) -> dict[str, Tensor]:
        """The average itself, float32 by parameter name: no copies."""
        return dict(self._averages)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put a saved average back.

        Raises:
            RequestError: the names or shapes are not this model's.
        """
        wrong = set(tensors.keys() ^ self._averages.keys()) or {
            name for name, average in self._averages.items() if tensors[name].shape != average.shape
        }
        if wrong:
            raise RequestError(f"the saved weight average does not fit the model: {min(wrong)} is missing or differs")
        for name, average in self._averages.items():
            average.copy_(tensors[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Give `model`, which has parameters of the same names, the average inside the block and its own bits after it.

        Inside, no `update`: it would average the average. The model's own weights need their memory once more.
        """
        parameters = dict(model.named_parameters())
        assert parameters.keys() == self._averages.keys(), "the average is of a model with other parameters"
        own = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        try:
            _copy_into(parameters, self._averages)
            yield
        finally:
            _copy_into(parameters, own)


@torch.no_grad()
def _copy_into(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
