"""A report on loading weights: loaded, resized and unused ones, by name and shape."""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from openmae.errors import shown

Shape = tuple[int, ...]
_NUMBER = re.compile(r"(?<=\.)\d{1,9}(?=\.)")


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What happened to each weight of a file. None is ever missing: a model that lacks one is refused.

    Attributes:
        source: the file or name that was requested.
        kind: a description of what it is.
        remarks: decisions made while reading (head count, preprocessing, group), each with its reason.
        loaded: shapes, by our names.
        resized: shapes before and after, by our names.
        unused: shapes, by the file's names.
    """

    source: str
    kind: str
    remarks: tuple[str, ...] = ()
    loaded: Mapping[str, Shape] = field(default_factory=dict)
    resized: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)
    unused: Mapping[str, Shape] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Lines to print: counts of loaded weights; the others by name, equal ones of several blocks on one line."""
        counts = {
            part: sum(name.startswith(f"{part}.") for name in self.loaded) for part in ("encoder", "decoder", "head")
        }
        parts = [f"{part} {count}" for part, count in counts.items() if count]
        rest = len(self.loaded) - sum(counts.values())
        parts += [f"others {rest}"] if rest else []
        lines = [f"init       {self.source}: {self.kind}", *(f"           {remark}" for remark in self.remarks)]
        lines.append(f"           loaded {len(self.loaded)} weights: {', '.join(parts) or 'none'}")
        for name, (old, new) in self.resized.items():
            lines.append(f"           resized {name}: {_shape(old)} -> {_shape(new)}")
        if self.unused:
            lines.append(f"           unused {len(self.unused)}:")
            lines += [f"             {line}" for line in group_blocks(self.unused)]
        else:
            lines.append("           unused: none; missing: none")
        return [shown(line) for line in lines]  # names in a file can contain terminal escape sequences


def group_blocks(weights: Mapping[str, Shape]) -> list[str]:
    """Names with shapes, those of several blocks as one: `blocks.0-11.norm1.weight (768,)` stands for twelve."""
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
