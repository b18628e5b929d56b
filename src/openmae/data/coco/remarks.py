"""`Remarks`: what was found wrong in annotations, counted, the first few of each kind named."""

from dataclasses import dataclass, field

from openmae.errors import shown

_NAMED = 3


@dataclass
class Remarks:
    """What is wrong with objects or images of a split, by kind.

    Attributes:
        counts: of each kind, in the order in which they were first found.
        names: the first few of each kind.
    """

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Count one; a `kind` reads as the end of a sentence about several: "boxes without area, dropped"."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        named = self.names.setdefault(kind, [])
        if len(named) < _NAMED:
            named.append(shown(name))

    def lines(self, split: str) -> list[str]:
        """A line for each kind."""
        return [
            f"{split}: {count:,} {kind} ({', '.join(self.names[kind])}{', …' if count > _NAMED else ''})"
            for kind, count in self.counts.items()
        ]
