"""Holding images out of train where a data set has too few splits, and telling what train lacks."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from openmae.data.randomness import Permutation
from openmae.errors import RequestError, shown

MAX_BAD = 0.01  # of the images of a split, unless --max-bad says otherwise
OF_TRAIN = "split of train"
_MAX_HELD_OUT = 1000
_HELD_OUT_KEY = 0x5E65
_NAMED = 5


def hold_out(
    data: str,
    kept: Mapping[str, NDArray[np.int64]],
    held_out: int | None,
    seed: int,
    needs_validation: bool = False,
    *,
    what: str = "masks",
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The training images at `kept`, divided: sorted indices (the rest, the held-out ones). The same in every run.

    Args:
        data: for messages.
        kept: by split, the indices of the images that can be used.
        held_out: how many; None: a fifth of fewer than 2,500, else a tenth, at most 1,000, and only where there is no
            val and no test split, or one alone and `needs_validation`.
        what: the images have, for messages.

    Raises:
        RequestError: `held_out` leaves nothing to train on or to measure on.
    """
    train = kept["train"]
    if held_out and {"val", "test"} <= kept.keys():
        raise RequestError(f"--held-out {held_out} splits train, but {shown(data)} has a val part: leave it out")
    has_all = len(kept) > (2 if needs_validation else 1)
    if held_out is not None and (held_out < 0 or (held_out == 0 and not has_all)):
        purpose = "to choose by" if len(kept) > 1 else "to measure on"
        raise RequestError(
            f"--held-out {held_out} leaves nothing {purpose}: {shown(data)} has no val and test parts with {what}"
        )
    is_asked_for = held_out is not None
    if held_out is None:
        default = len(train) // 5 if len(train) < 2500 else min(len(train) // 10, _MAX_HELD_OUT)
        held_out = 0 if has_all else max(1, default)
    if held_out >= len(train):
        has = f"{shown(data)} has {len(train)} training image{'s' * (len(train) != 1)} with {what}"
        if is_asked_for:
            raise RequestError(f"--held-out {held_out}: {has}, of which one must be left; hold out fewer")
        raise RequestError(f"{has} and none to measure on: give more, or a val or test part")
    order = Permutation(len(train), _HELD_OUT_KEY, seed)(np.arange(len(train)))
    return train[np.sort(order[held_out:])], train[np.sort(order[:held_out])]


def absent_in_train(
    counts: Mapping[str, NDArray[np.int64]], classes: Sequence[str], what: str = "training mask"
) -> list[str]:
    """A line for each evaluation split with classes that are nowhere in train.

    Args:
        counts: by split, how often each class occurs: (classes,).
        what: may have a class, for messages.
    """
    lines = []
    for split, of_split in counts.items():
        absent = np.flatnonzero((of_split > 0) & (counts["train"] == 0)).tolist()
        if absent:
            named = ", ".join(shown(classes[i]) for i in absent[:_NAMED]) + (", …" if len(absent) > _NAMED else "")
            plural = "classes" if len(absent) > 1 else "class"
            lines.append(f"{split} has {len(absent)} {plural} that no {what} has: {named}")
    return lines
