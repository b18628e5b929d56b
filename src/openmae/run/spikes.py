"""Loss spikes: losses far above those before them."""

from collections import deque
from collections.abc import Iterable
from statistics import median

WINDOW, MIN_COUNT = 50, 20  # a loss is compared with at most and at least so many lines before it
DEVIATIONS = 8.0  # robust standard deviations above the median


class RecentLosses:
    """The losses of the last lines of metrics.jsonl."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._losses = deque(losses, maxlen=WINDOW)

    @property
    def median(self) -> float:
        return median(self._losses)

    def add(self, loss: float) -> None:
        self._losses.append(loss)

    def to_list(self) -> list[float]:
        return list(self._losses)

    def is_spike(self, loss: float) -> bool:
        """Whether a loss lies far above the recent ones."""
        if len(self._losses) < MIN_COUNT:
            return False
        middle = self.median
        deviation = 1.4826 * median(abs(value - middle) for value in self._losses)
        return loss > middle + DEVIATIONS * max(deviation, 0.01 * abs(middle))
