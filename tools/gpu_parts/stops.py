"""Stop signals to real runs: while they compile, train, save or read; then `--resume auto` to the end."""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from gpu_parts.commands import MODEL, TINY, check_finite
from gpu_parts.data import labelled
from gpu_parts.part import Context, Failed, Running, read_json, read_metrics, tail

INTERRUPTED = 3  # the exit code of a run that a signal stopped
POLL = 0.002
SAID_AFTER = 400  # characters of what a run says after the signal

# Large enough to compile for a while, small enough to train in milliseconds; no other part compiles its like.
COMPILED = "--image-size 32 --patch-size 4 --width 176 --depth 6 --num-heads 4 --decoder-width 96 --decoder-depth 3"
BASE = "--model base --image-size 224 --patch-size 16"
SAVED = {"gpu": "--model base --image-size 32 --patch-size 8", "cpu": MODEL}  # 1.3 GB a checkpoint
STEPS = 100

When = Callable[[Running, Path, Path], bool]


def while_compiling(context: Context) -> None:
    """SIGTERM after the line that says so: the run stops as soon as the compiler returns, saved."""
    settings = f"{COMPILED} --batch-size 16 --log-every 1 --save-every 10000 --workers 1 --compile True"
    if not context.is_gpu:
        settings = f"{TINY} --compile False --log-every 1 --save-every 10000"
    _stopped(context, f"{labelled(context.work)} {settings}", _compiles, limit=120)
    if context.is_gpu and context.figures["stopped_at_step"] > 2:
        raise Failed(f"at step {context.figures['stopped_at_step']}: it was no longer compiling, or trained on")


def while_training(context: Context) -> None:
    settings = f"{TINY} --compile False --log-every 1 --save-every 10000"
    _stopped(context, f"{labelled(context.work)} {settings}", _at_step(5), limit=10)


def while_saving(context: Context) -> None:
    """SIGTERM as soon as a checkpoint is half-written: it is finished, and the run ends saved."""
    settings = SAVED["gpu" if context.is_gpu else "cpu"]
    steps = 12 if context.is_gpu else STEPS
    asked = f"{settings} --batch-size 16 --log-every 1 --save-every 4 --keep 1 --workers 1 --compile False"
    _stopped(context, f"{labelled(context.work)} {asked}", _saves, limit=90, steps=steps)
    context.note(checkpoint_gb=_size(context.here / "run" / "checkpoints") / 1e9)


def while_reading(context: Context) -> None:
    """A raw pack whose readers are ahead, crops on the device, compiled: it ends within 30 s of SIGTERM."""
    pack = context.work / "parts" / "pack" / "raw"
    settings = f"{BASE} --batch-size 512 --compile True" if context.is_gpu else f"{TINY} --compile False"
    settings += " --crop-on device --log-every 1 --save-every 10000"
    _stopped(context, f"{pack} {settings}", _at_step(6), limit=30, steps=60)


def twice(context: Context) -> None:
    """Ctrl-C and Ctrl-C again while compiling: it leaves at once with its helpers, which print nothing."""
    log, run = context.here / "run.log", context.here / "run"
    settings = f"{COMPILED.replace('176', '160')} --batch-size 16 --workers 1 --compile True --steps 1000"
    if not context.is_gpu:
        settings = f"{TINY} --compile False --steps 5000"
    process = _started(context, f"{labelled(context.work)} {settings}", run, log)
    _await(_compiles, process, run, log)
    said = len(log.read_bytes())
    process.send_signal(signal.SIGINT)
    while b"a second Ctrl-C leaves at once" not in log.read_bytes()[said:] and process.poll() is None:
        time.sleep(POLL)
    time.sleep(0.5 if context.is_gpu else 0.0)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    # A tiny model's run may have ended in between, as the first signal asked for.
    context.completed(process, log, limit=5, codes=(130,) if context.is_gpu else (130, INTERRUPTED, -signal.SIGINT))
    time.sleep(1.5)  # for what helpers would say
    after = log.read_bytes()[said:].decode(errors="replace").strip()
    context.note(seconds_to_exit=time.monotonic() - began - 1.5, then_said=after[-SAID_AFTER:])
    if len(after.splitlines()) > 3:
        raise Failed(f"{len(after.splitlines())} lines were printed after the first signal: {after[:1500]}")


def _stopped(context: Context, arguments: str, when: When, limit: float, steps: int = STEPS) -> None:
    """Start a run, stop it at that time, let it end within `limit` seconds, and resume it to its last step."""
    log, run = context.here / "run.log", context.here / "run"
    arguments += f" --steps {steps}"
    process = _started(context, arguments, run, log)
    waited = _await(when, process, run, log)
    before, said = _last_step(run), len(log.read_bytes())
    process.send_signal(signal.SIGTERM)
    try:
        seconds = context.completed(process, log, limit=max(limit, 60), codes=(INTERRUPTED,))
    finally:
        after = log.read_bytes()[said:].decode(errors="replace")
        said_then = " | ".join(line.strip() for line in after.split("\n") if line.strip())
        context.note(signal_after=waited, at_step=before, then_said=said_then[-SAID_AFTER:])
    if (found := re.search(r"at step ([\d,]+): saved, --resume auto continues", after)) is None:
        raise Failed(f"exit {INTERRUPTED} without saying where it was saved: {tail(log)}")
    stopped_at = int(found[1].replace(",", ""))
    context.note(seconds_to_exit=seconds, stopped_at_step=stopped_at)
    if read_json(run / "summary.json").get("status") != "interrupted":
        raise Failed("summary.json does not say interrupted")

    log = context.here / "resumed.log"
    began = time.monotonic()
    context.completed(_started(context, f"{arguments} --resume auto", run, log), log)
    context.note(resumed_seconds=time.monotonic() - began)
    if stopped_at and f"resumed at step {stopped_at:,}" not in log.read_text(errors="replace"):
        raise Failed(f"not resumed at step {stopped_at}: {tail(log)}")
    summary, lines = read_json(run / "summary.json"), read_metrics(run)
    if (summary.get("status"), summary.get("step")) != ("complete", steps):
        raise Failed(f"resumed, summary.json says {summary.get('status')!r} at step {summary.get('step')}")
    check_finite(lines, "metrics.jsonl")
    logged = [line["step"] for line in lines if "lr" in line]
    if logged != list(range(1, steps + 1)):
        raise Failed(f"metrics.jsonl lacks steps or has them twice: {logged}")
    if seconds > limit:
        raise Failed(
            f"{seconds:.1f} s from SIGTERM to the end, not at most {limit:.0f}; meanwhile: {said_then[-1500:]}"
        )


def _started(context: Context, arguments: str, run: Path, log: Path) -> Running:
    # What is compiled here is compiled anew: no other part's cache helps.
    cold = {"TORCHINDUCTOR_CACHE_DIR": str(context.here / "inductor"), "TRITON_CACHE_DIR": str(context.here / "triton")}
    is_shared = "--model base" in arguments
    return context.openmae(f"pretrain {arguments} --out {run}", log, {} if is_shared else cold)


def _await(when: When, process: Running, run: Path, log: Path) -> float:
    """Wait until it is the time; return the seconds. Raises Failed where the run ended before."""
    began = time.monotonic()
    while not when(process, run, log):
        if process.poll() is not None:
            raise Failed(f"the run ended before it could be stopped: {tail(log)}")
        time.sleep(POLL)
    return time.monotonic() - began


def _compiles(process: Running, run: Path, log: Path) -> bool:
    """Whether a line says so, two seconds ago; without a compiler, whether the run has begun."""
    if "--compile False" in (said := log.read_text(errors="replace")):
        return "writing to" in said
    if re.search(r"(?i)\bcompiling\b", said.replace(str(run), "")) is None:
        if _last_step(run):
            raise Failed(f"it took a step, and no line said that it compiles: {tail(log)}")
        return False
    time.sleep(2.0)
    return True


def _saves(process: Running, run: Path, log: Path) -> bool:
    return any((run / "checkpoints").glob(".partial-*"))


def _at_step(step: int) -> When:
    return lambda process, run, log: _last_step(run) >= step


def _last_step(run: Path) -> int:
    return max((line["step"] for line in read_metrics(run)), default=0)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
