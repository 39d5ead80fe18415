"""KV caches of prompts that begin alike, so that a shared beginning is computed once."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from afm_mlx.model import Model

import mlx.core as mx
from mlx.utils import tree_map

PREFIX_BUDGET = 256 * 2**20
"""Bytes of KV cache kept for prompt prefixes."""

MakeCache = Callable[[Model], list[Any]]


class PrefixCache:
    """KV caches of prompt prefixes, least recently used out first, under a byte budget.

    The longest common prefix of a prompt with any entry is reused, whole or in part; entries of
    another adapter never, since keys and values are its own. An adapter goes by a number, 0 is
    the model alone.

    Args:
        make_cache: gives an empty KV cache for a request, one per layer that writes to it; its
            members hold trees of arrays ``[B, heads, positions, ...]`` as ``keys`` and ``values``.
    """

    def __init__(
        self, budget: int = PREFIX_BUDGET, make_cache: MakeCache = Model.make_cache
    ) -> None:
        self.budget, self._make_cache = budget, make_cache
        self._entries: OrderedDict[tuple[int, tuple[int, ...]], list[Any]] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes held at present."""
        return sum(c.nbytes for cache in self._entries.values() for c in cache)

    def fetch(self, model: Model, tokens: Sequence[int], adapter: int = 0) -> tuple[list[Any], int]:
        """A cache that may be written to, and how many leading ``tokens`` it holds.

        At least one token is always left to run, since its logits are needed.
        """
        best, length = None, 0
        for entry in self._entries:
            common = _common(entry[1], tokens[:-1]) if entry[0] == adapter else 0
            if common > length:
                best, length = entry, common
        if best is None:
            return self._make_cache(model), 0
        self._entries.move_to_end(best)
        return [_copy(c, length) for c in self._entries[best]], length

    def store(self, tokens: Sequence[int], cache: list[Any], adapter: int = 0) -> None:
        """Keep what ``cache`` holds for ``tokens``; entries that it extends are replaced."""
        copies = [_copy(c, len(tokens)) for c in cache]
        if sum(c.nbytes for c in copies) > self.budget:
            return  # it would drive out all others, and then itself
        mx.eval([c.state for c in copies])
        for entry in list(self._entries):
            if entry[0] == adapter and _common(entry[1], tokens) == len(entry[1]):
                del self._entries[entry]
        self._entries[adapter, tuple(tokens)] = copies
        while self.nbytes > self.budget and self._entries:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        self._entries.clear()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def _copy(cache: Any, length: int) -> Any:
    """First ``length`` positions as a cache of its own: arrays are copied, since mlx-lm's
    caches write into theirs in place."""
    twin = copy.copy(cache)
    twin.keys, twin.values = tree_map(
        lambda x: mx.contiguous(x[..., :length, :]), (cache.keys, cache.values)
    )
    twin.offset = length
    return twin
