"""`openmae bench settings`: the best threads, micro-batch and readers on this machine, as flags to copy."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from openmae.benchmarks.epoch import pretrain_plan_of
from openmae.benchmarks.machine import synchronizer
from openmae.benchmarks.ours import CASE_NAMES, OurRun, batch_of, make_ours, pretrain_plan_for
from openmae.benchmarks.rows import Row, run_interleaved, timed
from openmae.config import BenchConfig
from openmae.data.sources.open import open_source

DATA = "embedded:photos"
STEPS = 4


def settings_rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """Rows for threads and micro-batches on a batch in memory, then for readers end to end; prints the best flags."""
    case = config.case[0] if config.case else "small"
    batch = batch_of(case, device, config.quick, config.batch_size)
    default_threads = torch.get_num_threads()
    threads = sorted({1, max(1, default_threads // 2), default_threads}) if device.type == "cpu" else [default_threads]
    sizes = sorted({batch, max(1, batch // 2), max(1, batch // 4)}, reverse=True)
    choices = [(t, size) for t in threads for size in sizes]
    wait = synchronizer(device)
    sides = []
    for t, size in choices:
        plan = pretrain_plan_for(case, batch, device, config.precision, micro_batch_size=size)
        ours = make_ours(plan, device)

        def measure(ours=ours, t=t) -> float:  # type: ignore[no-untyped-def]
            with num_threads(t):
                return timed(ours.step, wait)()

        sides.append(measure)
    times = run_interleaved(config.rounds, *sides)
    start = choices.index((default_threads, batch))
    rows = []
    for (t, size), seconds in zip(choices, times, strict=True):
        label = f"{CASE_NAMES[case]}, batch {batch}: {t} thread{'s' if t > 1 else ''}, micro-batch {size}"
        rows.append(Row(case=label, peer=f"{default_threads} threads, all at once", ours=seconds, theirs=times[start]))
    best = max(range(len(rows)), key=lambda i: rows[i].to_dict()["ratio"])
    best_threads, best_size = choices[best] if rows[best].to_dict()["low"] > 1.0 else (default_threads, batch)
    best_workers, more = _readers(config, device, best_threads, case)
    rows += more
    environment = f"OMP_NUM_THREADS={best_threads} " if best_threads != default_threads else ""
    print(
        f"best here: {environment}openmae pretrain … --batch-size {batch} --micro-batch-size {best_size} "
        f"--workers {best_workers}   (another setting is named only where it was faster in every round)",
        flush=True,
    )
    return rows


def _readers(config: BenchConfig, device: torch.device, threads: int, case: str) -> tuple[int, list[Row]]:
    """The best number of reader processes for photographs, which are decoded and cropped, and its rows."""
    source = open_source(DATA)
    assert source is not None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = sorted({0, 1, max(1, cores // 2)} | ({cores - 1} if device.type == "cuda" else set()))
    runs = []
    for workers in counts:
        small = BenchConfig(
            name="epoch",
            workers=workers,
            quick=config.quick,
            device=config.device,
            precision=config.precision,
            batch_size=config.batch_size,
        )
        runs.append(OurRun(pretrain_plan_of(source, DATA, small, device), source, device))
    wait = synchronizer(device)
    try:
        with num_threads(threads):
            times = run_interleaved(config.rounds, *(timed(lambda run=run: run.advance(STEPS), wait) for run in runs))  # type: ignore[misc]
    finally:
        for run in runs:
            run.batches.close()
    rows = [
        Row(case=f"{STEPS} steps from files, {workers} readers", peer=f"{counts[0]} readers", ours=t, theirs=times[0])
        for workers, t in zip(counts, times, strict=True)
    ]
    ratios = [row.to_dict()["ratio"] for row in rows]
    return counts[max(range(len(rows)), key=lambda i: ratios[i])], rows


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Inside the block torch uses so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
