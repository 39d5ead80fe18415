"""Corrections that leave a text alone unless the model is sure: its own next word is favoured.

A small model changes correct text too: it finds another word a little likelier than the one that
stands there. Here the next token of the source gets a bonus, so that a change must be that much
likelier (in nats) than none; GECToR's "confidence bias" for keeping a word (arXiv 2005.12592) is
the same for taggers. Where the answer has departed from the source, nothing is favoured until two
tokens in a row stand in the source again, near where they would be.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

NEAR = 12
"""Tokens that an answer may be ahead of the source or behind, and still be found again."""


class Keeping:
    """A constraint that favours going on in ``source``, token ids up to the end of the turn.

    Args:
        margin: nats that another token must be likelier.
    """

    def __init__(self, source: Sequence[int], margin: float) -> None:
        self._source, self._margin = list(source), margin
        self._written: list[int] = []
        self._next: int | None = 0  # where the answer is in the source, if it is known
        self._expected = 0  # where it would be if nothing had changed

    @property
    def ended(self) -> bool:
        """Never: an answer ends with the model's own token."""
        return False

    def allowed(self) -> npt.NDArray[np.float32]:
        """Numbers to add to the logits ``[tokens]``, 0 beyond: the margin for one token."""
        if self._next is None or self._next >= len(self._source):
            return np.zeros(0, np.float32)
        favoured = self._source[self._next]
        scores = np.zeros(favoured + 1, np.float32)
        scores[favoured] = self._margin
        return scores

    def advance(self, token: int) -> None:
        """Take notice of the next token."""
        self._written.append(token)
        if self._next is not None and self._source[self._next : self._next + 1] == [token]:
            self._next += 1
            self._expected = self._next
        else:
            self._expected += 1
            self._next = self._found()
            self._expected = self._expected if self._next is None else self._next

    def _found(self) -> int | None:
        """Where the source goes on after the last two tokens, the nearest such place."""
        pair = self._written[-2:]
        first, last = max(self._expected - NEAR, 2), self._expected + NEAR
        places = [n for n in range(first, last + 1) if self._source[n - 2 : n] == pair]
        return min(places, key=lambda n: abs(n - self._expected), default=None)
