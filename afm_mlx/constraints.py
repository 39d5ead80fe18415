"""What restricts the next token of an answer: the protocol, a choice among given answers, and
the logits that are left. Answers held to their source are in :mod:`afm_mlx.grounding` and
:mod:`afm_mlx.keeping`."""

from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx
import numpy as np
import numpy.typing as npt

ABOVE_ALL = 1e3
"""Nats that no difference of logits comes near."""


class Constraint(Protocol):
    """Tells which tokens may follow; made anew for each answer."""

    def allowed(self) -> npt.NDArray[np.bool_] | npt.NDArray[np.float32]:
        """Which tokens ``[tokens]`` may be next, at least one and none beyond; or numbers to add to
        the logits, 0 beyond."""
        ...

    def advance(self, token: int) -> None:
        """Take notice of the next token."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the answer is whole."""
        ...


class Among:
    """The constraint to one of ``choices``, token sequences; the likelier branch at every fork.

    Args:
        favours: nats by which the first token of each choice is favoured; none if left out.
    """

    def __init__(self, choices: Sequence[Sequence[int]], favours: Sequence[float] = ()) -> None:
        self._branches, self._written = list(choices), 0
        self._favours = favours

    def allowed(self) -> npt.NDArray[np.bool_] | npt.NDArray[np.float32]:
        following = [branch[self._written] for branch in self._branches]
        mask = np.zeros(max(following) + 1, np.bool_)
        mask[following] = True
        if self._written or not self._favours:
            return mask
        added = mask * np.float32(ABOVE_ALL)
        added[following] += np.array(self._favours, np.float32)
        return added

    def advance(self, token: int) -> None:
        self._branches = [b for b in self._branches if b[self._written] == token]
        self._written += 1

    @property
    def ended(self) -> bool:
        return any(len(branch) == self._written for branch in self._branches)


def restricted(logits: mx.array, constraints: Sequence[Constraint | None]) -> mx.array:
    """``logits`` ``[..., vocab]`` without what may not follow; each row has its constraint."""
    added = np.zeros((len(constraints), logits.shape[-1]), np.float32)
    for row, constraint in zip(added, constraints, strict=True):
        if constraint is not None:
            known = constraint.allowed()[: row.size]
            if known.dtype == np.bool_:
                row[:] = -np.inf
                known = np.where(known, 0, -np.inf)
            row[: known.size] = known
    return logits + mx.array(added).reshape(logits.shape)
