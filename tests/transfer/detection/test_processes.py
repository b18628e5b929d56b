"""Two processes, wrapped as a run wraps them, against one with the whole batch."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from openmae.config import Conventions

from .detectors import detector_shape, images_of, instances_of, keys_of, make_detector, part_of

COUNTS = {"objects in both": [2, 1, 3, 1], "one has none": [0, 0, 2, 1], "none": [0, 0, 0, 0]}


def step(model, counts, images=slice(None)):
    """Losses of these images, and the gradients of their sum over the global batch."""
    start, stop, _ = images.indices(len(counts))
    instances = part_of(instances_of(counts), start, stop)
    losses = model(images_of(len(counts))[images], instances, keys_of(len(counts))[images])
    # DistributedDataParallel averages gradients over processes.
    shares = len(counts) / (2 if dist.is_initialized() else 1)
    (sum(values.sum() for values in losses.values()) / shares).backward()
    gradients = {n.removeprefix("module."): p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {name: values.detach() for name, values in losses.items()}, gradients


def made(norm):
    return make_detector(detector_shape(conventions=Conventions(head_norm=norm))).train()


def take_part(rank, file, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    for norm in ("layer", "batch"):
        for case, counts in COUNTS.items():
            model = DistributedDataParallel(made(norm), gradient_as_bucket_view=True)
            losses, gradients = step(model, counts, slice(2 * rank, 2 * rank + 2))
            both = [{name: value.numpy() for name, value in part.items()} for part in (losses, gradients)]
            queue.put((norm, case, rank, both))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Losses and gradients of both processes, by norm and case: processes are slow to start."""
    context = multiprocessing.get_context("spawn")
    queue, file = context.Queue(), str(tmp_path_factory.mktemp("gloo") / "rendezvous")
    processes = [context.Process(target=take_part, args=(rank, file, queue)) for rank in (0, 1)]
    for process in processes:
        process.start()
    results = {}
    for _ in range(2 * 2 * len(COUNTS)):
        norm, case, rank, both = queue.get(timeout=100)
        results[norm, case, rank] = [{n: torch.from_numpy(v.copy()) for n, v in part.items()} for part in both]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return results


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("case", COUNTS)
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_two_processes_equal_one(found, case, norm):
    """Largest difference measured: 3e-7, of losses relative and of gradients to their largest value."""
    losses, gradients = step(made(norm), COUNTS[case])
    parts = [found[norm, case, rank] for rank in (0, 1)]
    for name, values in losses.items():
        joined = torch.cat([part[0][name] for part in parts])
        torch.testing.assert_close(joined, values, rtol=1e-4, atol=1e-5)
    largest = max(float(g.abs().max()) for g in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(parts[0][1][name], gradient, rtol=1e-3, atol=1e-4 * largest)
        assert torch.equal(parts[0][1][name], parts[1][1][name])
