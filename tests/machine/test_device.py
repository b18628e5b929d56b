"""Which device a process computes on: a GPU always has its number; and what short memory is told by."""

import pytest
import torch

from openmae.errors import RequestError
from openmae.machine.device import is_out_of_memory, pick_device, use_device

from ..cuda_stand_in import stand_in


@pytest.mark.parametrize(
    ("name", "local_rank", "number"),
    [(None, 0, 0), ("cuda", 0, 0), ("cuda:0", 0, 0), ("cuda:1", 0, 1), (None, 1, 1), ("cuda", 1, 1), ("cuda:0", 1, 1)],
)
def test_a_gpu_has_its_number(name, local_rank, number):
    """`torch.cuda.set_device` refuses a device without one: with it, every command on CUDA ended at its start.

    Of several processes each takes the GPU so many behind the one that is named: a resumed run remembers `cuda:0`.
    """
    with stand_in() as seen:
        assert use_device(name, local_rank) == torch.device("cuda", number)
        assert seen.current == number


def test_a_device_without_a_number_would_be_refused():
    with stand_in(), pytest.raises(ValueError, match="index"):
        torch.cuda.set_device(torch.device("cuda"))


def test_the_gpu_that_someone_made_current_stays():
    with stand_in():
        torch.cuda.set_device(1)
        assert pick_device(None) == torch.device("cuda", 1)


def test_more_processes_than_gpus():
    with stand_in(), pytest.raises(RequestError, match=r"3 or more processes on this machine, which has 2 GPUs"):
        use_device("cuda", 2)


def test_a_gpu_that_is_not_there():
    with stand_in(), pytest.raises(RequestError, match=r"--device got 'cuda:7': there is no such device here"):
        use_device("cuda:7", 0)


def wrapped(cause, name):
    error = RuntimeError("the compiler failed")
    setattr(error, name, cause)
    return error


SHORT = torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (SHORT, True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (wrapped(SHORT, "inner_exception"), True),
        (wrapped(SHORT, "__cause__"), True),
        (wrapped(ValueError("else"), "inner_exception"), False),
        (RuntimeError("shapes do not fit"), False),
    ],
)
def test_short_memory_is_told_from_other_errors(error, is_memory):
    assert is_out_of_memory(error) is is_memory
