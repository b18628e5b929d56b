"""Batches that are brought to the device early are those that are brought when it is their turn."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from openmae.training.prefetch import inputs_of_steps

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Prepared:
    value: Tensor

    def tensors(self):
        return [self.value]


def steps_of(log, sizes):
    """Steps of so many micro-batches, numbered through."""
    number = 0
    for size in sizes:
        log.append(f"read {number}")
        yield [torch.tensor(number + i) for i in range(size)]
        number += size


def run(sizes, is_ahead, take=lambda step, inputs: list(inputs)):
    log: list[str] = []

    def prepare(micro_batch):
        log.append(f"prepare {int(micro_batch)}")
        return Prepared(micro_batch * 10)

    for step, inputs in enumerate(inputs_of_steps(steps_of(log, sizes), prepare, CPU, is_ahead=is_ahead)):
        assert len(inputs) == sizes[step]
        log.append(f"step {step}")
        for micro_batch in take(step, inputs):
            log.append(f"compute {int(micro_batch.value)}")
    return log


def test_on_a_cpu_each_is_prepared_in_its_turn():
    assert run([2, 1], is_ahead=None) == [
        "read 0", "step 0", "prepare 0", "prepare 1", "compute 0", "compute 10", "read 2", "step 1", "prepare 2",
        "compute 20",
    ]  # fmt: skip


def test_ahead_the_next_one_is_on_its_way_before_one_computes():
    log = run([1, 2, 1], is_ahead=True, take=lambda step, inputs: inputs)
    assert log == [
        "read 0", "read 1", "step 0", "prepare 0", "prepare 1", "compute 0", "read 3", "step 1", "prepare 2",
        "compute 10", "prepare 3", "compute 20", "step 2", "compute 30",
    ]  # fmt: skip


@pytest.mark.parametrize("sizes", [[1], [3], [1, 1, 1], [2, 3, 1, 2], []])
def test_each_is_seen_once_in_order(sizes):
    computed = [[line for line in run(sizes, ahead) if line.startswith("compute")] for ahead in (False, True)]
    assert computed[0] == computed[1] == [f"compute {10 * i}" for i in range(sum(sizes))]


def test_a_step_that_is_left_early_does_not_confuse_the_next():
    log = run([3, 2], is_ahead=True, take=lambda step, inputs: [next(iter(inputs))] if step == 0 else inputs)
    assert [line for line in log if line.startswith("compute")] == ["compute 0", "compute 30", "compute 40"]


def test_one_can_be_looked_at_before_the_step():
    inputs = next(
        inputs_of_steps(steps_of([], [2]), lambda micro_batch: Prepared(micro_batch * 10), CPU, is_ahead=True)
    )
    assert int(inputs[1].value) == 10
    assert [int(micro_batch.value) for micro_batch in inputs] == [0, 10]


def test_closing_closes_the_reading():
    log: list[str] = []

    def steps():
        try:
            while True:
                yield [torch.tensor(0)]
        finally:
            log.append("closed")

    inputs = inputs_of_steps(steps(), Prepared, CPU, is_ahead=True)
    next(inputs)
    inputs.close()
    assert log == ["closed"]
