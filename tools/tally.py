"""The drill's score: of each promise, how often it was tested and how often it held."""

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass
class Tally:
    """How often each check of one point passed; failures are printed at once."""

    title: str
    parts: dict[str, list[int]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def check(self, name: str, passed: bool, detail: object = "") -> None:
        counts = self.parts.setdefault(name, [0, 0])
        counts[0] += bool(passed)
        counts[1] += 1
        if not passed:
            print(f"    FAILED {name}: {str(detail)[-1500:]}", flush=True)

    @property
    def has_passed(self) -> bool:
        return all(passed == count for passed, count in self.parts.values())


def table(tallies: Sequence[Tally]) -> str:
    """The table that is printed at the end."""
    lines = [
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    ]
    for tally in tallies:
        lines += ["", f"{'ok   ' if tally.has_passed else 'SHORT'} {tally.title}  ({tally.seconds:.0f} s)"]
        lines += [f"        {passed} of {count}  {name}" for name, (passed, count) in tally.parts.items()]
        lines += [f"        skipped  {what}" for what in tally.skipped]
    return "\n".join(lines)
