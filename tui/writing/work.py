"""One piece of work: a tool on a text, around what is protected, and what came of it."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from afm_mlx.errors import DecodingFailureError, InputError
from afm_mlx.features import Answer, Change, Feature, Progress, Text
from afm_mlx.generation import GenerationOptions
from afm_mlx.tui.writing import protect, thread
from afm_mlx.tui.writing.protect import Protected, Stretch
from afm_mlx.tui.writing.review import Correction, Review
from afm_mlx.tui.writing.textfile import plain_ends
from afm_mlx.tui.writing.tools import Tool, another


class Door(Protocol):
    """What the work needs of :class:`afm_mlx.tui.services.Services`."""

    def run(
        self, feature: Feature[Any], value: Any, *, options: GenerationOptions | None = None
    ) -> Any:
        """Progress, then an answer."""
        ...


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        source: the part of the text that the result takes the place of, as it stands there.
        start: where it stands.
        original: that part before anything was done to it.
        base: what the model works on: the same, or for a follow-up the result before.
        instructions: of a described change and of those before it, the newest last.
        attempt: which answer this is, from 0.
        whole: whether the part is the whole text.
    """

    tool: Tool
    source: str
    start: int = 0
    original: str = ""
    base: str = ""
    instructions: tuple[str, ...] = ()
    attempt: int = 0
    whole: bool = True

    @classmethod
    def on(cls, tool: Tool, text: str, start: int, end: int, instruction: str = "") -> "Job":
        """A job on characters ``start`` to ``end``, or on all of ``text`` if that is none."""
        whole = start == end
        if whole:
            start, end = 0, len(text)
        part = text[start:end]
        told = (instruction,) if instruction else ()
        return cls(tool, part, start, part, part, told, whole=whole)


@dataclass(frozen=True)
class Written:
    """What the model has written so far of one piece; another ``piece`` follows after it."""

    piece: tuple[int, int]
    text: str
    part: int = 1
    parts: int = 1


@dataclass(frozen=True)
class Result:
    """What came of a job.

    Attributes:
        text: what would take the place of the source.
        rows: of a table, the head first.
        replies: to choose from.
        review: of a proofread text.
        notes: what was done to the model's words.
        claims: what it states beyond the text.
        lost: what was to stay and did not.
        taken: whether it stands in the text.
    """

    job: Job
    text: str
    rows: tuple[tuple[str, ...], ...] = ()
    replies: tuple[str, ...] = ()
    review: Review | None = None
    notes: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    lost: tuple[Protected, ...] = ()
    taken: bool = False


async def do(door: Door, job: Job) -> AsyncGenerator[Written | Result, None]:
    """Do ``job``: what is written as it comes, then one result.

    Raises:
        InputError: there is nothing to work on.
        AFMError: whatever keeps the model from answering.
    """
    tool = job.tool
    found = await asyncio.to_thread(protect.protected, job.base)
    pieces = _pieces(job, found)
    answers: list[tuple[Stretch, Answer | None]] = []
    for number, piece in enumerate(pieces):
        if not piece.free:
            yield Written((number, 0), piece.text)
            answers.append((piece, None))
            continue
        value = _value(job, piece.text)
        options = another(tool, piece.text, job.attempt)
        answer = None
        async with aclosing(door.run(tool.feature, value, options=options)) as events:
            async for event in events:
                if isinstance(event, Progress):
                    at = (number, event.part)
                    yield Written(at, event.text, event.part, event.parts)
                elif isinstance(event, Answer):
                    answer = event
        if answer is None:
            raise DecodingFailureError("the run ended without an answer: try again")
        answers.append((piece, answer))
    yield await asyncio.to_thread(_result, job, answers, found)


def _pieces(job: Job, found: Sequence[Protected]) -> list[Stretch]:
    """What the model works on one after the other, and the blocks between."""
    alone = [Stretch(job.base, 0, True)]
    if job.tool.kind not in ("proofread", "rewrite") or not job.base.strip():
        return alone
    pieces = protect.stretches(job.base, found)
    if not any(p.free for p in pieces):
        raise InputError("all of it is code or quoted: choose a text of your own words")
    return pieces


def _value(job: Job, text: str) -> Any:
    if job.tool.kind == "reply":
        return thread.parse(text)
    return Change(text, job.instructions[-1]) if job.instructions else Text(text)


def _result(
    job: Job, answers: Sequence[tuple[Stretch, Answer | None]], found: Sequence[Protected]
) -> Result:
    given = [answer for _, answer in answers if answer is not None]
    result = Result(
        job,
        plain_ends("".join(p.text if a is None else a.text for p, a in answers)),
        notes=tuple(dict.fromkeys(note for answer in given for note in answer.notes)),
        claims=tuple(dict.fromkeys(c.text for answer in given for c in answer.claims)),
    )
    value = given[0].value
    match job.tool.kind:
        case "proofread":
            return _reviewed(result, answers, found)
        case "reply":
            return replace(result, replies=tuple(value))
        case "rewrite":
            return checked(result)
    head = job.base[: len(job.base) - len(job.base.lstrip())]
    tail = job.base[len(job.base.rstrip()) :]
    result = replace(result, text=head + result.text.strip() + tail)
    if isinstance(value[0], list):
        result = replace(result, rows=tuple(tuple(row) for row in value))
    return checked(result) if job.tool.kind == "list" else result


def _reviewed(
    result: Result, answers: Sequence[tuple[Stretch, Answer | None]], found: Sequence[Protected]
) -> Result:
    proposed = [
        Correction.of(edit, piece.start)
        for piece, answer in answers
        if answer is not None
        for edit in answer.value.edits
    ]
    review = Review.of(result.job.base, proposed, found)
    notes = result.notes
    if review.spared:
        notes += (f"{review.spared} left out that would alter code, a link or an address",)
    return replace(result, text=review.proposed, review=review, notes=notes)


def checked(result: Result) -> Result:
    """``result`` with what is lost of the protected parts of its original."""
    found = [p for p in protect.protected(result.job.original) if not p.block]
    return replace(result, lost=protect.lost(found, result.text))


def keep_original(result: Result) -> Result:
    """``result`` with the original sentence of the first thing that was lost."""
    if not result.lost or result.job.tool.kind != "rewrite":
        return result  # a row or an item is no sentence
    text = protect.keep_sentence(result.job.original, result.text, result.lost[0])
    return checked(replace(result, text=text))
