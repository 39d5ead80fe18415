"""Weighted k-means on a line, optimal by dynamic programming, for many groups at once.

On sorted numbers the best clusters are intervals, so that the best ``k`` follow from the best
``k - 1`` (Bellman 1973; "Ckmeans.1d.dp", Wang and Song 2011). One pass gives the tables of all
sizes up to the largest. Groups of many numbers are first counted into cells, half of them of
equal width and half of equal count, which costs less than 0.5 % of the optimum; with
no more numbers than cells it is exact.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

CELLS = 128
"""Cells that a group is counted into, or twice as many as the table has entries."""
_AT_ONCE = 32  # groups whose costs lie in the processor's cache together


def tables(values: Array, weights: Array, sizes: Sequence[int]) -> dict[int, Array]:
    """The best tables of several sizes for each group.

    Args:
        values: float32 ``[G, n]``.
        weights: how much each value counts, ``[G, n]``, none negative.
        sizes: numbers of entries.

    Returns:
        For each size float32 ``[G, size]``, every row in rising order. Where a group has fewer
        different values than entries, some entries are equal.
    """
    found = {size: np.empty((len(values), size), np.float32) for size in sizes}
    cells = max(CELLS, 2 * max(sizes))
    for start in range(0, len(values), _AT_ONCE):
        chunk = slice(start, start + _AT_ONCE)
        sums = _cell_sums(values[chunk], weights[chunk], cells)
        ends = _solve(_costs(sums), max(sizes))
        for size, rows in found.items():
            rows[chunk] = _means(sums, ends, size)
    return found


def _cell_sums(values: Array, weights: Array, cells: int) -> Array:
    """Sums of weight, weight x value and weight x value^2 before each cell: ``[3, G, m + 1]``."""
    order = np.argsort(values, axis=1)
    v = np.take_along_axis(values, order, 1).astype(np.float64)
    w = np.take_along_axis(weights, order, 1).astype(np.float64)
    total = w.sum(1, keepdims=True)
    w = np.where(total > 0, w / np.where(total > 0, total, 1.0), 1.0 / v.shape[1])
    running = np.zeros((3, len(v), v.shape[1] + 1))
    for row, part in zip(running, (w, w * v, w * v * v), strict=True):
        np.cumsum(part, axis=1, out=row[:, 1:])
    if v.shape[1] <= cells:
        return running
    return np.take_along_axis(running, _cell_starts(v, cells)[None], axis=2)


def _cell_starts(ordered: Array, cells: int) -> Array:
    """Where cells begin in each row of sorted values, and the end: ``[G, cells + 1]``."""
    n, half = ordered.shape[1], cells // 2
    low, high = ordered[:, :1], ordered[:, -1:]
    even = low + (high - low) * np.arange(1, half) / half
    counted = ordered[:, (np.arange(1, cells - half + 1) * n) // (cells - half + 1)]
    edges = np.sort(np.concatenate([even, counted], axis=1), axis=1)
    starts = np.stack([np.searchsorted(row, e) for row, e in zip(ordered, edges, strict=True)])
    ends = np.full((len(ordered), 1), n)
    return np.concatenate([np.zeros_like(ends), starts, ends], axis=1)


def _costs(sums: Array) -> Array:
    """Squared error of one entry for the cells ``i`` to ``j - 1``: float32 ``[G, j, i]``."""
    w, wv, wvv = (s[:, :, None] - s[:, None, :] for s in sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(w > 0, wvv - wv * wv / w, 0.0)
    cost = np.maximum(cost, 0.0).astype(np.float32)
    after = np.triu(np.ones(cost.shape[1:], bool), 1)  # i > j: no interval
    cost[:, after] = np.inf
    return cost


def _solve(cost: Array, size: int) -> list[Array]:
    """For each number of entries ``k`` from 2: where the last of them begins, ``[G, m + 1]``."""
    best = cost[:, :, 0]
    starts = []
    for _ in range(1, size):
        total = cost + best[:, None, :]
        start = np.argmin(total, axis=2)
        best = np.take_along_axis(total, start[:, :, None], axis=2)[:, :, 0]
        starts.append(start)
    return starts


def _means(sums: Array, starts: list[Array], size: int) -> Array:
    """Entries of the best table of ``size``, followed back from the last one."""
    groups = np.arange(sums.shape[1])
    stop = np.full(len(groups), sums.shape[2] - 1)
    table = np.empty((len(groups), size))
    above = np.full(len(groups), np.nan)
    for k in range(size - 1, -1, -1):
        start = starts[k - 1][groups, stop] if k else np.zeros_like(stop)
        weight, moment = (s[groups, stop] - s[groups, start] for s in sums[:2])
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.where(weight > 0, moment / weight, above)
        table[:, k] = above = mean
        stop = start
    # Entries without values, above the first that has some, repeat it.
    for k in range(size - 2, -1, -1):
        table[:, k] = np.where(np.isnan(table[:, k]), table[:, k + 1], table[:, k])
    for k in range(1, size):
        table[:, k] = np.where(np.isnan(table[:, k]), table[:, k - 1], table[:, k])
    return np.sort(table, axis=1).astype(np.float32)
