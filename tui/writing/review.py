"""Proofreading one change at a time: which corrections a person kept, undid, or left open."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Literal

from afm_mlx.features import Edit
from afm_mlx.tui.writing.protect import Protected, touches
from afm_mlx.tui.writing.textfile import plain_ends
from afm_mlx.tui.writing.worddiff import Piece, reason

Decision = Literal["open", "kept", "undone"]


@dataclass(frozen=True)
class Correction:
    """One proposed change: characters ``start`` to ``end`` of the text become ``to``."""

    start: int
    end: int
    was: str
    to: str
    reason: str
    decision: Decision = "open"

    @classmethod
    def of(cls, edit: Edit, offset: int = 0) -> "Correction":
        """That of a proofread part which begins at ``offset``."""
        given = str(asdict(edit).get("reason") or "")  # not every model gives one
        start, end = edit.start + offset, edit.end + offset
        to = plain_ends(edit.to)
        return cls(start, end, edit.was, to, given or reason(edit.was, to))


@dataclass(frozen=True)
class Review:
    """A text, what is proposed for it, and what a person decided so far.

    Attributes:
        current: index of the correction that the next decision is about.
        spared: how many were left out because they alter something protected.
    """

    text: str
    corrections: tuple[Correction, ...]
    current: int = 0
    spared: int = 0

    @classmethod
    def of(
        cls, text: str, proposed: Iterable[Correction], found: Iterable[Protected] = ()
    ) -> "Review":
        """Without the corrections that touch what is protected."""
        found, proposed = tuple(found), tuple(proposed)
        kept = tuple(c for c in proposed if not touches(c.start, c.end, c.to, found))
        return cls(text, kept, spared=len(proposed) - len(kept))

    @property
    def decided(self) -> str:
        """The text with the corrections that were kept, as it stands now."""
        return self._with(("kept",))

    @property
    def proposed(self) -> str:
        """The text with all corrections but the undone ones."""
        return self._with(("kept", "open"))

    def _with(self, decisions: tuple[Decision, ...]) -> str:
        out, position = [], 0
        for c in self.corrections:
            if c.decision in decisions:
                out += [self.text[position : c.start], c.to]
                position = c.end
        return "".join([*out, self.text[position:]])

    def decide(self, decision: Decision) -> "Review":
        """Keep or undo the current correction, and go to the next open one."""
        if not self.corrections:
            return self
        i = self.current
        decided = replace(self.corrections[i], decision=decision)
        corrections = (*self.corrections[:i], decided, *self.corrections[i + 1 :])
        ahead = [*range(i + 1, len(corrections)), *range(i)]
        following = (k for k in ahead if corrections[k].decision == "open")
        return replace(self, corrections=corrections, current=next(following, i))

    def decide_all(self, decision: Decision, only_open: bool = False) -> "Review":
        """Keep or undo all, or only those that are still open."""
        return replace(
            self,
            corrections=tuple(
                c if only_open and c.decision != "open" else replace(c, decision=decision)
                for c in self.corrections
            ),
        )

    def go(self, by: int) -> "Review":
        """Look at another correction, round the end."""
        count = len(self.corrections)
        return replace(self, current=(self.current + by) % count) if count else self

    def count(self, decision: Decision) -> int:
        return sum(c.decision == decision for c in self.corrections)

    def pieces(self) -> list[tuple[Piece, int | None]]:
        """The text with its corrections as removed and added pieces, and which one each is of.

        A correction that was decided on is told by what is left of it: kept ones are all
        ``+added+``, undone ones the same as before.
        """
        out: list[tuple[Piece, int | None]] = []
        position = 0
        for i, c in enumerate(self.corrections):
            out += [(Piece("same", self.text[position : c.start]), None)] * (position < c.start)
            position = c.end
            if c.decision == "undone":
                out += [(Piece("same", c.was), i)] * bool(c.was)
                continue
            if c.decision == "open" and c.was:
                out.append((Piece("removed", c.was), i))
            if c.to:
                out.append((Piece("added", c.to), i))
        rest = self.text[position:]
        return [*out, (Piece("same", rest), None)] if rest else out
