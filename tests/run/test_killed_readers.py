"""Readers that the system kills for their memory: fewer go on to the same bytes; the second time the run is saved."""

import functools
import os
import re
import signal
import time
from dataclasses import replace

import pytest
import torch

from openmae.data.loader import Stream
from openmae.errors import Fault
from openmae.run.step import step_if_finite
from openmae.tasks.pretrain.pretrain import pretrain

from ..processes import TINY, run, said, same, start, wait
from ..sabotage import kill_readers_at, kill_readers_of_evaluation
from ..shared import gradients_config, same_training_state


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
    with pytest.raises(Fault, match=r"short of memory: give fewer --workers.*at step \d: saved") as fault:
        pretrain(config)
    assert (tmp_path / "killed at 58").exists()
    step = int(re.search(r"at step (\d)", str(fault.value))[1])
    assert 2 <= step <= 7  # with one reader, batches that it made may be lost with it
    assert (killed / "checkpoints" / f"step-{step:08d}").is_dir()
    assert pretrain(replace(config, resume="auto"))["status"] == "complete"
    same_training_state(whole, killed)


@pytest.mark.slow
def test_with_several_processes_the_second_time_ends_all_of_them_saved(tmp_path):
    """The one whose readers were killed says it and ends as before; the others as if it had got a signal."""
    out, log, marks = tmp_path / "run", tmp_path / "log", tmp_path / "marks"
    marks.mkdir()
    command = f"pretrain embedded:digits --out {out} --steps 12 --workers 1 {TINY} --save-every 1000"
    patch = functools.partial(kill_readers_at, str(marks), 1, (4 * 16 + 8, 8 * 16 + 8))
    processes = start(command, log, 2, patch=patch)
    assert wait(processes) == [3, 1], said(log)
    assert len(list(marks.iterdir())) == 2
    assert re.search(
        r"another process received a signal or lost its readers at step \d: saved, --resume auto continues", said(log)
    )
    (step,) = re.findall(r"short of memory: give fewer --workers.* at step (\d): saved, --resume auto", said(log))
    assert (out / "checkpoints" / f"step-{int(step):08d}").is_dir()
    assert "Traceback" not in said(log)
    assert run(f"{command} --resume auto", log, 2) == [0, 0], said(log)
    assert run(command.replace(str(out), str(tmp_path / "whole")), log, 2) == [0, 0]
    assert same(out, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_readers_killed_while_evaluating_end_the_run_saved(tmp_path, count):
    """Each evaluation starts readers of its own; here those of the last process are killed twice in the first."""
    out, log = tmp_path / "run", tmp_path / "log"
    command = (
        f"finetune embedded:digits --init none --out {out} --steps 6 --image-size 8 --patch-size 2 --width 24 "
        "--depth 1 --num-heads 3 --batch-size 16 --device cpu --precision fp32 --workers 1 "
        "--evaluate-every 3 --save-every 1000"
    )
    processes = start(command, log, count, patch=functools.partial(kill_readers_of_evaluation, count - 1))
    assert wait(processes) == [3] * (count - 1) + [1], said(log)
    assert re.search(r"short of memory: give fewer --workers.* at step 3: saved, --resume auto", said(log)), said(log)
    assert (out / "checkpoints" / "step-00000003").is_dir()
    assert run(f"{command} --resume auto", log, count) == [0] * count, said(log)


def test_a_reader_that_dies_while_the_step_computes_does_not_disturb_it(
    digits_config, gradients, tmp_path, kill_readers, monkeypatch
):
    """DataLoader would raise within the optimiser's step: half of the weights would be those of the next one."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    pretrain(config_of(digits_config, gradients, whole, 0))
    real, found = step_if_finite, []

    def wait_for_the_death(model, optimizer):
        flag = tmp_path / "killed at 14"
        until = time.monotonic() + 5
        while not flag.exists() and not found and time.monotonic() < until:
            time.sleep(0.01)
        if flag.exists() and not found:
            found.append(True)
            time.sleep(0.3)  # for the signal to arrive: here, of all places
        return real(model, optimizer)

    monkeypatch.setattr("openmae.run.step.step_if_finite", wait_for_the_death)
    kill_readers(14)
    assert pretrain(config_of(digits_config, gradients, killed, 2))["status"] == "complete"
    assert found
    same_training_state(whole, killed)
