"""Weighted nearest neighbours: who they are, the class they vote for, and the mean of their numbers.

The k rows of a bank with the highest cosine similarity vote for their class with exp(similarity / temperature) each
(Wu et al., 2018); where they have numbers, that is their weight in the mean.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024  # queries whose similarities to a part of the bank are in memory at a time
BANK_CHUNKS = 64  # that part: so many times as many rows
MAX_SCORES = 1 << 24  # votes of queries for classes in memory at a time


def nearest(bank: Tensor, queries: Tensor, k: int, chunk: int) -> tuple[Tensor, Tensor]:
    """The k rows of the bank with the largest dot product with each query; of equal ones the earlier.

    Args:
        bank, queries: (n, D) and (q, D).
        chunk: rows of the bank at a time.

    Returns:
        (q, k) products, falling, and (q, k) indices.
    """
    values = queries.new_empty(len(queries), 0)
    ids = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), chunk):
        part = queries @ bank[start : start + chunk].to(queries.device).T
        kept = values.shape[1]
        values, places = _largest(torch.cat([values, part], dim=1), k)
        if kept:
            previous = ids.gather(1, places.clamp(max=kept - 1))
            ids = torch.where(places < kept, previous, places - kept + start)
        else:
            ids = places + start
    return values, ids


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `torch.topk`, but of equal values those that come first."""
    k = min(k, values.shape[1])
    found, ids = values.topk(k, dim=1)
    # topk takes any of the values that equal the last one it takes; where there are more, sort the row.
    is_tied = (values >= found[:, -1:]).sum(1) > k
    if is_tied.any():
        found[is_tied], ids[is_tied] = (t[:, :k] for t in values[is_tied].sort(dim=1, descending=True, stable=True))
    ids, order = ids.sort(dim=1)
    found, by_value = found.gather(1, order).sort(dim=1, descending=True, stable=True)
    return found, ids.gather(1, by_value)


def neighbour_votes(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    *,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
    chunk: int = CHUNK,
    device: torch.device | None = None,
) -> dict[int, Tensor]:
    """The class that the k nearest rows of the bank vote for, by k: (q,) int64 each, on the CPU.

    Of classes with equal votes the lower one wins; of rows that are equally near, the earlier ones vote.

    Args:
        bank, queries: features, (n, D) and (q, D) float32; normalised to length 1 here.
        bank_labels: (n,) int64.
        chunk: queries at a time, each against 64 times as many rows of the bank: a matter of memory.
        device: where similarities are computed; None: where the queries are.
    """
    parts: dict[int, list[Tensor]] = {k: [torch.empty(0, dtype=torch.int64)] for k in ks}
    for weights, ids in _weighted(bank, queries, max(ks), temperature, chunk, device or queries.device):
        for k in ks:
            parts[k].append(_elected(weights[:, :k], bank_labels.cpu()[ids[:, :k]], num_classes))
    return {k: torch.cat(found) for k, found in parts.items()}


def neighbour_means(
    bank: Tensor,
    bank_numbers: Tensor,
    queries: Tensor,
    *,
    ks: Sequence[int],
    temperature: float,
    chunk: int = CHUNK,
    device: torch.device | None = None,
) -> dict[int, Tensor]:
    """The weighted mean of the numbers of the k nearest rows of the bank, by k: (q, columns) float64, on the CPU.

    Args:
        bank_numbers: (n, columns).
        bank, queries, chunk, device: as of `neighbour_votes`.
    """
    numbers = bank_numbers.cpu().double()
    parts: dict[int, list[Tensor]] = {k: [numbers.new_empty(0, numbers.shape[1])] for k in ks}
    for weights, ids in _weighted(bank, queries, max(ks), temperature, chunk, device or queries.device):
        for k in ks:
            shares = weights[:, :k] / weights[:, :k].sum(1, keepdim=True)
            parts[k].append((shares[..., None] * numbers[ids[:, :k]]).sum(1))
    return {k: torch.cat(found) for k, found in parts.items()}


def _weighted(
    bank: Tensor, queries: Tensor, most: int, temperature: float, chunk: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """The weights of the nearest rows of the bank, of so many queries at a time, and which they are: (c, most) each."""
    bank = F.normalize(bank, dim=1)
    rows = chunk * BANK_CHUNKS
    if len(bank) <= rows:  # moved once; a larger one goes piece by piece for each chunk of queries
        bank = bank.to(device)
    for some in queries.split(chunk):
        values, ids = (t.cpu() for t in nearest(bank, F.normalize(some.to(device), dim=1), most, rows))
        # On the CPU, where sums have an order; relative to the nearest, so that no temperature overflows.
        yield ((values.double() - values[:, :1].double()) / temperature).exp(), ids


def _elected(weights: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    rows = max(1, MAX_SCORES // num_classes)
    elected = []
    for some_weights, some_labels in zip(weights.split(rows), labels.split(rows), strict=True):
        scores = torch.zeros(len(some_weights), num_classes, dtype=weights.dtype)
        elected.append(scores.scatter_add_(1, some_labels, some_weights).argmax(1))
    return torch.cat(elected)
