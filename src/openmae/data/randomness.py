"""Order and randomness as pure functions of (seed, epoch, index).

Nothing here has state: which image comes next, how it is cropped and what is masked depend on integers
only, so neither the number of workers or processes nor an interruption changes a run.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Each purpose has its own stream of numbers: a crop must not be correlated with a mask.
_STREAMS = {
    "augment": 1,
    "mask": 2,
    "rand-augment": 3,
    "erase": 4,
    "drop-path": 5,
    "mix": 6,
    "pca": 7,
    "gumbel": 8,
    "dropout": 9,
    "regions": 10,
}


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al., 2014): a bijection that scatters 64-bit integers."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hash_ints(*parts: ArrayLike) -> NDArray[np.uint64]:
    """Hash integers (or arrays of them, broadcast together) to an array of 64-bit keys."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = _mix((key ^ np.asarray(part).astype(np.uint64)) + _GOLDEN)
    return key


def sample_keys(seed: int, epoch: ArrayLike, index: ArrayLike) -> NDArray[np.int64]:
    """The key of each sample, from which all its randomness derives: (B,) int64."""
    return hash_ints(seed, epoch, index).view(np.int64)


def crop_keys(keys: ArrayLike, crops: ArrayLike) -> NDArray[np.int64]:
    """The keys of the crops of samples, where one decoded image gives several: (B,) int64.

    The first crop's is the sample's own.
    """
    keys, crops = np.asarray(keys, np.int64), np.asarray(crops)
    return np.where(crops == 0, keys, hash_ints(keys.view(np.uint64), crops).view(np.int64))


def uniforms(keys: ArrayLike, count: int, stream: str) -> NDArray[np.float64]:
    """`count` random numbers, uniform in [0, 1), for each key: (B, count).

    Args:
        stream: what they are for, a key of `_STREAMS`.
    """
    start = hash_ints(np.atleast_1d(np.asarray(keys)).astype(np.int64).view(np.uint64), _STREAMS[stream])
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(start[:, None] + steps[None, :]) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seeds(keys: ArrayLike, stream: str) -> NDArray[np.uint64]:
    """A seed for each key, for other libraries' generators: (B,) uint64."""
    # One more constant than `uniforms` hashes, so that no seed is a number that `uniforms` uses.
    return hash_ints(np.atleast_1d(np.asarray(keys)).astype(np.int64).view(np.uint64), _STREAMS[stream], 1)


@contextmanager
def seeded_global_rng(key: int, stream: str) -> Iterator[None]:
    """Within the context, Python's and NumPy's global generators are seeded from the key; afterwards they are restored.

    For libraries that draw from global state. Not thread-safe.
    """
    python, numpy = random.getstate(), np.random.get_state()
    seed = int(seeds(key, stream)[0])
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class Permutation:
    """A pseudo-random permutation of 0 … size − 1 in O(1) memory: a Feistel network with cycle-walking.

    Calling it with integers (any array of them) gives their images; equal (size, key) give equal permutations.
    """

    ROUNDS = 6

    def __init__(self, size: int, *key: int) -> None:
        assert size > 0
        self.size = size
        self.half_bits = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
        self.low_mask = np.uint64((1 << int(self.half_bits)) - 1)
        self.round_keys = [hash_ints(*key, i) for i in range(self.ROUNDS)]

    def _encrypt(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self.half_bits, values & self.low_mask
        for key in self.round_keys:
            left, right = right, left ^ (_mix(right * _GOLDEN + key) & self.low_mask)
        return (left << self.half_bits) | right

    def __call__(self, positions: ArrayLike) -> NDArray[np.int64]:
        values = np.atleast_1d(np.asarray(positions)).astype(np.uint64)
        assert values.size == 0 or values.max() < self.size
        values = self._encrypt(values)
        # The network permutes a power of four; walk on until the value falls inside `size`.
        while (outside := values >= self.size).any():
            values[outside] = self._encrypt(values[outside])
        return values.astype(np.int64)
