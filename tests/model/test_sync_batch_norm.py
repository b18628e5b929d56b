"""Batch normalisation over processes equals nn.BatchNorm2d on the joined batch."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist
from torch import nn

from openmae.model.sync_batch_norm import SyncBatchNorm

WIDTH, MOMENTUM = 3, 0.1


def inputs_of(count, seed=0, size=(4, 5)):
    generator = torch.Generator().manual_seed(seed)
    x = 3 + 2 * torch.randn(count, WIDTH, *size, generator=generator)
    return x, torch.randn(x.shape, generator=generator)


def randomised(norm, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            value.copy_(torch.rand(WIDTH, generator=generator) + 0.5)
    return norm


def step(norm, x, gradient):
    """Output, input gradient, parameters' gradients and buffers after one training step."""
    x = x.clone().requires_grad_()
    y = norm.train()(x)
    y.backward(gradient)
    buffers = {name: value.clone() for name, value in norm.named_buffers()}
    return {"y": y.detach(), "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad, **buffers}


CASES = {  # images of each process, and the size of a map
    "uneven": ((2, 1), (4, 5)),
    "empty share": ((3, 0), (4, 5)),
    "one value": ((1, 0), (1, 1)),
    "no value": ((0, 0), (1, 1)),
}


def take_part(rank, file, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    for case, (shares, size) in CASES.items():
        x, gradient = inputs_of(sum(shares), size=size)
        start = sum(shares[:rank])
        own = slice(start, start + shares[rank])
        result = step(randomised(SyncBatchNorm(WIDTH, momentum=MOMENTUM)), x[own], gradient[own])
        queue.put((case, rank, {name: value.numpy() for name, value in result.items()}))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The results of both processes, by case: processes are slow to start."""
    context = multiprocessing.get_context("spawn")
    queue, file = context.Queue(), str(tmp_path_factory.mktemp("gloo") / "rendezvous")
    processes = [context.Process(target=take_part, args=(rank, file, queue)) for rank in (0, 1)]
    for process in processes:
        process.start()
    results = {case: [None, None] for case in CASES}
    for _ in range(2 * len(CASES)):
        case, rank, values = queue.get(timeout=100)
        results[case][rank] = {name: torch.from_numpy(value) for name, value in values.items()}
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return results


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("case", ["uneven", "empty share"])
def test_two_processes_equal_one_with_the_joined_batch(found, case):
    """Largest errors measured: output 2.4e-7, input gradient 1.8e-7, running statistics 1.2e-7.

    Of the parameters' summed gradients, up to 17 in size: 1.9e-6.
    """
    shares, size = CASES[case]
    norm = randomised(nn.BatchNorm2d(WIDTH, momentum=MOMENTUM))
    expected = step(norm, *inputs_of(sum(shares), size=size))
    first, second = found[case]
    joined = {name: torch.cat([first[name], second[name]]) for name in ("y", "x")}
    joined |= {name: first[name] + second[name] for name in ("weight", "bias")}
    for name, value in joined.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("case", ["one value", "no value"])
def test_too_few_values_in_all_processes_use_and_keep_the_running_statistics(found, case):
    shares, size = CASES[case]
    norm = randomised(nn.BatchNorm2d(WIDTH)).eval()
    x, _ = inputs_of(sum(shares), size=size)
    for result in found[case]:
        assert torch.equal(result["running_mean"], norm.running_mean)
        assert torch.equal(result["running_var"], norm.running_var)
        assert result["num_batches_tracked"] == 0
        assert all(torch.isfinite(value).all() for value in result.values())
        torch.testing.assert_close(result["y"], norm(x[: len(result["y"])]), rtol=1e-6, atol=1e-6)


def test_one_process_equals_batch_norm_and_weights_interchange():
    ours, theirs = randomised(SyncBatchNorm(WIDTH)), nn.BatchNorm2d(WIDTH)
    theirs.load_state_dict(ours.state_dict())
    found, expected = step(ours, *inputs_of(3)), step(theirs, *inputs_of(3))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    x, _ = inputs_of(2, seed=5)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_one_value_a_channel_uses_the_running_statistics_and_trains():
    norm, x = randomised(SyncBatchNorm(WIDTH)), torch.randn(1, WIDTH, 1, 1, requires_grad=True)
    before = {name: value.clone() for name, value in norm.named_buffers()}
    y = norm.train()(x)
    y.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())
    assert torch.equal(y, norm.eval()(x))
    assert x.grad.abs().min() > 0


def test_an_empty_batch_is_returned_and_counts_nothing():
    norm = SyncBatchNorm(WIDTH).train()
    assert norm(torch.empty(0, WIDTH, 2, 2)).shape == (0, WIDTH, 2, 2)
    assert norm.num_batches_tracked == 0
    assert norm.eval()(torch.empty(0, WIDTH, 2, 2)).shape == (0, WIDTH, 2, 2)


def test_statistics_under_autocast_are_in_float32():
    """A mean of 300 and a deviation of 1: squares summed in bf16 would lose it. Deviation measured: .9998."""
    x = (300 + 16 * torch.randn(64, WIDTH, 8, 8, generator=torch.Generator().manual_seed(0))).bfloat16()
    norm = SyncBatchNorm(WIDTH).train()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x).detach()
    assert y.dtype == torch.bfloat16
    assert abs(float(y.float().std()) - 1) < 0.01
    assert abs(float(y.float().mean())) < 0.01


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="3 channels got 4"):
        SyncBatchNorm(3)(torch.zeros(2, 4, 1, 1))


def test_it_exports_in_evaluation():
    norm, (x, _) = randomised(SyncBatchNorm(WIDTH)).eval(), inputs_of(2)
    program = torch.export.export(norm, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    assert torch.equal(program.module()(x[:1].repeat(3, 1, 1, 1)), norm(x[:1].repeat(3, 1, 1, 1)))
