"""Batch norms' statistics are those of the steps that counted."""

import pytest
import torch
from torch import nn

from openmae.machine.parallel import Processes
from openmae.model.sync_batch_norm import SyncBatchNorm
from openmae.run.step import accumulated_step
from openmae.training.optim import adamw


@pytest.fixture(params=[SyncBatchNorm, nn.BatchNorm1d])
def model(request):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), request.param(4)).train()


def statistics(model):
    return [buffer.clone() for buffer in model.buffers()]


def take_step(model, batches, loss=lambda output: output.square().mean()):
    optimizer = adamw(model, 0.0, (0.9, 0.95))
    return accumulated_step(model, optimizer, batches, lambda batch: loss(model(batch)), Processes())


def test_a_step_that_counts_updates_them(model):
    before = statistics(model)
    take_step(model, [torch.randn(5, 3)])
    assert not torch.equal(before[0], statistics(model)[0])
    assert statistics(model)[2] == 1


def test_a_skipped_step_leaves_them(model):
    take_step(model, [torch.randn(5, 3)])
    before, weights = statistics(model), [p.clone() for p in model.parameters()]
    _, _, is_skipped = take_step(model, [torch.randn(5, 3), torch.full((5, 3), float("nan"))])
    assert is_skipped
    assert all(map(torch.equal, before, statistics(model)))
    assert all(map(torch.equal, weights, model.parameters()))


def test_a_step_that_ran_out_of_memory_leaves_them(model):
    before, seen = statistics(model), []

    def loss(output):
        seen.append(output)
        if len(seen) == 2:
            raise torch.OutOfMemoryError("no memory")
        return output.sum()

    with pytest.raises(torch.OutOfMemoryError):
        take_step(model, [torch.randn(5, 3), torch.randn(5, 3)], loss)
    assert all(map(torch.equal, before, statistics(model)))
