"""check.json, check.md and check.log: written after every part, so that no result is lost."""

import datetime
import json
import platform
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from gpu_parts.part import ROOT, Part, write_atomically

MARKS = {"passed": "ok", "failed": "**failed**", "no time": "no time", "skipped": "not run"}
LOG_BYTES = {"passed": 3_000, "no time": 8_000, "failed": 30_000}  # of each output that check.log takes over
SHOWN = 240  # characters of a part's figures on the screen
MAX_MESSAGE = 600  # characters of a failure in the table; check.json has all
Result = dict[str, Any]


class Report:
    """The results of the parts, of this call and, where it goes on with some, of the calls before.

    Args:
        parts: all there are, in the order of the table.
        is_merged: whether results that lie in the folder stay.
        commit: of the sources, where git does not know it.
    """

    def __init__(self, out: Path, parts: Sequence[Part], *, is_merged: bool, commit: str | None = None) -> None:
        groups = list(dict.fromkeys(part.group for part in parts))
        self.out, self.order = out, [p.name for p in sorted(parts, key=lambda part: groups.index(part.group))]
        self.commit = commit or _commit()
        self.started = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        self.machine: Result = {}
        self.results: dict[str, Result] = {}
        self.calls: list[dict[str, Any]] = []
        out.mkdir(parents=True, exist_ok=True)
        if is_merged and (out / "check.json").exists():
            previous = json.loads((out / "check.json").read_bytes())
            self.results, self.calls = {r["name"]: r for r in previous["parts"]}, previous["calls"]
        else:
            (out / "check.log").unlink(missing_ok=True)

    def status(self, name: str) -> str:
        return self.results[name]["status"] if name in self.results else "not run"

    def add(
        self, part: Part, status: str, seconds: float, message: str, found: Result, outputs: Sequence[Path] = ()
    ) -> None:
        """Record a part, on disk and on the screen.

        Args:
            found: `figures` and `rows`, where there are some.
            outputs: files with the output of the part's processes.
        """
        result = {"name": part.name, "group": part.group, "does": part.does, "status": status, "said": message}
        figures, rows = found.get("figures", {}), found.get("rows", [])
        result |= {"figures": figures, "rows": rows, "seconds": round(seconds, 1), "call": len(self.calls)}
        self.results[part.name] = result
        shown = f"{figure_words(figures)[:SHOWN]}  {message[:MAX_MESSAGE]}".rstrip()
        print(f"{status:8} {part.name:24} {seconds:6.1f} s  {shown}", flush=True)
        with (self.out / "check.log").open("a") as log:
            log.write(f"\n##### {part.name}: {status}, {seconds:.1f} s. {message}\n")
            for path in outputs:
                if path.exists() and (text := path.read_bytes()[-LOG_BYTES.get(status, 0) :].decode(errors="replace")):
                    log.write(f"--- {path.name}\n{text.rstrip()}\n")
        self.write()

    def write(self) -> None:
        """Bring check.json and check.md up to date."""
        machine = self.machine.get("figures", {})
        call = {"started": self.started, "commit": self.commit, "machine": machine}
        known = [self.results[name] for name in self.order if name in self.results]
        values = {"calls": [*self.calls, call], "parts": known}
        write_atomically(self.out / "check.json", json.dumps(values, indent=1) + "\n")
        write_atomically(self.out / "check.md", "\n".join(self._page(values["calls"], known)) + "\n")

    def words(self, results: Sequence[Result]) -> str:
        counts = Counter(result["status"] for result in results)
        return ", ".join(f"{counts[status]} {status}" for status in MARKS if counts[status])

    def _page(self, calls: list[dict[str, Any]], results: list[Result]) -> list[str]:
        used = sorted({result["call"] for result in results})
        lines, machines = ["# GPU check", ""], set[str]()
        for number in used:
            call, machine = calls[number], figure_words(calls[number]["machine"], ", ")
            mark = f"Call {number + 1}: " if len(used) > 1 else ""
            shown = "" if machine in machines else f"; {machine}"
            machines.add(machine)
            lines += [f"{mark}{call['started']}, commit {call['commit']}{shown}", ""]
        lines += [f"`python tools/gpu_check.py OUT`: {self.words(results)}.", ""]
        lines += ["| part | what | result | measured | s |", "|---|---|---|---|---|"]
        for r in results:
            mark = MARKS[r["status"]] + (f" ({r['call'] + 1})" if len(used) > 1 else "")
            found = "; ".join(filter(None, [figure_words(r["figures"]), r["said"][:MAX_MESSAGE]]))
            lines.append(f"| {r['name']} | {r['does']} | {mark} | {_cell(found)} | {r['seconds']:.0f} |")
        if rows := [row for result in results for row in result["rows"]]:
            lines += ["", "A ratio above 1: openmae is better. The share is of the measured product rate.", ""]
            lines += ["| case | against | ratio (low to high) | ours | theirs | share | images/s |", "|---" * 7 + "|"]
            lines += [_row(row) for row in rows]
        return lines


def figure_words(figures: dict[str, Any], between: str = "; ") -> str:
    return between.join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in figures.items())


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return ", ".join(map(_value, value)) if isinstance(value, list) else str(value)


def _row(row: Result) -> str:
    ratio = "" if row.get("ratio") is None else f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
    share = f"{row['share_of_ceiling']:.1%}" if "share_of_ceiling" in row else ""
    share += f", theirs {row['their_share_of_ceiling']:.1%}" if "their_share_of_ceiling" in row else ""
    rate = f"{row['images_per_second']:,.0f}" if "images_per_second" in row else ""
    sides = [_side(row.get(side) or [], row.get("unit", "s")) for side in ("ours", "theirs")]
    return f"| {_cell(row['case'])} | {_cell(row['peer'])} | {ratio} | {sides[0]} | {sides[1]} | {share} | {rate} |"


def _side(values: list[float], unit: str) -> str:
    """The median of the rounds."""
    if not values:
        return ""
    middle = median(values)
    if unit == "s":
        return f"{1000 * middle:.1f} ms"
    return f"{middle / 1e9:.2f} GB" if unit == "bytes" else f"{middle:,.0f} {unit}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def _commit() -> str:
    """Of the checkout, with a mark where it holds changes."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"unknown ({platform.python_implementation()} from no git checkout)"
