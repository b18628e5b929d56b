"""Readers that the system kills for their memory: fewer go on to the same bytes; the second time the run is saved."""

import os
import re
import signal
import time
from dataclasses import replace

import pytest
import torch

from openmae.data.loader import Stream
from openmae.errors import Fault
from openmae.tasks import loop
from openmae.tasks.pretrain import pretrain

from .shared import gradients_config, same_training_state


@pytest.fixture
def kill_readers(monkeypatch, tmp_path):
    """`kill_readers(4, 9)`: the reader of the stream's position 4, and of 9, is killed, once each."""

    def begin(*positions):
        real = Stream.locate

        def locate(self, asked):
            for position in positions:
                flag = tmp_path / f"killed at {position}"
                if torch.utils.data.get_worker_info() is not None and position in asked and not flag.exists():
                    flag.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(self, asked)

        monkeypatch.setattr(Stream, "locate", locate)

    return begin


def config_of(digits_config, gradients, out, workers):
    return gradients_config(digits_config, gradients, out, steps=12, save_every=5, micro_batch_size=4, workers=workers)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_killed_reader_is_replaced_and_the_bytes_are_the_same(
    digits_config, gradients, tmp_path, kill_readers, capfd, workers
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    pretrain(config_of(digits_config, gradients, whole, 0))
    kill_readers(50)  # in the middle of step 6
    assert pretrain(config_of(digits_config, gradients, killed, workers))["status"] == "complete"
    assert (tmp_path / "killed at 50").exists()
    said = "now one that reads no batch ahead" if workers == 1 else "now 1 instead of 3"
    assert f"the system killed one, most likely for lack of memory: {said}" in capfd.readouterr().out
    same_training_state(whole, killed)


def test_the_second_time_the_run_ends_saved_and_resumes_to_the_same_bytes(
    digits_config, gradients, tmp_path, kill_readers
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    pretrain(config_of(digits_config, gradients, whole, 0))
    kill_readers(18, 58)
    config = config_of(digits_config, gradients, killed, 2)
    with pytest.raises(Fault, match=r"short of memory: give fewer --workers.*saved at step \d, --resume auto") as fault:
        pretrain(config)
    assert (tmp_path / "killed at 58").exists()
    step = int(re.search(r"at step (\d)", str(fault.value))[1])
    assert 2 <= step <= 7  # with one reader, batches that it made may be lost with it
    assert (killed / "checkpoints" / f"step-{step:08d}").is_dir()
    assert pretrain(replace(config, resume="auto"))["status"] == "complete"
    same_training_state(whole, killed)


def test_a_reader_that_dies_while_the_step_computes_does_not_disturb_it(
    digits_config, gradients, tmp_path, kill_readers, monkeypatch
):
    """DataLoader would raise within the optimiser's step: half of the weights would be those of the next one."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    pretrain(config_of(digits_config, gradients, whole, 0))
    real, found = loop.step_if_finite, []

    def wait_for_the_death(model, optimizer):
        flag = tmp_path / "killed at 14"
        until = time.monotonic() + 5
        while not flag.exists() and not found and time.monotonic() < until:
            time.sleep(0.01)
        if flag.exists() and not found:
            found.append(True)
            time.sleep(0.3)  # for the signal to arrive: here, of all places
        return real(model, optimizer)

    monkeypatch.setattr("openmae.tasks.pretrain.step_if_finite", wait_for_the_death)
    kill_readers(14)
    assert pretrain(config_of(digits_config, gradients, killed, 2))["status"] == "complete"
    assert found
    same_training_state(whole, killed)
