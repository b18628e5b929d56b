"""The exponential moving average (EMA) of a model's weights (paper, appendix A.2: .9999 in training from scratch)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from openmae.errors import RequestError


class ModelEMA:
    """An exponential moving average of all parameters, in float32 on their device; it starts as a copy of them.

    After every optimiser step: average <- decay · average + (1 - decay) · weight. Buffers are not averaged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """The model must be on its final device: its parameters may be changed only in place after this."""
        self.decay = decay
        self._weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self._averages = {name: weight.float().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, is_skipped: Tensor | None = None) -> None:
        """Update the average after an optimiser step.

        Args:
            is_skipped: a scalar tensor on the weights' device; where it is 1 the average stays as it is. It is not
                waited for.
        """
        averages, weights = list(self._averages.values()), [weight.float() for weight in self._weights.values()]
        if is_skipped is None:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        else:
            # A list of tensors: a single tensor would be converted to a number, which waits for the device.
            weight = (1 - self.decay) * (1 - is_skipped)
            torch._foreach_lerp_(averages, weights, [weight] * len(averages))

    def tensors(self) -> dict[str, Tensor]:
        """The averages by parameter name, float32: not copies."""
        return dict(self._averages)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore a saved average.

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
        """Inside the block `model`, whose parameters have the same names, has the averaged weights; then its own again.

        `update` must not be called inside. The model's own weights are copied, which needs their memory once more.
        """
        parameters = dict(model.named_parameters())
        assert parameters.keys() == self._averages.keys(), "the EMA belongs to a model with other parameters"
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
