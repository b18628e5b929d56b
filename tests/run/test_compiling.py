"""Compiling: said before, checked after, left out of the pace; a signal meanwhile stops the run, saved."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from openmae.benchmarks.ours import make_ours, pretrain_plan_for
from openmae.errors import Interrupted
from openmae.machine.parallel import Processes
from openmae.machine.signals import StopRequest
from openmae.run import step_model
from openmae.run.step_model import StepModel
from openmae.tasks.pretrain import pretrain as task
from openmae.tasks.pretrain.pretrain import pretrain

from ..processes import TINY, said, start, wait
from ..sabotage import compile_without_a_compiler
from ..shared import metrics, pixel_config, same_training_state, untimed

CPU = torch.device("cpu")


class Wrapped(nn.Module):
    """What stands for a compiled model: it computes as the model does, after `action`."""

    def __init__(self, model: nn.Module, action=lambda: None) -> None:
        super().__init__()
        self.model, self.action = model, action

    def forward(self, *arguments):
        self.action()
        return self.model(*arguments)


@pytest.fixture
def compile_as(monkeypatch):
    """`compile_as(function)`: what torch.compile makes of a model, without a compiler."""
    monkeypatch.setattr("openmae.machine.compiler.start_processes", lambda: None)
    return lambda function: monkeypatch.setattr(torch, "compile", lambda model, **options: function(model))


def wrong_gradient(name):
    """A compiler that doubles one parameter's gradient, and nothing else."""

    def compiled(model):
        wrapped, parameter = Wrapped(model), dict(model.named_parameters())[name]

        def doubled(gradient):
            return 2 * gradient if wrapped.is_running else gradient

        wrapped.is_running = False

        def action():
            wrapped.is_running = True

        wrapped.action = action
        parameter.register_hook(doubled)
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(wrapped, "is_running", False))
        return wrapped

    return compiled


def test_a_run_says_that_it_compiles_and_what_the_check_found(digits_config, pixel_run, tmp_path, compile_as, capsys):
    compile_as(Wrapped)
    pretrain(pixel_config(digits_config, tmp_path / "run", compile=True))
    said = capsys.readouterr().out
    assert said.index("compiling  the step, about a minute on a GPU") < said.index("compiled   in 0 s, checked in 0 s")
    found = re.search(r"gradients differ from eager float32 ones by (\S+)$", said, re.MULTILINE)
    assert float(found[1]) < 1e-6  # the reference is taken in pieces: 1e-7
    same_training_state(pixel_run, tmp_path / "run")  # nothing was trained meanwhile
    assert untimed(metrics(pixel_run)) == untimed(metrics(tmp_path / "run"))


@pytest.mark.parametrize("name", ["encoder.blocks.0.norm1.weight", "decoder.norm.bias", "encoder.cls_token"])
def test_wrong_gradients_are_noticed_and_the_run_goes_on_eagerly(
    digits_config, pixel_run, tmp_path, compile_as, capsys, name
):
    compile_as(wrong_gradient(name))
    pretrain(pixel_config(digits_config, tmp_path / "run", compile=True))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("compiled"))
    assert re.search(rf"those of {re.escape(name)} by \S+ times the limit: going on without compiling$", line), line
    same_training_state(pixel_run, tmp_path / "run")


def test_unnoticed_they_would_have_changed_the_run(digits_config, pixel_run, tmp_path, compile_as, monkeypatch):
    compile_as(wrong_gradient("encoder.blocks.0.norm1.weight"))
    monkeypatch.setattr(StepModel, "_check", lambda *arguments: None)
    pretrain(pixel_config(digits_config, tmp_path / "run", compile=True))
    with pytest.raises(AssertionError):
        same_training_state(pixel_run, tmp_path / "run")


def test_bf16_is_held_against_float32_in_pieces(compile_as, monkeypatch):
    """By CPU emulation. Measured: compiled and eager the same, 0.9 % from float32."""
    compile_as(Wrapped)
    ours = make_ours(pretrain_plan_for("tiny", 8, CPU, "bf16", micro_batch_size=5), CPU)
    failed, real = [], step_model.gradient_differences

    def little_memory(*arguments):
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments)

    monkeypatch.setattr(step_model, "gradient_differences", little_memory)
    model = StepModel(ours.model, Processes(), CPU, is_compiled=True, precision="bf16", loss_fn=task.loss_fn)
    with StopRequest() as stop:
        line = model.warm_up(next(ours.inputs), stop)
    found = re.search(r"gradients differ from eager float32 ones by (\S+) \(eager ones by (\S+)\)$", line)
    assert found is not None, line
    errors = [float(value) for value in found.groups()]
    assert 1e-3 < errors[1] < 3e-2
    assert errors[0] == pytest.approx(errors[1], rel=0.5)
    assert failed
    assert all(parameter.grad is None for parameter in ours.model.parameters())


def test_each_size_of_micro_batch_is_compiled_before_the_first_step(compile_as):
    ours = make_ours(pretrain_plan_for("tiny", 8, CPU, "fp32", micro_batch_size=3), CPU)
    assert step_model.first_of_each_size(next(ours.inputs)) == [0, 2]


def test_a_signal_while_compiling_stops_before_the_first_step(digits_config, pixel_run, tmp_path, compile_as, capsys):
    out = tmp_path / "run"
    compile_as(lambda model: Wrapped(model, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(Interrupted, match="SIGTERM at step 0: saved, --resume auto continues"):
        pretrain(pixel_config(digits_config, out, compile=True, resume="auto"))
    assert (out / "checkpoints" / "step-00000000").is_dir()
    assert "checked" not in capsys.readouterr().out
    pretrain(pixel_config(digits_config, out, compile=False, resume="auto"))
    same_training_state(pixel_run, out)
    assert untimed(metrics(pixel_run)) == untimed(metrics(out))


def test_a_compiler_that_a_signal_breaks_is_no_fault(digits_config, tmp_path, compile_as):
    """`timeout` and Slurm signal its processes, too."""

    def end():
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("the compiler's process is gone")

    compile_as(lambda model: Wrapped(model, end))
    with pytest.raises(Interrupted, match="SIGTERM at step 0: saved"):
        pretrain(pixel_config(digits_config, tmp_path / "run", compile=True))


def test_the_time_of_compiling_is_not_the_steps(digits_config, tmp_path, compile_as, monkeypatch):
    """Images a second of the first line, without compiling as with it."""
    slept = []

    def sleep_once():
        if not slept:
            slept.append(time.sleep(1.5))

    compile_as(lambda model: Wrapped(model, sleep_once))
    pretrain(pixel_config(digits_config, tmp_path / "run", compile=True, log_every=1))
    first = metrics(tmp_path / "run")[0]
    assert slept
    assert first["step"] == 1
    assert first["images_per_second"] > 2 * 16 / 1.5


@pytest.mark.slow  # capturing takes seconds
def test_two_processes_compile_and_agree(tmp_path):
    """Wrapped before it is compiled, as DDP wants it; the same weights as without."""
    for name, flags in (("plain", "--compile False"), ("compiled", "--compile True")):
        command = f"pretrain embedded:digits --out {tmp_path / name} --steps 6 --workers 0 {TINY} {flags}"
        processes = start(command, tmp_path / f"{name}.log", 2, patch=compile_without_a_compiler)
        assert wait(processes, timeout=100) == [0, 0], said(tmp_path / f"{name}.log")
    assert "checked in" in said(tmp_path / "compiled.log")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "compiled"))
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=2e-6)  # measured: 1.2e-7


def test_a_run_remembers_that_compiling_was_wrong(digits_config, tmp_path, compile_as, capsys):
    compile_as(wrong_gradient("decoder.norm.bias"))
    pretrain(pixel_config(digits_config, tmp_path / "run", compile=True, steps=4))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["compile"] is False
    capsys.readouterr()
    pretrain(pixel_config(digits_config, tmp_path / "run", steps=8, resume="auto"))
    assert "compiling" not in capsys.readouterr().out


COMPILES = """
import os, signal, sys, time
from openmae.machine import compiler
from openmae.machine.signals import StopRequest
with StopRequest() as stop:
    stop.defer()
    compiler.start_processes()
    from torch._inductor.async_compile import AsyncCompile
    pool = AsyncCompile.process_pool()
    jobs = [pool.submit(time.sleep, 600) for _ in range(2)]
    for job in range(200):
        if len(compiler._children_of(pool.process.pid)) >= 2:
            break
        time.sleep(0.05)
    print(pool.process.pid, *compiler._children_of(pool.process.pid), flush=True)
    if sys.argv[1] == "wait":
        jobs[0].result()
"""


def alive(processes):
    found = []
    for process in processes:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        found += [process] if state != "Z" else []
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the compiler's processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_compilers_processes_outlive_a_signal_and_end_with_a_second_ctrl_c(number):
    """The whole group is signalled, as by Ctrl-C or `timeout`, and nothing of theirs is printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMPILES, "wait"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "2"},
    )  # fmt: skip
    try:
        children = process.stdout.readline().split()
        assert len(children) >= 3
        os.killpg(process.pid, number)
        time.sleep(1)
        assert process.poll() is None
        assert alive(children) == children
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130
        deadline = time.monotonic() + 10
        while alive(children) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive(children)
        assert [line for line in said.splitlines() if not line.startswith("openmae: stopping")] == []
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the compiler's processes in /proc")
def test_they_do_not_hold_up_the_end():
    """Their parent would wait ten seconds for those that do not listen."""
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    process = subprocess.Popen(
        [sys.executable, "-c", COMPILES, "go"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    children = process.stdout.readline().split()
    before = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert time.monotonic() - before < 8
    assert not alive(children)
    assert said == ""
