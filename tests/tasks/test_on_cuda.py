"""The branches that only CUDA takes, walked on a stand-in for it: `tools/gpu_check.py` runs them on a real one."""

import pytest
import torch

from openmae.benchmarks.ours import make_ours, settled_for
from openmae.tasks.choices import Machine
from openmae.training.device import default_workers, has_bf16, peak_memory, total_memory, use_device

from ..cuda_stand_in import stand_in
from .shared import whole_parts

GPU = torch.device("cuda:0")


def test_what_is_planned_for_a_gpu():
    with stand_in():
        machine = Machine.of(use_device(None, 0), 1)
        settled = settled_for("base", 256, GPU, None)
        assert (machine.device, machine.has_bf16, machine.memory) == ("cuda", True, 80 << 30)
        assert (total_memory(GPU), has_bf16(GPU), peak_memory(GPU)) == (80 << 30, True, 0)
        assert machine.workers == default_workers(GPU)
    assert (settled.config.precision, settled.config.device) == ("bf16", "cuda:0")


@pytest.mark.parametrize("is_whole", [False, True], ids=["cropped", "whole"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_step_on_a_gpu(is_whole, precision):
    """Every tensor of the step lies there, or an operation would refuse to mix devices; batches come ahead."""
    cpu = torch.device("cpu")
    cropped = make_ours(settled_for("tiny", 4, cpu, "fp32", micro_batch_size=3), cpu).parts
    parts = whole_parts() if is_whole else cropped
    with stand_in() as seen:
        ours = make_ours(settled_for("tiny", 4, GPU, precision, micro_batch_size=3), GPU)
        ours.model.requires_grad_(False)  # see `stand_in`
        ours.parts = parts  # as readers give them: on the CPU, with values
        for number in range(2):
            loss, norm, is_skipped = ours.step()
            assert seen.copied == (number + 1) * 2 * 3  # two micro-batches of images and two sets of patch numbers
        assert {loss.device, norm.device, is_skipped.device} == {GPU}
        assert {state["exp_avg"].device for state in ours.optimizer.state.values()} == {GPU}


def test_a_tensor_left_behind_would_be_noticed():
    with stand_in(), pytest.raises(RuntimeError, match=r"device"):
        torch.ones(2, device=GPU) + torch.ones(2)
