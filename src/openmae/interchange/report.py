"""Which weights came in: loaded, resized, unused, missing, each by name and shape."""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from openmae.errors import shown

Shape = tuple[int, ...]
_NUMBER = re.compile(r"(?<=\.)\d{1,9}(?=\.)")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of every weight of a file. No model is built that misses one, so missing are none.

    Attributes:
        source: the file or the name that was asked for.
        kind: what it is, in words.
        remarks: what was decided on the way (head count, preprocessing, group), each with its reason.
        loaded: by our names.
        resized: by our names: from which shape to which.
        unused: by the file's names.
    """

    source: str
    kind: str
    remarks: tuple[str, ...] = ()
    loaded: Mapping[str, Shape] = field(default_factory=dict)
    resized: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)
    unused: Mapping[str, Shape] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For the screen: counts of what was loaded; the rest by name, equal weights of all blocks on a line."""
        of_part = {
            part: sum(name.startswith(f"{part}.") for name in self.loaded) for part in ("encoder", "decoder", "head")
        }
        parts = [f"{part} {count}" for part, count in of_part.items() if count]
        rest = len(self.loaded) - sum(of_part.values())
        parts += [f"others {rest}"] if rest else []
        lines = [f"init       {self.source}: {self.kind}", *(f"           {remark}" for remark in self.remarks)]
        lines.append(f"           loaded {len(self.loaded)} weights: {', '.join(parts) or 'none'}")
        for name, (old, new) in self.resized.items():
            lines.append(f"           resized {name}: {_shape(old)} -> {_shape(new)}")
        if self.unused:
            lines.append(f"           unused {len(self.unused)}:")
            lines += [f"             {line}" for line in families(self.unused)]
        else:
            lines.append("           unused: none; missing: none")
        return [shown(line) for line in lines]  # names in a file can be terminal commands


def families(weights: Mapping[str, Shape]) -> list[str]:
    """Names with their shapes; `blocks.0-11.norm1.weight (768,)` stands for twelve."""
    groups: dict[tuple[str, Shape], list[int]] = {}
    for name, shape in weights.items():
        number = _NUMBER.search(name)
        groups.setdefault((_NUMBER.sub("{}", name, count=1), shape), []).append(int(number[0]) if number else -1)
    return [f"{name.replace('{}', _ranges(numbers), 1)} {_shape(shape)}" for (name, shape), numbers in groups.items()]


def _ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 -> "0-2,5"."""
    parts = []
    for _, run in itertools.groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        parts.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return ",".join(parts)


def _shape(shape: Shape) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
