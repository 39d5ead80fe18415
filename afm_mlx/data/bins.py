"""Bin packing on numbers alone: whole items by best fit, then texts poured into what is left.

Best fit wastes little where there are many sizes; where a few dozen like ones share each bin, an
even spread (Graham 1969, the longest first) fills it better, so that is tried after it.
"""

import heapq
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LEAST_ROOM = 64
"""Room under 1/64 of a bin stays empty: no text is cut into shreds to fill it."""

SPARED = 0.01
"""Share of all room that best fit may waste unquestioned."""


def best_fit(sizes: Array, window: int) -> tuple[Array, Array]:
    """Bin of each item and room left in each bin; ``sizes`` must be decreasing.

    Each item goes where the least room is left that takes it. Items of one size are placed
    together: a bin that takes one takes as many as it can, for then it is still the tightest.
    """
    bins = np.empty(len(sizes), np.int64)
    by_room: list[list[Array]] = [[] for _ in range(window + 1)]
    count = np.zeros(window + 1, np.int64)
    total = 0

    def put(which: Array, room: int) -> None:
        if len(which):
            by_room[room].append(which)
            count[room] += len(which)

    edges = np.flatnonzero(np.diff(sizes, prepend=0, append=0))
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        size = int(sizes[begin])
        while begin < end:
            fitting = np.flatnonzero(count[size:])
            if len(fitting):
                room = size + int(fitting[0])
                found = np.concatenate(by_room[room])
                by_room[room], count[room] = [], 0
            else:
                room = window
                found = total + np.arange(-(-(end - begin) // (window // size)))
                total += len(found)
            each = room // size
            used, unused = np.split(found, [-(-(end - begin) // each)])
            placed = np.repeat(used, each)[: end - begin]
            bins[begin : begin + len(placed)] = placed
            put(unused, room)
            put(used[:-1], room - each * size)
            put(used[-1:], room - (len(placed) - each * (len(used) - 1)) * size)
            begin += len(placed)
    left = np.zeros(total, np.int64)
    for room, members in enumerate(by_room):
        for which in members:
            left[which] = room
    return bins, left


def spread(sizes: Array, window: int, bins: int) -> tuple[Array, Array] | None:
    """The same with at most ``bins`` bins by an even spread; ``None`` if one runs over."""
    emptiest = [(0, b) for b in range(bins)]
    found = np.empty(len(sizes), np.int64)
    for i, size in enumerate(sizes.tolist()):
        used, b = emptiest[0]
        if used + size > window:
            return None
        heapq.heapreplace(emptiest, (used + size, b))
        found[i] = b
    left = np.empty(bins, np.int64)
    for used, b in emptiest:
        left[b] = window - used
    return found, left


def fewest(sizes: Array, window: int) -> tuple[Array, Array]:
    """The better one of :func:`best_fit` and :func:`spread`."""
    best = best_fit(sizes, window)
    low, high = -(-int(sizes.sum()) // window), len(best[1])
    if high * window * (1 - SPARED) <= sizes.sum():
        return best
    while low < high:
        middle = (low + high) // 2
        found = spread(sizes, window, middle)
        if found is None:
            low = middle + 1
        else:
            best, high = found, middle
    return best


def fill(ids: list[int], lengths: list[int], room: Array, window: int) -> Array:
    """Pieces ``[n, 4]`` (bin, sample, start, stop) of texts in the room left, then in new bins."""
    least = max(window // LEAST_ROOM, 2)
    gaps = np.flatnonzero(room >= least)
    slots = zip(gaps.tolist(), room[gaps].tolist(), strict=True)
    pieces: list[tuple[int, int, int, int]] = []
    where, free, new = 0, 0, len(room)
    for sample, length in zip(ids, lengths, strict=True):
        start = 0
        while start < length - 1:  # the token at ``start`` itself is predicted already
            if free < least:
                where, free = next(slots, (new, window))
                new += where == new
            stop = min(start + free, length)
            pieces.append((where, sample, start, stop))
            free -= stop - start
            start = stop - 1
    return np.array(pieces, np.int64).reshape(-1, 4)
