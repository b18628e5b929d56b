"""The drill's score: of each promise, how often it was put to the test and how often it held."""

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass
class Tally:
    """What held of one point; what did not is said at once."""

    title: str
    parts: dict[str, list[int]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def check(self, part: str, passed: bool, detail: object = "") -> None:
        counts = self.parts.setdefault(part, [0, 0])
        counts[0] += bool(passed)
        counts[1] += 1
        if not passed:
            print(f"    FAILED {part}: {str(detail)[-1500:]}", flush=True)

    @property
    def is_whole(self) -> bool:
        return all(held == count for held, count in self.parts.values())


def table(tallies: Sequence[Tally]) -> str:
    """What a person reads at the end."""
    lines = [
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    ]
    for tally in tallies:
        lines += ["", f"{'ok   ' if tally.is_whole else 'SHORT'} {tally.title}  ({tally.seconds:.0f} s)"]
        lines += [f"        {held} of {count}  {part}" for part, (held, count) in tally.parts.items()]
        lines += [f"        skipped  {what}" for what in tally.skipped]
    return "\n".join(lines)
