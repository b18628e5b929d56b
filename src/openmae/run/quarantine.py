"""Which inputs could not be used and why: `quarantine.jsonl`, in the folder of a run, an evaluation or a pack."""

import json
from collections.abc import Iterable
from pathlib import Path

from openmae.errors import RequestError
from openmae.machine.files import atomic_write, disk_faults
from openmae.training.telemetry import filter_lines, read_lines

QUARANTINE = "quarantine.jsonl"


class Quarantine:
    """The quarantine file of a run: bad inputs are appended as they are met, and kept when the run is resumed.

    Args:
        keeps_known: keep the inputs that a previous start found; a new run starts empty, for they may be repaired.
        writes: False in all processes but the first, which only count.

    Attributes:
        names: the inputs known as bad, without those of splits that are only evaluated on.
    """

    def __init__(self, run: Path, keeps_known: bool = False, writes: bool = True) -> None:
        self.path, self._writes = run / QUARANTINE, writes
        if writes and not keeps_known:
            self.path.unlink(missing_ok=True)
        known = read_lines(self.path) if keeps_known else []
        self.names = {line["name"] for line in known if "name" in line and "part" not in line}
        if writes:
            filter_lines(self.path, lambda line: True)  # drops a line that a crash cut short

    def add(self, bad: dict[str, str]) -> list[str]:
        """Append the inputs that were not known as bad before; return their names."""
        new = {name: reason for name, reason in bad.items() if name not in self.names}
        self.names |= new.keys()
        self._append((name, reason, None) for name, reason in new.items())
        return list(new)

    def replace_part(self, part: str, bad: dict[str, str]) -> None:
        """Record the bad inputs of a split that is only evaluated on; they never count against `--max-bad`."""
        if self._writes:
            filter_lines(self.path, lambda line: line.get("part") != part)
        self._append((name, reason, part) for name, reason in bad.items())

    def _append(self, bad: Iterable[tuple[str, str, str | None]]) -> None:
        lines = [_line(*entry) for entry in bad]
        if lines and self._writes:
            with disk_faults(self.path, is_resumable=True), self.path.open("a") as file:
                file.writelines(lines)


class BadInputs:
    """The bad inputs of a run, and the limit on their number.

    Args:
        max_bad: the largest share of `num_inputs` that may be bad.
    """

    def __init__(self, quarantine: Quarantine, max_bad: float, num_inputs: int) -> None:
        self.quarantine, self.max_bad, self.num_inputs = quarantine, max_bad, num_inputs

    @property
    def count(self) -> int:
        return len(self.quarantine.names)

    def note(self, bad: dict[str, str]) -> list[str]:
        """Record bad inputs; return those that were not known before.

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
    """Write the quarantine file of a folder at once, from (name, reason, split or None) of each bad input.

    Without any, the file stays as it is.
    """
    lines = [_line(*entry) for entry in bad]
    if lines:
        with atomic_write(folder / QUARANTINE) as partial:
            partial.write_text("".join(lines))


def _line(name: str, reason: str, part: str | None) -> str:
    return json.dumps({"name": name, "reason": reason} | ({} if part is None else {"part": part})) + "\n"
