"""Undo and redo: the states that something went through, and which of them is the present one."""

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

T = TypeVar("T")

LIMIT = 100
"""Steps that can be undone; each may hold a long text."""


@dataclass(frozen=True)
class History(Generic[T]):
    """A present state with a past to go back to, and a future that was undone.

    Attributes:
        past: ``(label, state)`` pairs, oldest first; the label is of the step that led away
            from the state.
        future: those that were undone, next first; the label is of the step that leads there.
    """

    present: T
    past: tuple[tuple[str, T], ...] = ()
    future: tuple[tuple[str, T], ...] = ()
    limit: int = LIMIT

    def step(self, label: str, state: T) -> "History[T]":
        """Go on to ``state``; what was undone is forgotten. No step if nothing changes."""
        if state == self.present:
            return self
        past = (*self.past, (label, self.present))[-self.limit :]
        return replace(self, present=state, past=past, future=())

    def undo(self) -> "History[T]":
        """One step back; the same at the beginning."""
        if not self.past:
            return self
        label, state = self.past[-1]
        future = ((label, self.present), *self.future)
        return replace(self, present=state, past=self.past[:-1], future=future)

    def redo(self) -> "History[T]":
        """One step forward again; the same at the end."""
        if not self.future:
            return self
        label, state = self.future[0]
        past = (*self.past, (label, self.present))
        return replace(self, present=state, past=past, future=self.future[1:])

    @property
    def undoes(self) -> str:
        """Label of the step that :meth:`undo` takes back; empty at the beginning."""
        return self.past[-1][0] if self.past else ""

    @property
    def redoes(self) -> str:
        """Label of the step that :meth:`redo` takes again; empty at the end."""
        return self.future[0][0] if self.future else ""
