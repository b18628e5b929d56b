"""The branches that only CUDA takes, walked on a stand-in for it: `tools/gpu_check.py` runs them on a real one."""

import json

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from openmae.benchmarks.ours import make_ours, pretrain_plan_for
from openmae.inference.mask_sampler import MaskSampler
from openmae.machine import parallel
from openmae.machine.device import default_workers, has_bf16, peak_memory, total_memory, use_device
from openmae.machine.parallel import Processes, parallelise
from openmae.planning import decisions
from openmae.planning.decisions import Machine
from openmae.run.recovery import smaller_micro_batch
from openmae.tasks.pretrain import pretrain as task

from ...cuda_stand_in import stand_in
from ...shared import whole_micro_batches
from .small_steps import ours_of

GPU = torch.device("cuda:0")


def test_what_is_planned_for_a_gpu():
    with stand_in():
        machine = Machine.of(use_device(None, 0), 1)
        settled = pretrain_plan_for("base", 256, GPU, None)
        assert (machine.device, machine.has_bf16, machine.memory) == ("cuda", True, 80 << 30)
        assert (total_memory(GPU), has_bf16(GPU), peak_memory(GPU)) == (80 << 30, True, 0)
        assert machine.workers == default_workers(GPU)
    assert (settled.config.precision, settled.config.device) == ("bf16", "cuda:0")


@pytest.mark.slow
@pytest.mark.parametrize("is_whole", [False, True], ids=["cropped", "whole"])
@pytest.mark.parametrize(("precision", "settings"), [("bf16", {}), ("fp32", {}), ("bf16", {"tokenizer": "dalle"})])
def test_a_step_on_a_gpu(is_whole, precision, settings):
    """Every tensor of the step lies there, or an operation would refuse to mix devices; batches come ahead.

    A tokenizer of ours cannot be made in the stand-in (`to_empty`), so of those DALL-E's is walked.
    """
    cpu = torch.device("cpu")
    cropped = make_ours(pretrain_plan_for("tiny", 4, cpu, "fp32", micro_batch_size=3), cpu).micro_batches
    micro_batches = whole_micro_batches() if is_whole else cropped
    with stand_in() as seen:
        ours = ours_of(settings, GPU, precision)
        ours.model.requires_grad_(False)  # see `stand_in`
        ours.micro_batches = micro_batches  # as readers give them: on the CPU, with values
        for number in range(2):
            loss, norm, is_skipped = ours.step()
            assert seen.copied == (number + 1) * 2 * 3  # two micro-batches of images and two sets of patch numbers
        assert {loss.device, norm.device, is_skipped.device} == {GPU}
        assert {state["exp_avg"].device for state in ours.optimizer.state.values()} == {GPU}


def test_a_tensor_left_behind_would_be_noticed():
    with stand_in(), pytest.raises(RuntimeError, match=r"device"):
        torch.ones(2, device=GPU) + torch.ones(2)


@pytest.mark.parametrize("name", [None, "cuda", "cuda:1"])
def test_pretrain_is_set_up_on_a_gpu(digits_config, tmp_path, monkeypatch, name):
    """Up to the loop: every command went through `use_device`, and ended there."""
    seen = []
    monkeypatch.setattr(
        "openmae.run.open_run.run_loop", lambda training, *rest: seen.append(training) or {"status": "complete"}
    )
    look = decisions.survey
    monkeypatch.setattr(decisions, "survey", lambda *asked, **options: on_cpu(look, *asked, **options))
    visible = MaskSampler.num_visible.fget
    monkeypatch.setattr(MaskSampler, "num_visible", property(lambda masks: on_cpu(visible, masks)))
    with stand_in() as gpu:
        task.pretrain(digits_config(tmp_path / "run", device=name, precision=None))
        number = 1 if name == "cuda:1" else 0
        assert gpu.current == number
    (training,) = seen
    assert training.device == torch.device("cuda", number)
    assert training.step_model.needs_warm_up  # compiled by default
    assert {parameter.device for parameter in training.model.parameters()} == {training.device}
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["device"], saved["compile"], saved["precision"]) == (f"cuda:{number}", True, "bf16")


def on_cpu(function, *arguments, **options):
    with _disable_current_modes():
        return function(*arguments, **options)


def test_of_several_processes_each_is_wrapped_for_its_gpu(monkeypatch):
    calls = []
    monkeypatch.setattr(parallel, "DistributedDataParallel", lambda model, **options: calls.append(options) or model)
    model = torch.nn.Linear(1, 1)
    for device in (torch.device("cuda:1"), torch.device("cpu")):
        parallelise(model, Processes(rank=1, count=2, local_rank=1, local_count=2), device)
    assert [options["device_ids"] for options in calls] == [[torch.device("cuda:1")], None]


def test_what_lies_on_gpus_goes_through_nccl(monkeypatch):
    backends = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel, "_join", backends.append)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with parallel.join_processes():
        pass
    with stand_in(), parallel.join_processes() as processes:
        pass
    assert backends == ["gloo", "cpu:gloo,cuda:nccl"]
    assert (processes.rank, processes.count) == (1, 2)


def test_little_memory_on_a_gpu_gives_back_what_is_kept(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters())
    with stand_in() as gpu:
        assert smaller_micro_batch(tmp_path, 16, 8, optimizer, Processes()) == 4
    assert gpu.emptied == 1
