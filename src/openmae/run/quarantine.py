"""Which inputs could not be used and why: `quarantine.jsonl`, in the folder of what trains, measures or packs."""

import json
from collections.abc import Iterable
from pathlib import Path

from openmae.errors import RequestError
from openmae.machine.files import disk_faults, written_aside
from openmae.training.telemetry import keep_lines, read_lines

QUARANTINE = "quarantine.jsonl"


class Quarantine:
    """The file of a run: it grows as bad inputs are met, and outlasts stops.

    Args:
        keeps_known: a resumed run's: what an earlier start found is known; else it may have been repaired since.
        writes: False in all processes but the first: they only keep count.

    Attributes:
        names: of the inputs that are known as bad, but for those of parts that are only measured.
    """

    def __init__(self, run: Path, keeps_known: bool = False, writes: bool = True) -> None:
        self.path, self._writes = run / QUARANTINE, writes
        if writes and not keeps_known:
            self.path.unlink(missing_ok=True)
        known = read_lines(self.path) if keeps_known else []
        self.names = {line["name"] for line in known if "name" in line and "part" not in line}
        if writes:
            keep_lines(self.path, lambda line: True)  # without one that a crash cut short

    def add(self, bad: dict[str, str]) -> list[str]:
        """Append the inputs that were not known as bad yet; return their names."""
        new = {name: reason for name, reason in bad.items() if name not in self.names}
        self.names |= new.keys()
        self._append((name, reason, None) for name, reason in new.items())
        return list(new)

    def replace_part(self, part: str, bad: dict[str, str]) -> None:
        """Put the bad inputs of a part that is only measured on record; they never count against `--max-bad`."""
        if self._writes:
            keep_lines(self.path, lambda line: line.get("part") != part)
        self._append((name, reason, part) for name, reason in bad.items())

    def _append(self, bad: Iterable[tuple[str, str, str | None]]) -> None:
        lines = [_line(*found) for found in bad]
        if lines and self._writes:
            with disk_faults(self.path, is_resumable=True), self.path.open("a") as file:
                file.writelines(lines)


class BadInputs:
    """The bad inputs of a run against how many may be bad.

    Args:
        max_bad: the largest share of `num_inputs` that may be bad.
    """

    def __init__(self, quarantine: Quarantine, max_bad: float, num_inputs: int) -> None:
        self.quarantine, self.max_bad, self.num_inputs = quarantine, max_bad, num_inputs

    @property
    def count(self) -> int:
        return len(self.quarantine.names)

    def note(self, bad: dict[str, str]) -> list[str]:
        """Put bad inputs on record; return those that were not known.

        Raises:
            RequestError: they are more than `max_bad` of all inputs.
        """
        new = self.quarantine.add(bad)
        if self.count > self.max_bad * self.num_inputs:
            last = f", the last {new[-1]!r} ({bad[new[-1]]})" if new else ""
            raise RequestError(
                f"{self.count} of {self.num_inputs:,} inputs cannot be read{last}: more than --max-bad "
                f"{self.max_bad:g}; {self.quarantine.path} names them, a higher --max-bad skips them"
            )
        return new


def write_quarantine(folder: Path, bad: Iterable[tuple[str, str, str | None]]) -> None:
    """Write the file of a folder whose inputs are all known: of each bad one its name, the reason and perhaps its part.

    Without any the file stays as it is.
    """
    lines = [_line(*found) for found in bad]
    if lines:
        with written_aside(folder / QUARANTINE) as partial:
            partial.write_text("".join(lines))


def _line(name: str, reason: str, part: str | None) -> str:
    return json.dumps({"name": name, "reason": reason} | ({} if part is None else {"part": part})) + "\n"
