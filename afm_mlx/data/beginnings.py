"""What samples begin with alike, such as the instructions of a feature, and could share.

A beginning is computed once for a window of samples in place of once for each; since a token
sees only what comes before it, nothing else changes (up to rounding), gradients included.
"""

from dataclasses import dataclass
from typing import Any

from afm_mlx.data.tokens import TokenStore

import numpy as np

Array = np.ndarray[Any, Any]

LEAST = 16
"""Tokens that a beginning must have to be worth sharing."""
USES = 2
"""Samples of a window that must share one on average; every window holds it."""


@dataclass(frozen=True, eq=False)
class Beginnings:
    """What each sample of a store shares with others.

    Attributes:
        tokens: uint32 ``[positions]``, the beginnings end to end.
        lengths: int64, tokens of each beginning by its number; number 0 stands for none.
        of: int64, the number of each sample's beginning.
    """

    tokens: Array
    lengths: Array
    of: Array

    @property
    def positions(self) -> int:
        """Positions that the beginnings take in every window."""
        return len(self.tokens)

    @property
    def numbers(self) -> Array:
        """The number of the beginning at each of these positions."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)


def no_beginnings(store: TokenStore) -> Beginnings:
    """Nothing is shared."""
    zero = np.zeros(1, np.int64)
    return Beginnings(np.zeros(0, np.uint32), zero, np.zeros(len(store), np.int64))


def beginnings(store: TokenStore, samples: float) -> Beginnings:
    """What conversations in windows of about ``samples`` samples could share.

    What is learnt is never shared, nor the token before it, and texts share nothing.
    """
    groups: dict[bytes, list[int]] = {}
    learns = [int(np.argmax(learn)) if learn.any() else len(learn) for learn in _learn(store)]
    for i in np.flatnonzero(~store.splittable).tolist():
        if learns[i] > LEAST:
            groups.setdefault(store.sample(i)[0][:LEAST].tobytes(), []).append(i)
    found, of = [], np.zeros(len(store), np.int64)
    for members in groups.values():
        if len(members) * samples < USES * len(store) or len(members) < USES:
            continue
        room = min(learns[i] for i in members) - 1
        tokens = np.stack([store.sample(i)[0][:room] for i in members])
        same = (tokens == tokens[0]).all(0)
        common = room if same.all() else int(np.argmin(same))
        found.append(tokens[0, :common])
        of[members] = len(found)
    if not found:
        return no_beginnings(store)
    return Beginnings(np.concatenate(found), np.array([0, *map(len, found)]), of)


def _learn(store: TokenStore) -> list[Array]:
    return [store.sample(i)[1] for i in range(len(store))]
