"""Weighted nearest neighbours: which they are, the class they vote for, and the weighted mean of their numbers.

The k rows of a bank with the highest cosine similarity to a query vote for their class, each with the weight
exp(similarity / temperature) (Wu et al., 2018). Where labels are numbers, the prediction is their mean by that weight.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024  # queries whose similarities to a chunk of the bank are in memory at a time
BANK_CHUNKS = 64  # rows of a chunk of the bank, for each query of a chunk
MAX_SCORES = 1 << 24  # of queries for classes, in memory at a time


def nearest(bank: Tensor, queries: Tensor, k: int, chunk: int) -> tuple[Tensor, Tensor]:
    """The k rows of the bank with the largest dot product with each query; of equal products the earlier rows.

    Args:
        bank, queries: (n, D) and (q, D).
        chunk: rows of the bank at a time.

    Returns:
        (q, k) products in descending order, and (q, k) indices of rows.
    """
    values = queries.new_empty(len(queries), 0)
    ids = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), chunk):
        products = queries @ bank[start : start + chunk].to(queries.device).T
        kept = values.shape[1]
        values, positions = _largest(torch.cat([values, products], dim=1), k)
        if kept:
            previous = ids.gather(1, positions.clamp(max=kept - 1))
            ids = torch.where(positions < kept, previous, positions - kept + start)
        else:
            ids = positions + start
    return values, ids


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `torch.topk`, but of equal values those that come first."""
    k = min(k, values.shape[1])
    top, ids = values.topk(k, dim=1)
    # topk returns any of the values that equal the k-th; where there are more than it returns, the row is sorted.
    is_tied = (values >= top[:, -1:]).sum(1) > k
    if is_tied.any():
        top[is_tied], ids[is_tied] = (t[:, :k] for t in values[is_tied].sort(dim=1, descending=True, stable=True))
    ids, order = ids.sort(dim=1)
    top, by_value = top.gather(1, order).sort(dim=1, descending=True, stable=True)
    return top, ids.gather(1, by_value)


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
    """The class that the k nearest rows of the bank vote for, for each k: (q,) int64 each, on the CPU.

    Of classes with equal votes the lower one wins; of rows that are equally near, the earlier ones vote.

    Args:
        bank, queries: features, (n, D) and (q, D) float32; normalised to length 1 here.
        bank_labels: (n,) int64.
        chunk: queries at a time, against 64 times as many rows of the bank: smaller chunks take less memory.
        device: where similarities are computed; None: where the queries are.
    """
    votes: dict[int, list[Tensor]] = {k: [torch.empty(0, dtype=torch.int64)] for k in ks}
    for weights, ids in _weighted(bank, queries, max(ks), temperature, chunk, device or queries.device):
        for k in ks:
            votes[k].append(_vote(weights[:, :k], bank_labels.cpu()[ids[:, :k]], num_classes))
    return {k: torch.cat(chunks) for k, chunks in votes.items()}


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
    """The weighted mean of the numbers of the k nearest rows, for each k: (q, columns) float64 each, on the CPU.

    Args:
        bank_numbers: (n, columns).
        bank, queries, chunk, device: as of `neighbour_votes`.
    """
    numbers = bank_numbers.cpu().double()
    means: dict[int, list[Tensor]] = {k: [numbers.new_empty(0, numbers.shape[1])] for k in ks}
    for weights, ids in _weighted(bank, queries, max(ks), temperature, chunk, device or queries.device):
        for k in ks:
            shares = weights[:, :k] / weights[:, :k].sum(1, keepdim=True)
            means[k].append((shares[..., None] * numbers[ids[:, :k]]).sum(1))
    return {k: torch.cat(chunks) for k, chunks in means.items()}


def _weighted(
    bank: Tensor, queries: Tensor, k: int, temperature: float, chunk: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """The weights and the indices of the k nearest rows of the bank, a chunk of c queries at a time: (c, k) each."""
    bank = F.normalize(bank, dim=1)
    rows = chunk * BANK_CHUNKS
    if len(bank) <= rows:  # moved once; a larger one is moved chunk by chunk for each chunk of queries
        bank = bank.to(device)
    for chunk_queries in queries.split(chunk):
        values, ids = (t.cpu() for t in nearest(bank, F.normalize(chunk_queries.to(device), dim=1), k, rows))
        # On the CPU, where sums are deterministic; relative to the nearest row, so that no temperature overflows.
        yield ((values.double() - values[:, :1].double()) / temperature).exp(), ids


def _vote(weights: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The class with the largest sum of weights, (q,); `weights` and `labels` of the neighbours are (q, k)."""
    rows = max(1, MAX_SCORES // num_classes)
    winners = []
    for row_weights, row_labels in zip(weights.split(rows), labels.split(rows), strict=True):
        scores = torch.zeros(len(row_weights), num_classes, dtype=weights.dtype)
        winners.append(scores.scatter_add_(1, row_labels, row_weights).argmax(1))
    return torch.cat(winners)
