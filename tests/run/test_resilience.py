"""What a long run must survive: bad numbers, spikes, little memory, full disks, kills, dead processes, vanishing files.

The long half of this runs in `make drill`.
"""

import functools
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import openmae.cli
from openmae.config import Preprocessing
from openmae.data.augment import Augmentation
from openmae.data.loader import Stream, training_loader
from openmae.data.readers import iterate_batches
from openmae.data.sources import folder as folder_module
from openmae.errors import Fault, Interrupted, RequestError
from openmae.inference.mask_sampler import MaskSampler
from openmae.machine.parallel import Processes
from openmae.run import loop
from openmae.run.progress import MAX_SKIPPED, Progress
from openmae.run.remembered import with_remembered
from openmae.tasks.pretrain import pretrain as task
from openmae.tasks.pretrain.data import open_training_data
from openmae.tasks.pretrain.pretrain import pretrain
from openmae.training.telemetry import read_lines

from ..processes import TINY, run, said, send, start, summary_of, wait, wait_for_step
from ..sabotage import break_reader, start_a_group_and_hang
from ..shared import gradients_config, metrics, pixel_config, same_training_state, snapshot, untimed


def at_calls(monkeypatch, name, wanted, change):
    """Replace what `task.NAME(…)` gives in its calls with these numbers, counted from 1, by `change(it)`."""
    real, counter = getattr(task, name), itertools.count(1)

    def changed(*arguments, **options):
        result = real(*arguments, **options)
        return change(result) if next(counter) in wanted else result

    monkeypatch.setattr(task, name, changed)


def tensors(run_folder, step):
    folder = run_folder / "checkpoints" / f"step-{step:08d}"
    return {**load_file(folder / "model.safetensors"), **load_file(folder / "optimizer.safetensors")}


# --- numbers that are not finite ---


def test_a_step_with_gradients_that_are_not_finite_changes_nothing(digits_config, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    at_calls(monkeypatch, "model_input", {6}, lambda images: images * float("nan"))
    summary = pretrain(pixel_config(digits_config, out, save_every=1, keep=20, log_every=1))
    before, after, later = (tensors(out, step) for step in (5, 6, 7))
    assert any(name.startswith("step/") for name in before)
    assert any(name.startswith("exp_avg_sq/") for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not all(torch.equal(after[name], later[name]) for name in after)
    assert (summary["status"], summary["skipped_steps"], summary["rollbacks"]) == ("complete", 1, 0)
    lines = {line["step"]: line for line in metrics(out) if "lr" in line}
    assert lines[6]["skipped_steps"] == 1
    assert "loss" not in lines[6]
    assert "skipped_steps" not in lines[7]
    assert "1 of the last 1 steps had no finite gradient" in capsys.readouterr().out


def test_a_skipped_step_between_two_lines_leaves_the_mean_finite(digits_config, tmp_path, monkeypatch):
    at_calls(monkeypatch, "model_input", {5}, lambda images: images * float("inf"))
    pretrain(pixel_config(digits_config, tmp_path / "run"))
    line = next(line for line in metrics(tmp_path / "run") if line["step"] == 6)
    assert (line["skipped_steps"], np.isfinite(line["loss"])) == (1, True)


def test_many_in_a_row_roll_back(digits_config, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    at_calls(monkeypatch, "model_input", range(2, 2 + MAX_SKIPPED), lambda images: images * float("nan"))
    summary = pretrain(pixel_config(digits_config, out, log_every=1, save_every=1, steps=12))
    assert "not finite: back to step 10" in capsys.readouterr().out
    assert (summary["status"], summary["rollbacks"]) == ("complete", 1)


def test_after_three_roll_backs_the_batchs_files_are_named(digits_config, gradients, tmp_path, monkeypatch):
    out = tmp_path / "run"
    config = gradients_config(digits_config, gradients, out, log_every=1, steps=100)
    at_calls(monkeypatch, "model_input", range(8, 1000), lambda images: images * float("nan"))
    with pytest.raises(Fault, match=r"not finite at step \d+, after 3 roll-backs: try a lower --base-lr") as fault:
        pretrain(config)
    step = int(re.search(r"at step (\d+)", str(fault.value))[1])
    data = open_training_data(config)
    stream = Stream(data.train, Preprocessing.from_dict(preprocessing_of(out)), Augmentation(kind="crop"), 0, 1)
    indices, _ = stream.locate(range((step - 1) * 8, step * 8))
    assert str(fault.value).endswith(", ".join(repr(data.train.name(index)) for index in indices.tolist()))
    assert (summary_of(out)["status"], summary_of(out)["rollbacks"]) == ("failed", 3)
    saved = sorted((out / "checkpoints").iterdir())
    assert saved
    for checkpoint in saved:
        assert all(value.isfinite().all() for value in load_file(checkpoint / "model.safetensors").values())


def preprocessing_of(run_folder):
    values = json.loads((run_folder / "config.json").read_text())["preprocessing"]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_saved(digits_config, pixel_run, tmp_path, monkeypatch, value):
    """They go back to the checkpoint before, and the run ends as if nothing had been."""
    real, counter = task.train_step, itertools.count(1)

    def train_step(model, *arguments):
        result = real(model, *arguments)
        if next(counter) == 8:
            with torch.no_grad():
                next(model.parameters()).view(-1)[3] = value
        return result

    monkeypatch.setattr(task, "train_step", train_step)
    summary = pretrain(pixel_config(digits_config, tmp_path / "run"))
    assert (summary["status"], summary["rollbacks"]) == ("complete", 1)
    same_training_state(pixel_run, tmp_path / "run")
    assert untimed(metrics(pixel_run)) == untimed(metrics(tmp_path / "run"))


def test_a_loss_spike_is_logged(digits_config, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    at_calls(monkeypatch, "train_step", {32}, lambda result: (result[0] * 50, *result[1:]))
    summary = pretrain(pixel_config(digits_config, out, log_every=1, steps=40))
    assert summary["loss_spikes"] == 1
    assert [line["step"] for line in metrics(out) if line.get("loss_spike")] == [32]
    assert "loss spike at step 32" in capsys.readouterr().out


# --- little memory, full disk ---


def test_out_of_memory_halves_the_micro_batch_and_not_the_batch(
    digits_config, pixel_run, tmp_path, monkeypatch, capsys
):
    """It happens in a step's second micro-batch, when the first one's gradients are there already."""
    failing = iter([False] * 5 + [True])

    def model_input(batch, *rest):
        if next(failing, False):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(batch, *rest)

    real = task.model_input
    monkeypatch.setattr(task, "model_input", model_input)
    pretrain(pixel_config(digits_config, tmp_path / "run", micro_batch_size=8))
    assert "out of memory: now 4 images at a time" in capsys.readouterr().out
    for whole, parts in zip(metrics(pixel_run), metrics(tmp_path / "run"), strict=True):
        for name in {"loss", "held_out_loss"} & whole.keys():
            assert whole[name] == pytest.approx(parts[name], rel=1e-6), whole["step"]


def test_one_image_that_is_too_large_ends_the_run(digits_config, tmp_path, monkeypatch):
    def model_input(batch, *rest):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(task, "model_input", model_input)
    with pytest.raises(Fault, match=r"out of memory with a single image at a time: give a smaller"):
        pretrain(pixel_config(digits_config, tmp_path / "run"))


@pytest.mark.parametrize("trained", [0, 6])
def test_several_processes_start_again_with_half_as_many_images(
    digits_config, pixel_run, tmp_path, monkeypatch, trained
):
    """Of two, one cannot go on alone: it says so, and the next start takes half, with or without a checkpoint."""
    out, counter, real = tmp_path / "run", itertools.count(), task.model_input

    def model_input(batch, *rest):
        if next(counter) == trained:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(batch, *rest)

    config = pixel_config(digits_config, out, resume="auto", save_every=2, evaluate_every=100)
    with monkeypatch.context() as patch:
        patch.setattr(task, "model_input", model_input)
        smaller = loop.smaller_micro_batch
        two = Processes(count=2)  # as one of two sees it, which has half of each batch
        patch.setattr(loop, "smaller_micro_batch", lambda *arguments: smaller(*arguments[:-1], two))
        with pytest.raises(Fault, match=r"out of memory with 8 images at a time: started again .* takes 4"):
            pretrain(config)
    assert pretrain(config)["status"] == "complete"
    saved = json.loads((out / "config.json").read_text())
    assert (saved["micro_batch_size"], saved["batch_size"]) == (4, 16)
    finished = metrics(out)[-1]
    assert finished["held_out_loss"] == pytest.approx(metrics(pixel_run)[-1]["held_out_loss"], rel=1e-5)


def test_another_runtime_error_is_not_taken_for_little_memory(digits_config, tmp_path, monkeypatch):
    monkeypatch.setattr(task, "model_input", lambda *arguments: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        pretrain(pixel_config(digits_config, tmp_path / "run"))


@pytest.mark.slow
def test_a_compiler_that_fails_is_named(digits_config, tmp_path, monkeypatch):
    def no_compiler(graph, inputs):
        raise OSError("no C compiler found")

    torch._dynamo.reset()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: compile_(model, backend=no_compiler, **options))
    with pytest.raises(Fault, match=r"torch.compile fails here \(.*no C compiler found.*\): --compile False goes"):
        pretrain(pixel_config(digits_config, tmp_path / "run", compile=True))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["compile"] is False
    left_open = pixel_config(digits_config, tmp_path / "run", resume="auto")
    assert with_remembered(left_open).compile is False  # as torchrun starts it again
    assert with_remembered(replace(left_open, compile=True)).compile is True
    assert with_remembered(pixel_config(digits_config, tmp_path / "other")).compile is None


@pytest.mark.slow
def test_a_resume_that_cannot_compile_leaves_the_run_as_it_was(digits_config, tmp_path, monkeypatch):
    def no_compiler(graph, inputs):
        raise OSError("no C compiler found")

    out = tmp_path / "run"
    pretrain(pixel_config(digits_config, out, steps=4))
    untouched = shutil.copytree(out, tmp_path / "untouched")
    torch._dynamo.reset()
    with monkeypatch.context() as patch:
        compile_ = torch.compile
        patch.setattr(torch, "compile", lambda model, **options: compile_(model, backend=no_compiler, **options))
        with pytest.raises(Fault, match=r"torch.compile fails"):
            pretrain(pixel_config(digits_config, out, steps=8, resume="auto", compile=True))
    for folder in (out, untouched):
        pretrain(pixel_config(digits_config, folder, steps=8, resume="auto"))
    same_training_state(out, untouched, step=8)
    assert json.loads((out / "config.json").read_text())["compile"] is False


def test_little_memory_while_compiling_is_little_memory(tmp_path):
    error = RuntimeError("the compiler failed")
    error.inner_exception = torch.OutOfMemoryError("CUDA out of memory")
    model = torch.nn.Linear(1, 1)
    tmp_path.joinpath("config.json").write_text("{}")
    optimizer = torch.optim.SGD(model.parameters())
    assert loop.is_out_of_memory(error)
    assert loop.smaller_micro_batch(tmp_path, 16, 8, optimizer, Processes()) == 4


def test_the_forms_of_a_step_reach_the_model(digits_config, tmp_path, monkeypatch):
    """And change no figure where they must not."""
    seen, save = [], task.save_checkpoint

    def watch(run, step, model, *rest):
        seen.append((model.decoder.blocks[0].recomputes, model.encoder.bf16_residual, model.decoder.bf16_residual))
        return save(run, step, model, *rest)

    monkeypatch.setattr(task, "save_checkpoint", watch)
    plain = pretrain(pixel_config(digits_config, tmp_path / "plain", steps=4))
    again = pretrain(pixel_config(digits_config, tmp_path / "again", steps=4, recompute=True))
    assert again["loss"] == plain["loss"]
    pretrain(pixel_config(digits_config, tmp_path / "bf16", steps=4, precision="bf16", bf16_residual=True))
    assert set(seen) == {(False, False, False), (True, False, False), (False, True, True)}
    config = pixel_config(digits_config, tmp_path / "plain", steps=6, resume="auto", recompute=True)
    assert pretrain(config)["status"] == "complete"  # may change
    with pytest.raises(RequestError, match="--bf16-residual"):  # may not
        pretrain(
            pixel_config(
                digits_config, tmp_path / "bf16", steps=6, resume="auto", precision="bf16", bf16_residual=False
            )
        )


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**6, used=10**6 - 1000, free=1000))
    out = tmp_path / "run"
    assert openmae.cli.run(f"pretrain embedded:digits --out {out} --steps 2 --workers 0 {TINY}".split()) == 1
    assert re.search(r"needs \d+ kB for checkpoints and 1 kB are free", capsys.readouterr().err)
    assert not out.exists()


# --- exact resume, in real processes ---

STEPS = 60


def arguments(out, workers, steps=STEPS):
    return f"pretrain embedded:digits --out {out} --steps {steps} --workers {workers} --resume auto {TINY}"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """`uninterrupted(count)`: the run of so many processes that nobody disturbs."""
    done = {}

    def get(count):
        if count not in done:
            done[count] = tmp_path_factory.mktemp("whole") / str(count)
            assert run(arguments(done[count], 0), done[count].with_suffix(".log"), count) == [0] * count
        return done[count]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, uninterrupted, workers, count):
    chance = random.Random(f"{workers} {count}")
    out, log = tmp_path / "run", tmp_path / "log"
    for number, low, high in ((signal.SIGKILL, 2, 18), (signal.SIGTERM, 20, 36), (signal.SIGKILL, 38, 52)):
        processes = start(arguments(out, workers), log, count)
        assert wait_for_step(out, chance.randrange(low, high), processes), log.read_text()
        time.sleep(chance.uniform(0, 0.03))
        # A stop is agreed on: one process hears it, all save.
        send(processes if number == signal.SIGKILL else [chance.choice(processes)], number)
        wanted = -signal.SIGKILL if number == signal.SIGKILL else 3
        assert wait(processes) == [wanted] * count, log.read_text()
        assert wanted != 3 or summary_of(out)["status"] == "interrupted"
    assert run(arguments(out, workers), log, count) == [0] * count, log.read_text()
    same_training_state(uninterrupted(count), out, STEPS)
    assert untimed(metrics(uninterrupted(count))) == untimed(metrics(out))


# --- several processes ---


@pytest.mark.slow
def test_any_number_of_processes_computes_the_same_losses(tmp_path):
    """A batch of 18: 9 + 9, 6 + 6 + 6 and 5 + 5 + 4 + 4 images, in micro-batches of 3 at most."""
    tiny = TINY.replace("--batch-size 16", "--batch-size 18 --micro-batch-size 3").replace("--log-every 2", "")
    losses = {}
    for count in (1, 2, 3, 4):
        out, log = tmp_path / str(count), tmp_path / "log"
        command = f"pretrain embedded:digits --out {out} --steps 20 --workers 0 {tiny} --log-every 1"
        assert run(command, log, count) == [0] * count, log.read_text()
        losses[count] = [
            line[name] for line in metrics(out) for name in ("loss", "grad_norm", "held_out_loss") if name in line
        ]
        assert len(losses[count]) == 20 + 20 + 3
        assert losses[count] == pytest.approx(losses[1], rel=1e-6), count


@pytest.mark.parametrize("kind", ["random", "block"])
def test_any_number_of_processes_sees_the_same_samples_and_masks(digits_config, tmp_path, kind):
    config = digits_config(tmp_path / "run")
    preprocessing = Preprocessing(
        channels=1, value_range=(0.0, 255.0), mean=(0.5,), std=(0.5,), image_size=(8, 8), background=1.0, dtype="uint8"
    )
    stream = Stream(open_training_data(config).train, preprocessing, Augmentation(kind="crop"), 7, 2)
    masks = MaskSampler(kind, 0.75, (4, 4))

    def seen(processes):
        loader = training_loader(
            stream,
            steps=range(3, 6),
            batch_size=18,
            share=processes.share(18),
            micro_batch_size=4,
            workers=0,
            pin_memory=False,
        )
        parts = list(iterate_batches(loader))
        per_step = len(parts) // 3
        for step in range(3):
            of_step = parts[step * per_step : (step + 1) * per_step]
            keys, images = (torch.cat([getattr(part, name) for part in of_step]) for name in ("keys", "images"))
            yield keys, images, masks(keys).keep_ids

    whole = list(seen(Processes()))
    for count in (2, 3, 4):
        shares = [list(seen(Processes(rank=rank, count=count))) for rank in range(count)]
        for step, wanted in enumerate(whole):
            for values, join_processes in zip(
                wanted, zip(*(share[step] for share in shares), strict=True), strict=True
            ):
                assert torch.equal(values, torch.cat(join_processes))


def test_shares_are_disjoint_complete_and_even():
    for count, batch_size in itertools.product(range(1, 9), range(1, 40)):
        shares = [Processes(rank=rank, count=count).share(batch_size) for rank in range(count)]
        assert [sample for share in shares for sample in share] == list(range(batch_size))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.slow
def test_more_processes_than_images_in_a_batch_are_refused(tmp_path):
    log = tmp_path / "log"
    tiny = TINY.replace("--batch-size 16", "--batch-size 1")
    codes = run(f"pretrain embedded:digits --out {tmp_path / 'run'} --steps 2 --workers 0 {tiny}", log, 2)
    assert codes == [2, 2]
    assert "--batch-size 1 for 2 processes: give at least one each" in log.read_text()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_dead_process_takes_the_others_with_it(tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    processes = start(arguments(out, 2, steps=100_000), log, 2)
    assert wait_for_step(out, 6, processes), log.read_text()
    before = time.monotonic()
    send(processes[1:], signal.SIGKILL)
    assert wait(processes, timeout=60) == [1, -signal.SIGKILL], log.read_text()
    assert time.monotonic() - before < 60
    assert "Traceback" in log.read_text()
    assert summary_of(out)["status"] == "failed"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds torchrun's children in /proc")
def test_torchrun_starts_a_dead_process_again(tmp_path, uninterrupted):
    out = tmp_path / "run"
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1 -m openmae"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*torchrun.split(), *arguments(out, 0).split()], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while not (out / "checkpoints" / "step-00000005").exists() and time.monotonic() < deadline:
                time.sleep(0.002)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)
            assert process.wait(timeout=60) == 0, (tmp_path / "log").read_text()
        finally:
            process.kill()
    assert "resumed at step" in (tmp_path / "log").read_text()
    same_training_state(uninterrupted(2), out, STEPS)
    assert untimed(metrics(uninterrupted(2))) == untimed(metrics(out))


# --- data that changes, signals at bad moments ---


def test_files_that_vanish_while_training_are_counted_and_the_run_goes_on(
    digits_config, gradients, tmp_path, monkeypatch
):
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(gradients, data)
    config = gradients_config(digits_config, data, out, max_bad=0.2)
    trained_on = open_training_data(config).train
    gone = {trained_on.name(0), trained_on.name(7)}
    add = Progress.add

    def add_and_delete(self, *arguments):
        add(self, *arguments)
        for name in gone:
            (data / name).unlink(missing_ok=True)

    monkeypatch.setattr(Progress, "add", add_and_delete)
    summary = pretrain(config)
    assert (summary["status"], summary["bad_inputs"]) == ("complete", 2)
    lines = read_lines(out / "quarantine.jsonl")
    assert {line["name"]: line["reason"] for line in lines} == dict.fromkeys(gone, "No such file or directory")
    config = gradients_config(digits_config, data, out, max_bad=0.2, resume="auto", steps=14)
    before = snapshot(out)
    with pytest.raises(RequestError, match="files were added, removed or changed"):
        pretrain(config)
    assert snapshot(out) == before
    for name in gone:  # as the message says: restored, it goes on
        shutil.copy(gradients / name, data / name)
    gone.clear()
    assert pretrain(config)["step"] == 14


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_reader_that_hangs_is_said_and_a_stop_is_obeyed(tmp_path, count):
    """Well before the 300 seconds after which it is given up; the run is saved where it stands."""
    out, log = tmp_path / "run", tmp_path / "log"
    command = f"pretrain embedded:digits --out {out} --steps 20 --workers 1 {TINY} --save-every 1000"
    processes = start(command, log, count, patch=functools.partial(break_reader, "hang", 300))
    deadline = time.monotonic() + 60
    while "waiting    for the readers' next batch: 5 s so far" not in said(log) and time.monotonic() < deadline:
        time.sleep(0.1)
    before = time.monotonic()
    send(processes, signal.SIGTERM)
    assert wait(processes, timeout=30) == [3] * count, said(log)
    assert time.monotonic() - before < 10
    assert re.search(r"SIGTERM at step \d+: saved, --resume auto continues", said(log))
    assert "Traceback" not in said(log)
    assert summary_of(out)["status"] == "interrupted"
    assert run(f"{command} --resume auto", log) == [0], said(log)


@pytest.mark.slow
def test_a_stop_while_readers_start_is_obeyed_and_leaves_no_traceback(tmp_path):
    """The whole group is signalled, as by Ctrl-C, at moments around their start; a reader that hangs is among them."""
    ready = "writing to"
    for number, delay in enumerate((0.0, 0.01, 0.02, 0.04, 0.08)):
        out, log = tmp_path / f"run-{number}", tmp_path / f"log-{number}"
        command = f"pretrain embedded:digits --out {out} --steps 100000 --workers 4 {TINY}"
        processes = start(command, log, patch=start_a_group_and_hang)
        deadline = time.monotonic() + 60
        while ready not in said(log) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delay)
        before = time.monotonic()
        os.killpg(processes[0].pid, signal.SIGTERM)
        assert wait(processes, timeout=30) == [3], said(log)
        assert time.monotonic() - before < 12
        assert "Traceback" not in said(log), said(log)
        assert said(log).count("openmae: stopping") == 1


@pytest.mark.parametrize("images_before", [3, 22])
def test_a_signal_while_an_image_is_decoded_makes_it_no_bad_image(
    digits_config, gradients, tmp_path, monkeypatch, images_before
):
    """Of 20 images to train on and 4 held out: in the first look, and when the held-out ones are read."""
    real, counter = folder_module.decode, itertools.count()
    from openmae.data.decoding import decode as decode_module

    def read_and_signal(*arguments, **options):
        if next(counter) == images_before:
            os.kill(os.getpid(), signal.SIGTERM)
        return real_pillow(*arguments, **options)

    assert real is decode_module.decode
    real_pillow = decode_module.read_with_pillow
    monkeypatch.setattr(decode_module, "read_with_pillow", read_and_signal)
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match="SIGTERM before the first step"):
        pretrain(gradients_config(digits_config, gradients, out))
    assert out.exists() == (images_before == 22)
    assert not (out / "quarantine.jsonl").exists()
    assert not (out / "checkpoints").exists()
