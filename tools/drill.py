"""The long half of what docs/reliability.md promises, with processes that are really killed: `make drill`.

Each function is one point and counts which checks passed. The table at the end says n of n; exit 1 when one is short.
`--quick` takes a few of everything, `--only 2 5` some points, `--json FILE` keeps the table.
"""

import argparse
import contextlib
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tally import Tally, table  # noqa: E402
from tests import hostile, sabotage  # noqa: E402
from tests.processes import (  # noqa: E402
    TINY,
    ends,
    last_step,
    lines_of,
    resources,
    run,
    said,
    same,
    send,
    start,
    summary_of,
    wait,
    wait_for_step,
)

from openmae.training import checkpoint as saving  # noqa: E402
from openmae.training.telemetry import read_lines  # noqa: E402

STEPS = 60


@dataclass(frozen=True)
class Size:
    """How many repetitions of each test."""

    kill_points: int = 10
    save_kills: int = 200
    damages: int = 20
    leak_steps: int = 2000
    warm_up: int = 500


QUICK = Size(kill_points=1, save_kills=6, damages=3, leak_steps=300, warm_up=300)


def pretrain(
    out: Path, workers: int = 0, steps: int = STEPS, data: str = "embedded:digits", more: str = ""
) -> list[str]:
    arguments = f"--out {out} --steps {steps} --workers {workers} --resume auto {TINY} --micro-batch-size 8 {more}"
    return ["pretrain", data, *arguments.split()]


# --- the points ---


def exact_resume(tally: Tally, work: Path, size: Size) -> None:
    rng, log = random.Random(1), work / "log"
    losses: dict[int, list[float]] = {}
    for count in (1, 2, 3, 4):
        whole = work / f"whole-{count}"
        tally.check("uninterrupted", run(pretrain(whole), log, count) == [0] * count, said(log))
        losses[count] = [line["loss"] for line in lines_of(whole) if "loss" in line and line["step"] <= 20]
        near = [abs(a - b) <= 1e-6 * abs(b) for a, b in zip(losses[count], losses[1], strict=True)]
        tally.check("1, 2, 3, 4 processes: losses within 1e-6 for 20 steps", all(near), losses)
    for workers, count, point in itertools.product((0, 2), (1, 2), range(size.kill_points)):
        out = work / f"{workers}-{count}-{point}"
        processes = start(pretrain(out, workers), log, count)
        reached = wait_for_step(out, rng.randrange(2, STEPS - 8), processes)
        time.sleep(rng.uniform(0, 0.05))
        number = signal.SIGKILL if point % 2 == 0 else rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
        send(processes, number)
        wanted = [-signal.SIGKILL if number == signal.SIGKILL else 3] * count
        stopped = wait(processes)
        resumed = run(pretrain(out, 2 - workers if point % 3 == 2 else workers), log, count)
        equal = same(work / f"whole-{count}", out)
        passed = reached and stopped == wanted and resumed == [0] * count and equal
        detail = f"{number.name}: {reached} {stopped} {resumed} {equal} {said(log)}"
        tally.check(f"kill points, {workers} readers x {count} processes", passed, detail)
        shutil.rmtree(out)


def saves(tally: Tally, work: Path, size: Size) -> None:
    rng, log, out = random.Random(2), work / "log", work / "run"
    in_save = 0
    for kill in range(size.save_kills):
        patch = partial(sabotage.kill_in_save, rng.randrange(1, 4), rng.random())
        code = ends(pretrain(out, steps=10**6, more="--save-every 1 --log-every 1"), log, patch)
        newest, damaged = saving.newest_checkpoint(out)
        step = newest.state["step"] if newest else 0
        loads = not damaged and (newest is None or bool(saving.read_model(newest.folder / saving.MODEL)))
        in_save += any((out / "checkpoints").glob(".partial-*"))
        passed = code == -signal.SIGKILL and loads and last_step(out) - step <= 1 and (newest or kill == 0)
        tally.check(
            "killed during a save: loads, one interval lost at most", bool(passed), (code, damaged, step, said(log))
        )
    print(f"    of {size.save_kills} kills {in_save} left an unfinished folder", flush=True)

    whole = work / "whole"
    tally.check("uninterrupted", ends(pretrain(whole), log) == 0, said(log))
    names = [path.name for path in sorted((whole / "checkpoints" / f"step-{STEPS:08d}").iterdir())]
    kinds = ["bit flipped"] * size.damages + ["truncated"] * size.damages + ["missing"] * 5
    for number, kind in enumerate(kinds):
        copy = work / "copy"
        shutil.copytree(whole, copy)
        path = (
            copy / "checkpoints" / f"step-{STEPS:08d}" / (rng.choice(names) if kind != "missing" else names[number % 4])
        )
        content = bytearray(path.read_bytes())
        if kind == "missing":
            path.unlink()
        elif kind == "truncated":
            path.write_bytes(content[: rng.randrange(len(content))])
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
        found, damaged = saving.newest_checkpoint(copy)
        used = found is not None and found.state["step"] == STEPS - 5
        named = len(damaged) == 1 and damaged[0].startswith(f"step-{STEPS:08d} is damaged")
        tally.check(f"{kind}: named, the one before is used", used and named, (path.name, damaged))
        if number % size.damages == 0:
            tally.check("damaged: the run goes on from the one before", ends(pretrain(copy), log) == 0, said(log))
            tally.check("and ends with the same bytes", same(whole, copy))
        shutil.rmtree(copy)


def signals(tally: Tally, work: Path, size: Size) -> None:
    whole, log = work / "whole", work / "log"
    tally.check("uninterrupted", ends(pretrain(whole), log) == 0, said(log))
    names = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    for where, number in itertools.product(("set-up", "training", "evaluation", "save"), names):
        out = work / f"{where}-{number}"
        code = ends(pretrain(out), log, partial(sabotage.signal_in, where, number))
        status = summary_of(out).get("status")
        tally.check(
            f"in {where}: exit 3", code == 3 and status == (None if where == "set-up" else "interrupted"), said(log)
        )
        tally.check("resumed to the same bytes", ends(pretrain(out), log) == 0 and same(whole, out), said(log))
    for first in (signal.SIGINT, signal.SIGTERM):
        own = work / f"log-{first}"
        processes = start(pretrain(work / f"hung-{first}"), own, patch=sabotage.hang_in_save)
        wait_for_step(work / f"hung-{first}", 4, processes)
        send(processes, first)
        while "stopping as soon as this can be saved" not in said(own) and processes[0].is_alive():
            time.sleep(0.01)
        before = time.monotonic()
        send(processes, signal.SIGINT)
        left = wait(processes, 20) == [130] and time.monotonic() - before < 5
        tally.check("a second Ctrl-C leaves a hung save at once", left, said(own))


def disk(tally: Tally, work: Path, size: Size) -> None:
    tmpfs, log = work / "tmpfs", work / "log"
    tmpfs.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", tmpfs], capture_output=True).returncode:
        tally.skipped.append("a tmpfs of 30 MB (mounting is not permitted here)")
        return
    try:
        large = "--width 192 --depth 4 --save-every 5"  # 23 MB a checkpoint: three will not fit
        code = ends(pretrain(tmpfs / "large", more=large), log)
        tally.check("too small: refused before anything is written", code == 1 and not list(tmpfs.iterdir()), said(log))
        tally.check("and says what is needed", "for checkpoints and" in said(log), said(log))
        out, ballast = tmpfs / "run", tmpfs / "ballast"
        middling = "--width 96 --depth 4"  # 6 MB
        processes = start(pretrain(out, steps=100_000, more=middling), log)
        wait_for_step(out, 11, processes)
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        tally.check("full while training: exit 1", wait(processes) == [1], said(log))
        tally.check("and says so in one line", "the disk is full: free some space" in said(log), said(log))
        newest, damaged = saving.newest_checkpoint(out)
        tally.check("the last good checkpoint is whole", newest is not None and not damaged, damaged)
        ballast.unlink()
        steps = last_step(out) + 20
        shutil.copytree(out, work / "moved")
        code = ends(
            pretrain(work / "moved", steps=100_000, more=middling),
            log,
            partial(sabotage.signal_in, "training", 15),
        )
        tally.check("with space again it goes on", code == 3 and "resumed at step" in said(log), (steps, said(log)))
        shutil.rmtree(out)
        subprocess.run(["mount", "-o", "remount,ro", tmpfs], check=True)
        code = ends(pretrain(tmpfs / "locked"), work / "log-ro")
        line = said(work / "log-ro").splitlines()[-1]
        tally.check("a read-only folder: one clear line", code in (1, 2) and line.startswith("openmae: "), line)
    finally:
        subprocess.run(["umount", "--lazy", tmpfs], check=False)


def numbers(tally: Tally, work: Path, size: Size) -> None:
    whole, log = work / "whole", work / "log"
    tally.check("uninterrupted", ends(pretrain(whole), log) == 0, said(log))
    for value in (float("nan"), float("inf")):
        out = work / f"once-{value}"
        code = ends(pretrain(out), log, partial(sabotage.spoil_images, 15, 16, value))  # both halves of step 8
        summary = summary_of(out)
        tally.check("one step: skipped and counted", (code, summary.get("skipped_steps")) == (0, 1), said(log))
        out = work / f"often-{value}"
        code = ends(pretrain(out), log, partial(sabotage.spoil_images, 15, 40, value))
        tally.check("ten in a row: rolled back", code == 0 and summary_of(out).get("rollbacks", 0) >= 1, said(log))
        out = work / f"always-{value}"
        code = ends(pretrain(out), log, partial(sabotage.spoil_images, 15, 10**9, value))
        named = "after 3 roll-backs" in said(log) and "the last batch was" in said(log)
        tally.check("always: stops after three roll-backs, naming the batch", code == 1 and named, said(log))
        for path in work.glob("*/checkpoints/*/model.safetensors"):
            tally.check("saved weights are finite", all(v.isfinite().all() for v in load_file(path).values()), path)
    code = ends(pretrain(work / "weights"), log, partial(sabotage.spoil_weights, 8))
    tally.check("spoilt weights: back, and the same bytes", code == 0 and same(whole, work / "weights"), said(log))


def inputs(tally: Tally, work: Path, size: Size) -> None:
    log = work / "log"
    for workers in (0, 2):
        folder, out = work / f"images-{workers}", work / f"run-{workers}"
        folder.mkdir()
        bad, good, left_out = hostile.hostile_images(folder)
        arguments = pretrain(out, workers, steps=16, data=str(folder), more="--held-out 0 --max-bad 1 --channels 3")
        own = work / f"log-{workers}"
        code = ends(arguments, own, timeout=120)
        tally.check("a folder of them: no crash, no hang", code == 0, said(own))
        quarantined = {line["name"] for line in read_lines(out / "quarantine.jsonl")}
        for name in bad:
            tally.check("each bad image counted", name in quarantined, name)
        for name in good:
            tally.check("each good image used", name not in quarantined, name)
        tally.check("the summary counts them", summary_of(out).get("bad_inputs") == len(bad), summary_of(out))
        tally.check("what is no file is left out by name", said(own).count("not a regular file") >= 1, left_out)
    tables = work / "tables"
    tables.mkdir()
    refused, (usable, bad_rows) = hostile.broken_tables(tables)
    for path in refused:
        own = work / f"log-{path.name}"
        code = ends(pretrain(work / path.stem, steps=2, data=str(path), more="--max-bad 1"), own)
        lines = [line for line in said(own).splitlines() if line.startswith("openmae: ")]
        tally.check("broken parquet: refused in one line", code == 2 and len(lines) == 1, (path.name, code, said(own)))
    out = work / "usable"
    code = ends(pretrain(out, steps=12, data=str(usable), more="--held-out 0 --max-bad 1"), log)
    tally.check("bad rows: counted", (code, summary_of(out).get("bad_inputs")) == (0, bad_rows), said(log))


def processes_die(tally: Tally, work: Path, size: Size) -> None:
    for count in (2, 4):
        out, log = work / str(count), work / f"log-{count}"
        processes = start(pretrain(out, 2 if count == 2 else 0, steps=10**6), log, count)
        wait_for_step(out, 6, processes)
        send(processes[-1:], signal.SIGKILL)
        codes = wait(processes, 60)
        gone = None not in codes and 0 not in codes
        tally.check(
            "one killed: all gone in 60 s, with a traceback", gone and "Traceback" in said(log), (codes, said(log))
        )
    log, out = work / "log-torchrun", work / "torchrun"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with log.open("w") as file:
        command = [*torchrun, "--max-restarts", "1", "-m", "openmae", *pretrain(out)]
        process = subprocess.Popen(command, stdout=file, stderr=file)
        while not (out / "checkpoints" / "step-00000005").exists() and process.poll() is None:
            time.sleep(0.002)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        done = process.wait(120) == 0 and "resumed at step" in said(log)
    run(pretrain(work / "whole"), work / "log", 2)
    tally.check("torchrun --max-restarts: finishes with the same bytes", done and same(work / "whole", out), said(log))
    for what in ("hang", "die"):
        log = work / f"log-{what}"
        code = ends(pretrain(work / what, 2), log, partial(sabotage.break_reader, what))
        tally.check(
            f"a reader process that {what}s ends the run", code == 1 and "a reader process" in said(log), said(log)
        )


def memory(tally: Tally, work: Path, size: Size) -> None:
    log = work / "log"
    ends(pretrain(work / "whole"), log)
    whole = [line["loss"] for line in lines_of(work / "whole") if "loss" in line]
    for most in (4, 2, 1):
        out = work / str(most)
        code = ends(pretrain(out), log, partial(sabotage.too_large, most, 20))
        losses = [line["loss"] for line in lines_of(out) if "loss" in line]
        near = len(losses) == len(whole) and all(
            abs(a - b) <= 1e-5 * abs(b) for a, b in zip(losses, whole, strict=True)
        )
        tally.check("halved until it fits, the losses stay", code == 0 and near, (code, said(log)))
    code = ends(pretrain(work / "never"), log, partial(sabotage.too_large, 0, 1))
    tally.check(
        "one image too large: says so", code == 1 and "out of memory with a single image" in said(log), said(log)
    )


def leaks(tally: Tally, work: Path, size: Size) -> None:
    for workers in (0, 2):
        out, log = work / str(workers), work / f"log-{workers}"
        steps = size.warm_up + size.leak_steps
        more = "--picture-every 100 --save-every 50 --evaluate-every 50"
        processes = start(pretrain(out, workers, steps=steps + 50, more=more), log)
        samples = []
        for step in (size.warm_up, size.warm_up + size.leak_steps):
            wait_for_step(out, step, processes, timeout=1200)
            taken = []
            for _ in range(20):
                taken.append(resources(processes[0].pid))
                time.sleep(0.01)
            samples.append([sorted(values)[len(values) // 2] for values in zip(*taken, strict=True)])
        (before, files), (after, files_after) = samples
        print(
            f"    {workers} readers: {before / 1e6:.1f} -> {after / 1e6:.1f} MB, {files} -> {files_after} files",
            flush=True,
        )
        tally.check(f"{size.leak_steps} steps: memory grows < 2 %", after < 1.02 * before, samples)
        tally.check("file descriptors stay", files == files_after, samples)
        tally.check("finished", wait(processes) == [0], said(log))


def properties(tally: Tally, work: Path, size: Size) -> None:
    files = ["tests/model/test_properties.py", "tests/data/test_randomness.py"]
    done = subprocess.run([sys.executable, "-m", "pytest", *files], cwd=ROOT, capture_output=True, text=True)
    tally.check("500 examples of each property", done.returncode == 0, done.stdout)


def malice(tally: Tally, work: Path, size: Size) -> None:
    trace, files = work / "executed", work / "files"
    files.mkdir()
    checkpoints, images, masks = hostile.malicious_files(files, trace)
    given = "--mask given --mask-file"
    attacks = [pretrain(work / "run", more=f"--init {path}") for path in checkpoints]
    attacks += [pretrain(work / "run", data=str(path.parent)) for path in images[:1]]
    attacks += [pretrain(work / "run", more=f"{given} {path}") for path in masks]
    attacks += [
        ["reconstruct", str(path), "--init", str(work / "model"), "--out", str(work / "a.png")] for path in images
    ]
    attacks += [
        ["reconstruct", str(images[0]), "--init", str(path), "--out", str(work / "a.png")] for path in checkpoints
    ]
    ends(pretrain(work / "model"), work / "log")
    for number, attack in enumerate(attacks):
        log = work / f"log-{number}"
        code = ends(attack, log)
        passed = code == 2 and not trace.exists() and "Traceback" not in said(log)
        tally.check("malicious files: refused, not executed", passed, (attack, code, trace.exists(), said(log)))
    pickle.loads(checkpoints[0].read_bytes())
    tally.check("loaded as pickles they would have been executed", trace.exists())


POINTS: dict[int, tuple[str, Callable[[Tally, Path, Size], None]]] = {
    1: ("exact resume", exact_resume),
    2: ("kill -9 during saves, damaged checkpoints", saves),
    3: ("signals", signals),
    4: ("full and read-only disks", disk),
    5: ("numbers that are not finite", numbers),
    6: ("bad inputs", inputs),
    7: ("dead processes", processes_die),
    8: ("out of memory", memory),
    9: ("leaks", leaks),
    10: ("properties", properties),
    11: ("security: 0 executions", malice),
}


def drill(size: Size, only: list[int], keep: Path | None) -> bool:
    tallies = []
    for number in only or POINTS:
        title, point = POINTS[number]
        print(f"{number:2}  {title} ...", flush=True)
        tally, before = Tally(f"{number} {title}"), time.monotonic()
        with tempfile.TemporaryDirectory(prefix="drill-") as folder:
            point(tally, Path(folder), size)
        tally.seconds = round(time.monotonic() - before, 1)
        tallies.append(tally)
    print(table(tallies))
    if keep is not None:
        keep.write_text(json.dumps([asdict(tally) for tally in tallies], indent=1) + "\n")
    return all(tally.has_passed for tally in tallies)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Kill, damage and starve real runs, and count what holds.")
    parser.add_argument("--quick", action="store_true", help="a few of everything")
    parser.add_argument("--only", type=int, nargs="+", choices=POINTS, default=[], help="these points")
    parser.add_argument("--json", type=Path, help="keep the table in this file")
    options = parser.parse_args()
    sys.exit(not drill(QUICK if options.quick else Size(), options.only, options.json))
