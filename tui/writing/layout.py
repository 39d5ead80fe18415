"""What the pane of the result shows, as plain values: made beside the loop, drawn on it."""

from dataclasses import dataclass
from typing import Literal

from afm_mlx.tui.writing.desk import Desk
from afm_mlx.tui.writing.review import Correction, Review
from afm_mlx.tui.writing.worddiff import Marked, Piece, diff, marked, signed
from afm_mlx.tui.writing.work import Result

View = Literal["result", "changes", "original"]


@dataclass(frozen=True)
class Layout:
    """A result as it is shown.

    Attributes:
        sheet: the text to show, where neither ``rows`` nor ``replies`` are.
        remarks: lines below it, the most important first.
        review: whether there are corrections to decide on.
        lost: whether an original sentence can be kept.
    """

    title: str
    sheet: Marked = Marked("", {})
    rows: tuple[tuple[str, ...], ...] = ()
    replies: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    review: bool = False
    lost: bool = False


def layout(desk: Desk, view: View) -> Layout:
    """The result on ``desk``, or its original, or the words in which the two differ."""
    result = desk.result
    if result is None:
        return Layout("Result")
    title = result.job.tool.label + ("" if result.job.whole else " · selection")
    if view == "original":
        return Layout(f"{title} · original", marked([(Piece("same", result.job.original), False)]))
    if view == "changes" and result.review is None:
        pieces = diff(result.job.original, result.text)
        return Layout(f"{title} · changes", marked((p, False) for p in pieces))
    state = " · in the text" if result.taken and not result.review else ""
    review = result.review
    return Layout(
        title + state,
        _sheet(result),
        result.rows,
        result.replies,
        remarks(result),
        review is not None and bool(review.corrections),
        bool(result.lost) and result.job.tool.kind == "rewrite",
    )


def _sheet(result: Result) -> Marked:
    review = result.review
    if result.rows or result.replies:
        return Marked("", {})
    if review is None:
        return marked([(Piece("same", result.text), False)])
    return marked((piece, number == review.current) for piece, number in review.pieces())


def remarks(result: Result) -> tuple[str, ...]:
    """What a person should know of a result, the most important first."""
    out = [f"! lost: {p.text} ({p.kind})" for p in result.lost]
    if result.claims:
        out.append(f"? not in the text: {', '.join(result.claims)}")
    out += [f"· {note}" for note in result.notes]
    if result.review is not None:
        out.insert(0, _state(result.review))
    if result.replies:
        out.append("Enter puts the reply into the text")
    if result.job.instructions:
        told = (f"{i} {line}" for i, line in enumerate(result.job.instructions, 1))
        out.append(f"asked for: {' → '.join(told)}")
    if result.job.attempt:
        out.append(f"answer {result.job.attempt + 1}")
    return tuple(out)


def _state(review: Review) -> str:
    count = len(review.corrections)
    if not count:
        return "no corrections"
    current = review.corrections[review.current]
    told = f"{review.current + 1}/{count} {_change(current)} · {current.reason}"
    decided = {"open": "", "kept": " · kept", "undone": " · undone"}[current.decision]
    left = review.count("open")
    return f"{told}{decided} · {left} open" if left else f"{told}{decided} · all decided"


def _change(c: Correction) -> str:
    pieces = [Piece("removed", c.was)] * bool(c.was) + [Piece("added", c.to)] * bool(c.to)
    return " ".join(signed(p) for p in pieces)
