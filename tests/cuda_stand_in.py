"""A machine with two GPUs, as far as a machine without one can play it: tensors of no memory on `cuda:0`.

torch's own checks of arguments run (a device without a number is refused, as on a GPU), and tensor code runs under
FakeTensorMode: shapes, types and devices are real, values are not.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.cuda._utils import _get_device_index
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

NUM_GPUS = 2


@contextlib.contextmanager
def stand_in() -> Iterator[SimpleNamespace]:
    """Within, CUDA is there. What is yielded knows `current`, the number of the GPU that was set, `copied`, how
    many tensors were handed from one stream to another, and `emptied`, how often the cache was."""
    seen = SimpleNamespace(current=0, copied=0, emptied=0)
    parameters: list[nn.Parameter] = []

    def set_device(device: Any) -> None:
        seen.current = _get_device_index(device)  # torch's own first line: raises where there is no number

    def record_stream(tensor: Tensor, stream: Any) -> None:
        seen.copied += 1

    def to(module: nn.Module, device: torch.device) -> nn.Module:
        parameters.extend(_moved(module, device))
        return module

    def backward(loss: Tensor) -> None:
        """Autograd asks the driver for streams: parameters must not require it (`requires_grad_(False)`, once the
        optimiser has them), and gradients appear without it."""
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)

    def empty_cache() -> None:
        seen.emptied += 1

    def properties(device: Any = None) -> SimpleNamespace:
        assert _get_device_index(device, optional=True, allow_cpu=False) < NUM_GPUS
        return SimpleNamespace(name="a GPU", total_memory=80 << 30, major=9, minor=0)

    with pytest.MonkeyPatch.context() as patch:
        for name, function in {
            "is_available": lambda: True,
            "device_count": lambda: NUM_GPUS,
            "current_device": lambda: seen.current,
            "set_device": set_device,
            "get_device_capability": lambda device=None: (9, 0),
            "get_device_properties": properties,
            "max_memory_allocated": lambda device=None: 0,
            "synchronize": lambda device=None: None,
            "empty_cache": empty_cache,
            "Stream": MagicMock(),
            "stream": lambda stream: contextlib.nullcontext(),
            "current_stream": MagicMock(),
        }.items():
            patch.setattr(torch.cuda, name, function)
        patch.setattr(torch, "empty", _empty(torch.empty))
        patch.setattr(nn.Module, "to", to)
        patch.setattr(Tensor, "backward", backward)
        for check in (
            "_accelerator_graph_capture_health_check",
            "_cuda_graph_capture_health_check",
        ):  # torch 2.15, 2.11
            patch.setattr(torch.optim.Optimizer, check, lambda optimizer: None, raising=False)
        patch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
        patch.setattr(Tensor, "record_stream", record_stream)
        with FakeTensorMode(allow_non_fake_inputs=True), _Plain():
            yield seen


def _empty(real: Any) -> Any:
    def empty(*arguments: Any, **options: Any) -> Tensor:
        device = torch.device(options.get("device") or "cpu")
        if device.type == "cuda" and (device.index or 0) >= NUM_GPUS:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return real(*arguments, **options)

    return empty


def _moved(module: nn.Module, device: torch.device) -> Iterator[nn.Parameter]:
    """Give a module parameters on the device. Module.to would swap them, which fake tensors do not allow."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                value = torch.empty(parameter.shape, device=device)
                part._parameters[name] = moved = nn.Parameter(value, requires_grad=parameter.requires_grad)
                if parameter.requires_grad:
                    yield moved
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


class _Plain(TorchFunctionMode):
    """What torch's own way asks the driver for: tensor[…] by numbers, slices and None, `~`, copies of real tensors."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function is Tensor.__getitem__ and arguments[0].is_cuda:
            return _indexed(*arguments)
        if function is Tensor.to and isinstance(arguments[1], torch.device) and arguments[1].type == "cuda":
            return torch.empty(arguments[0].shape, dtype=arguments[0].dtype, device=arguments[1])
        if function is Tensor.__invert__:
            return arguments[0].logical_not()
        if function is Tensor.numpy:
            with _disable_current_modes():
                return arguments[0].numpy()
        return function(*arguments, **(options or {}))


def _indexed(tensor: Tensor, index: Any) -> Tensor:
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in index:
        at, given = index.index(Ellipsis), sum(one is not None for one in index) - 1
        index = (*index[:at], *[slice(None)] * (tensor.dim() - given), *index[at + 1 :])
    dim = 0
    for one in index:
        if one is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(one, slice):
            stop = tensor.shape[dim] if one.stop is None else one.stop
            tensor = torch.ops.aten.slice.Tensor(tensor, dim, one.start or 0, stop, one.step or 1)
        else:
            tensor = tensor.select(dim, int(one))
            continue
        dim += 1
    return tensor
