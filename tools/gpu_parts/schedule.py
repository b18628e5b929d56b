"""Parts in order, side by side while cores and memory suffice, each given up at its limit and all at the deadline."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_parts.part import Part, tail
from gpu_parts.processes import Group
from gpu_parts.report import Report

TICK = 0.05
MEMORY_SHARE = 0.9  # of the GPU's, that parts side by side may plan to fill
LARGE = 10.0  # GB from which parts wait for each other in their order


class Schedule:
    """Which parts have run, and which may run now.

    Args:
        work: folder of data, runs and compiled code.
        deadline: of all parts, by `time.monotonic`.
    """

    def __init__(self, report: Report, work: Path, device: str, deadline: float) -> None:
        self.report, self.work, self.device, self.deadline = report, work, device, deadline
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.memory = float("inf")
        self.running: dict[str, tuple[Part, Group]] = {}

    def learn(self, figures: dict[str, Any]) -> None:
        """Set the limit on memory from what the machine part found."""
        if "gpu_memory_gb" in figures:
            self.memory = MEMORY_SHARE * figures["gpu_memory_gb"]

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def is_done(self, part: Part) -> bool:
        """Whether the part passed in an earlier call, and what it left is there for others."""
        return self.report.status(part.name) == "passed" and (self.work / "parts" / part.name).exists()

    def run(self, parts: Sequence[Part]) -> None:
        """Run all parts, or record why one was not run. However this ends, none of their processes is left."""
        waiting = list(parts)
        try:
            while waiting or self.running:
                for part, group in list(self.running.values()):
                    self._look_at(part, group)
                waiting = self._begin(waiting)
                time.sleep(TICK)
        finally:
            for part, group in self.running.values():
                group.kill()
                self._record(part, "no time", group.seconds, "stopped with all others")
            self.running.clear()

    def _begin(self, waiting: list[Part]) -> list[Part]:
        """Start the parts that can run; return those that still wait."""
        still, is_blocked, is_short = list[Part](), False, False
        names = {part.name for part in waiting} | self.running.keys()
        for part in waiting:
            short = [n for n in part.after if n not in names and self.report.status(n) != "passed"]
            if short:
                reason = f"needs {' and '.join(short)}: {', '.join(self.report.status(n) for n in short)}"
                is_late = all(self.report.status(n) == "no time" for n in short)
                self._record(part, "no time" if is_late else "skipped", 0.0, reason)
                continue
            if self.left < part.expected:
                reason = f"takes about {part.expected:.0f} s, {max(0, self.left):.0f} s were left"
                self._record(part, "no time", 0.0, reason)
                continue
            is_large = part.memory > LARGE
            put_off = is_blocked or (is_short and is_large) or names.intersection(part.after)
            if put_off or not self._has_room(part):
                is_blocked |= part.alone  # what measures is not put off by what comes behind it,
                is_short |= is_large  # and what needs much memory not by others that do
                still.append(part)
                continue
            self._start(part)
            is_blocked |= part.alone
        return still

    def _has_room(self, part: Part) -> bool:
        if not self.running:
            return True
        if part.alone or any(other.alone for other, _ in self.running.values()):
            return False
        cores = sum(other.cores for other, _ in self.running.values()) + part.cores
        memory = sum(other.memory for other, _ in self.running.values()) + part.memory
        return cores <= self.cores and memory <= self.memory

    def _start(self, part: Part) -> None:
        here = self.work / "parts" / part.name
        for stale in (self._result(part), self._log(part)):
            stale.unlink(missing_ok=True)
        shutil.rmtree(here, ignore_errors=True)  # of an earlier call
        words = [part.function, json.dumps(dict(part.options)), self.device, str(self.work), str(here)]
        cache = self.work / "compiled"
        hidden = {} if self.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
        environment = {
            **hidden,
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "TRITON_CACHE_DIR": str(cache / "triton"),
        }
        if not part.alone:
            environment |= {"OMP_NUM_THREADS": str(max(1, part.cores // 2))}
            environment |= {"TORCHINDUCTOR_COMPILE_THREADS": str(max(4, part.cores))}
        command = ["-m", "gpu_parts.worker", *words, str(self._result(part))]
        self.running[part.name] = part, Group(command, self._log(part), environment)

    def _look_at(self, part: Part, group: Group) -> None:
        """Record a part that has ended, or stop it where its time is up."""
        if (code := group.poll()) is not None:
            left_over = group.left_over()
            found = self._found(part)
            if code == 0 and "failed" not in found:
                message = f"left processes behind: {'; '.join(left_over)}" if left_over else ""
                self._record(part, "failed" if message else "passed", group.seconds, message)
            else:
                message = found.get("failed") or f"exit {code}: {tail(self._log(part))}"
                self._record(part, "failed", group.seconds, message)
        elif group.seconds > part.limit:
            group.kill()
            self._record(part, "failed", group.seconds, f"given up after {part.limit:.0f} s: {self._last_words(part)}")
        elif self.left <= 0:
            group.kill()
            self._record(part, "no time", group.seconds, "stopped at the end of the minutes")
        else:
            return
        del self.running[part.name]

    def _record(self, part: Part, status: str, seconds: float, message: str) -> None:
        found = self._found(part) if seconds else {}
        outputs = [self._log(part), *sorted((self.work / "parts" / part.name).glob("*.log"))] if seconds else []
        self.report.add(part, status, seconds, message, found, outputs)

    def _last_words(self, part: Part) -> str:
        """The last lines of the part's newest output."""
        logs = [self._log(part), *(self.work / "parts" / part.name).glob("*.log")]
        logs = [log for log in logs if log.exists() and log.stat().st_size]
        return tail(max(logs, key=lambda log: log.stat().st_mtime_ns)) if logs else "(no output)"

    def _found(self, part: Part) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._result(part).read_bytes())
        except (OSError, ValueError):
            return {}
        return found

    def _result(self, part: Part) -> Path:
        return self.work / "results" / f"{part.name}.json"

    def _log(self, part: Part) -> Path:
        return self.work / "results" / f"{part.name}.log"
