"""Batch normalisation over the batches of all processes, also where a process has no image or a channel one value."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


class SyncBatchNorm(nn.Module):
    """Batch normalisation with the statistics of all processes; its weights are named as nn.BatchNorm2d's.

    In training, mean and variance are over the values of all processes where `torch.distributed` has a process group,
    and gradients are those of the joined batch. They are computed in float32 at least, the variance from centred
    values. torch's own SyncBatchNorm runs on GPUs only and stops where a channel has one value.

    | values of a channel, in all processes | normalised with | running statistics |
    |---|---|---|
    | 2 or more | mean and variance of the batch | updated; the variance unbiased |
    | 1, as a 1 × 1 map of one image has | the running statistics: a batch of one value has no variance | unchanged |
    | 0 | nothing: the empty input is returned | unchanged |

    Evaluation uses the running statistics. A process with no image takes part in the others' sums, so every process
    must call it equally often, forward and backward.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = nn.Parameter(torch.empty(num_features))
        self.bias = nn.Parameter(torch.empty(num_features))
        self.register_buffer("running_mean", torch.empty(num_features))
        self.register_buffer("running_var", torch.empty(num_features))
        self.register_buffer("num_batches_tracked", torch.empty((), dtype=torch.long))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Weight and running variance 1, bias and running mean 0."""
        if self.weight.is_meta:
            return
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    def forward(self, x: Float[Tensor, "b c *rest"]) -> Float[Tensor, "b c *rest"]:
        """Normalise each channel.

        Raises:
            ValueError: x has another number of channels.
        """
        if x.shape[1] != self.num_features:
            raise ValueError(f"a norm of {self.num_features} channels got {x.shape[1]}")
        if not self.training:
            return self._batch_norm(x, uses_batch=False)
        if _num_processes() > 1:
            return self._joined(x)
        count = x.numel() // self.num_features
        if count == 0:
            return x
        if count > 1:
            self.num_batches_tracked += 1
        return self._batch_norm(x, uses_batch=count > 1)

    def _batch_norm(self, x: Tensor, *, uses_batch: bool) -> Tensor:
        """PyTorch's own, whose statistics are in float32 and two-pass (or Welford's), too."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, uses_batch, self.momentum, self.eps
        )

    def _joined(self, x: Tensor) -> Tensor:
        """Normalise with statistics over all processes.

        How many values there are is known on the device only: where there are too few is decided there, without a wait.
        """
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        dims = [0, *range(2, x.ndim)]
        shape = (1, -1, *[1] * (x.ndim - 2))
        own_count = values.new_full((1,), x.numel() // self.num_features)
        sums = _AllReduce.apply(torch.cat([values.sum(dims), own_count]))
        count = sums[-1].detach()
        is_batch = count > 1
        mean = torch.where(is_batch, sums[:-1] / count.clamp(min=1), self.running_mean.to(values.dtype))
        centred = values - mean.view(shape)
        squares = _AllReduce.apply(centred.square().sum(dims))
        batch_variance = squares / count.clamp(min=1)
        variance = torch.where(is_batch, batch_variance, self.running_var.to(values.dtype))
        scale = (variance + self.eps).rsqrt() * self.weight.to(values.dtype)
        with torch.no_grad():
            momentum = self.momentum * is_batch.to(self.running_mean.dtype)
            unbiased = batch_variance * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
            self.num_batches_tracked += is_batch
        return (centred * scale.view(shape) + self.bias.to(values.dtype).view(shape)).to(x.dtype)


class _AllReduce(torch.autograd.Function):
    """The sum over all processes; so is its gradient. torch's own differentiable one is deprecated in 2.15."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(values: Tensor) -> Tensor:
    values = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(values)
    return values


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
