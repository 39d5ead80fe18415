"""Run a feature on an engine: stream the answer, split long input, read the result.

Nothing is cut silently. Input over ``Feature.part_tokens`` is worked on in parts at sentence
ends: transformed texts are joined again, summaries condense the earlier parts first.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

from afm_mlx.constraints import Constraint
from afm_mlx.engine import Engine
from afm_mlx.errors import CancelledRequestError, InputError
from afm_mlx.facts import Claim, english, unsupported
from afm_mlx.features import notifications, reading, writing
from afm_mlx.features.declaration import Feature, Reading
from afm_mlx.features.inputs import (
    Change,
    ChatMessage,
    Input,
    Notification,
    NotificationStack,
    Text,
    Thread,
)
from afm_mlx.features.reading import Proofread
from afm_mlx.generation import GenerationOptions, Metrics, Request, Snapshot
from afm_mlx.grounding import Grounding, vocabulary
from afm_mlx.keeping import Keeping
from afm_mlx.text import MAX_CHARACTERS, parts
from afm_mlx.tokenizer import Tokenizer

InputT = TypeVar("InputT", bound=Input)

Asked = tuple[Feature[Any], Any, str | None]
"""A feature, its input, and the name of an adapter or none."""
WARMTH = 0.7
"""Temperature of further answers where the first was greedy."""
NONE = (0, False)
"""The faults of an answer without any."""


@dataclass(frozen=True)
class Progress:
    """The text being written; ``part`` of ``parts``, from 1."""

    text: str
    part: int = 1
    parts: int = 1


@dataclass(frozen=True)
class Answer:
    """The end of a run.

    Attributes:
        value: what :class:`Reading` says it is, for the feature.
        text: the value as a person reads it.
        notes: what was done to the model's words, if anything.
        metrics: cost of all requests together.
        claims: facts of ``text`` that the input does not bear out, as far as the feature is held
            to it.
        cut: whether the model wrote more than the feature's limits let stand.
    """

    feature: str
    value: Any
    text: str
    notes: tuple[str, ...]
    parts: int
    metrics: Metrics
    claims: tuple[Claim, ...] = ()
    cut: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``; times in seconds, sizes in bytes."""
        value = asdict(self.value) if isinstance(self.value, Proofread) else self.value
        m = self.metrics
        return {
            "feature": self.feature,
            "value": value,
            "notes": list(self.notes),
            "claims": [asdict(claim) for claim in self.claims],
            "cut": self.cut,
            "parts": self.parts,
            "metrics": {
                **asdict(m),
                "tokens_per_second": m.tokens_per_second,
                "prompt_tokens_per_second": m.prompt_tokens_per_second,
            },
        }


async def run(
    engine: Engine,
    feature: Feature[InputT],
    value: InputT,
    options: GenerationOptions | None = None,
    max_characters: int = MAX_CHARACTERS,
    adapter: str | None = None,
    best_of: int | None = None,
) -> AsyncIterator[Progress | Answer]:
    """Stream ``feature`` on ``value``: progress while the model writes, then one answer.

    Args:
        adapter: name of the adapter to answer with, see :class:`afm_mlx.generation.Request`; it
            knows the feature without examples, and earlier parts of long input are condensed
            without it.
        best_of: where the first answer has faults, sample others up to that many, and take the
            one with the fewest; as the feature says if left out, and once without an adapter.

    Raises:
        InputError: the input is longer than ``max_characters``, or ``best_of`` is below 1.
        CancelledRequestError: the engine was closed meanwhile.
    """
    best_of = _attempts(feature, adapter, best_of)
    if best_of < 1:
        raise InputError(f"best_of counts answers, so it is at least 1, not {best_of}")
    length = len(feature.messages(value)[-1].content)
    if length > max_characters:
        raise InputError(
            f"the input has {length:,} characters, more than the limit of {max_characters:,}:"
            " split it, or raise --max-characters if you have the time"
        )
    tokenizer = (await engine.ready()).tokenizer
    pieces = await asyncio.to_thread(
        split, feature, value, lambda text: len(tokenizer.encode(text))
    )
    readings: list[Reading] = []
    spent: list[Metrics] = []
    earlier = ""
    for number, piece in enumerate(pieces, 1):
        last = number == len(pieces)
        asked: Feature[Any] = feature if last or feature.long == "join" else _condenser(feature)
        piece = _prepend(earlier, piece) if feature.long == "condense" else piece
        named = adapter if asked is feature else None
        request = await asyncio.to_thread(make_request, asked, piece, tokenizer, options, named)
        attempts: list[tuple[tuple[int, bool], Reading]] = []
        for attempt in range(best_of):
            snapshot = Snapshot("")
            async for snapshot in engine.generate(_varied(request, attempt)):
                yield Progress(snapshot.text, number, len(pieces))
            if snapshot.finish_reason == "cancelled":
                raise CancelledRequestError("the engine was closed: open another one and ask again")
            spent.append(snapshot.metrics)
            read = _read(asked, piece, snapshot)
            faults = _faults(asked, piece, read)
            attempts.append((faults, read))
            if faults == NONE:
                break
        _, read = min(attempts, key=lambda attempt: attempt[0])
        earlier = _plain(read.value)
        readings.append(read)
    yield await asyncio.to_thread(_answer, feature, value, pieces, readings, spent)


def _answer(
    feature: Feature[Any],
    value: Any,
    pieces: list[Any],
    readings: list[Reading],
    spent: list[Metrics],
) -> Answer:
    """The answer that the readings of all parts make."""
    if feature.long == "condense":
        final = readings[-1]
    else:
        whole = _join(pieces, [r.value for r in readings])
        final = Reading(whole, cut=any(r.cut for r in readings))
    notes = [
        f"part {i}: {r.note}" if len(pieces) > 1 else r.note
        for i, r in enumerate(readings, 1)
        if r.note
    ]
    claims = _claims(feature, value, final.value)
    metrics = sum(spent[1:], spent[0])
    text = _plain(final.value)
    return Answer(
        feature.name, final.value, text, tuple(notes), len(pieces), metrics, claims, final.cut
    )


async def respond(
    engine: Engine,
    feature: Feature[InputT],
    value: InputT,
    options: GenerationOptions | None = None,
    adapter: str | None = None,
    best_of: int | None = None,
) -> Answer:
    """The answer of :func:`run`, without the progress."""
    async for event in run(engine, feature, value, options, adapter=adapter, best_of=best_of):
        if isinstance(event, Answer):
            return event
    raise AssertionError("a run ends with an answer")


async def respond_together(
    engine: Engine, asked: Sequence[Asked], best_of: int | None = None
) -> list[Answer]:
    """Answers in the order of ``asked``, written side by side, each with its adapter: weights are
    read once a token for all of them. Input in several parts is answered alone, afterwards, and
    that whose answer has faults where the feature has others sampled.

    Raises:
        CancelledRequestError: the engine was closed meanwhile.
    """
    tokenizer = (await engine.ready()).tokenizer

    def size(text: str) -> int:
        return len(tokenizer.encode(text))

    found: dict[int, Answer] = {}
    short = [
        i
        for i, (feature, value, _) in enumerate(asked)
        if size(feature.render(value)) <= feature.part_tokens
    ]
    requests = [make_request(*asked[i][:2], tokenizer, adapter=asked[i][2]) for i in short]
    async for place, snapshot in engine.generate_batch(requests):
        if snapshot.finish_reason == "cancelled":
            raise CancelledRequestError("the engine was closed: open another one and ask again")
        if snapshot.finish_reason is not None:
            feature, value, adapter = asked[short[place]]
            read = _read(feature, value, snapshot)
            once = _attempts(feature, adapter, best_of) == 1
            if once or _faults(feature, value, read) == NONE:
                answer = _answer(feature, value, [value], [read], [snapshot.metrics])
                found[short[place]] = answer
    for i, (feature, value, adapter) in enumerate(asked):
        if i not in found:
            found[i] = await respond(engine, feature, value, adapter=adapter, best_of=best_of)
    return [found[i] for i in range(len(asked))]


def make_request(
    feature: Feature[InputT],
    value: InputT,
    tokenizer: Tokenizer,
    options: GenerationOptions | None = None,
    adapter: str | None = None,
) -> Request:
    """The request that asks for ``value``; what all its requests share is marked to keep.

    With an adapter it has no examples, so it is several times shorter.
    """
    messages = feature.messages(value, examples=not adapter)
    tokens = tokenizer.chat(messages)
    size = len(tokenizer.encode(messages[-1].content))
    options = options or GenerationOptions(maximum_response_tokens=feature.answer_tokens(size))
    constraint: Callable[[], Constraint] | None = None
    if feature.grounded and options.grounded and english(value.source):
        known = vocabulary(tokenizer)
        constraint = Grounding(known, value.source).start if known else None
    elif feature.keeps:
        kept = [*tokenizer.encode(value.source.strip()), *sorted(tokenizer.eos_token_ids)[:1]]
        constraint = partial(Keeping, kept, feature.keeps)
    return Request(
        tokens,
        options,
        keep=_shared(tokens, tokenizer.chat([*messages[:-1], replace(messages[-1], content="")])),
        choices=tuple(tuple(tokenizer.encode(c)) for c in feature.choices),
        favours=feature.favours if adapter else (),
        stop=feature.stop,
        lines=feature.lines,
        adapter=adapter,
        constraint=constraint,
    )


def _varied(request: Request, attempt: int) -> Request:
    """``request`` for another answer to it; the first is as asked, often greedy."""
    if not attempt:
        return request
    given = request.options
    sampled = given.sampling.kind == "random"
    mode = replace(given.sampling, kind="random", seed=(given.sampling.seed or 0) + attempt)
    warmth = given.temperature if sampled else WARMTH
    return replace(request, options=replace(given, sampling=mode, temperature=warmth))


def _read(feature: Feature[Any], piece: Any, snapshot: Snapshot) -> Reading:
    read = feature.read(snapshot.text, piece)
    if snapshot.finish_reason != "length":
        return read
    if isinstance(read.value, Proofread):
        # What is missing at its end would pass for deletions.
        unchanged = Proofread(piece.text, ())
        return Reading(unchanged, "the answer reached its limit: text unchanged")
    note = read.note or "the answer reached its limit and may lack its end"
    return replace(read, note=note)


def _attempts(feature: Feature[Any], adapter: str | None, best_of: int | None) -> int:
    """How many answers there may be until one has no faults: as asked for, or as the feature has
    it for its adapter."""
    if best_of is not None:
        return best_of
    return feature.best_of if adapter else 1


def _faults(feature: Feature[Any], piece: Any, read: Reading) -> tuple[int, bool]:
    """How much an answer has that it should not have, or lacks, and whether it was cut."""
    found = len(_claims(feature, piece, read.value)) + bool(read.note)
    return found + feature.lacks(_plain(read.value), piece), read.cut


def _claims(feature: Feature[Any], value: Any, answer: Any) -> tuple[Claim, ...]:
    """What ``answer`` states beyond ``value``; a table's head is of the model's own."""
    if not feature.facts:
        return ()
    text = _plain(answer)
    if isinstance(answer, list) and answer and isinstance(answer[0], list):
        head = text.index("\n")
        text = " " * head + text[head:]
    return unsupported(text, value.source, feature.facts)


def _shared(a: list[int], b: list[int]) -> int:
    """Tokens before the person's input: one less than common, since text may merge there."""
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))
    return max(n - 1, 0)


def split(feature: Feature[InputT], value: InputT, size: Callable[[str], int]) -> list[Any]:
    """``value`` in parts of at most ``feature.part_tokens`` by ``size``; often just one."""
    limit = feature.part_tokens
    if size(feature.render(value)) <= limit:
        return [value]
    if isinstance(value, Text | Change):
        return [replace(value, text=p) for p in parts(value.text, size, limit)]
    if isinstance(value, Thread):
        lines = [
            ChatMessage(m.sender, p)
            for m in value.messages
            for p in parts(m.text, size, limit) or [""]
        ]
        return [Thread(tuple(g)) for g in _groups(lines, lambda m: size(m.text) + 8, limit)]
    items = [
        replace(n, body=p) for n in value.notifications for p in parts(n.body, size, limit) or [""]
    ]
    return [
        replace(value, notifications=tuple(g))
        for g in _groups(items, lambda n: size(n.title) + size(n.body) + 8, limit)
    ]


def _groups(items: list[Any], size: Callable[[Any], int], limit: int) -> list[list[Any]]:
    out: list[list[Any]] = [[]]
    used = 0
    for item in items:
        if out[-1] and used + size(item) > limit:
            out.append([])
            used = 0
        out[-1].append(item)
        used += size(item)
    return out


def _condenser(feature: Feature[Any]) -> Feature[Any]:
    """The feature that shortens an earlier part, for the next one to build on."""
    if feature.input is NotificationStack:
        return notifications.NOTIFICATION_SUMMARY
    if feature.input is Thread:
        return Feature(
            name="thread-summary",
            title="Thread summary",
            instructions=writing.SUMMARY.instructions,
            examples=writing.SUMMARY.examples,
            input=Thread,
            render=notifications.render_thread,
            read=lambda text, t: reading.summary(text, Text(notifications.render_thread(t))),
            answer_tokens=writing.SUMMARY.answer_tokens,
            facts=writing.SUMMARY.facts,
            grounded=writing.SUMMARY.grounded,
        )
    return writing.SUMMARY


def _prepend(earlier: str, piece: Any) -> Any:
    if not earlier:
        return piece
    if isinstance(piece, NotificationStack):
        first = Notification("Earlier", earlier)
        return replace(piece, notifications=(first, *piece.notifications))
    if isinstance(piece, Thread):
        return Thread((ChatMessage("Earlier", earlier), *piece.messages))
    return replace(piece, text=f"{earlier}\n\n{piece.text}")


def _plain(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, Proofread):
        return value.corrected
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and value and isinstance(value[0], list):
        head, *rows = value
        lines = [head, ["---"] * len(head), *rows]
        return "\n".join("| " + " | ".join(row) + " |" for row in lines)
    if isinstance(value, list):
        return "\n".join(f"- {item}" for item in value)
    return str(value)


def _join(pieces: list[Any], values: list[Any]) -> Any:
    """Answers to parts of one text as one answer."""
    if isinstance(values[0], Proofread):
        edits, offset = [], 0
        for piece, value in zip(pieces, values, strict=True):
            for e in value.edits:
                edits.append(replace(e, start=e.start + offset, end=e.end + offset))
            offset += len(piece.text)
        return Proofread("".join(v.corrected for v in values), tuple(edits))
    if isinstance(values[0], str):
        return "".join(values)
    if values[0] and isinstance(values[0][0], list):
        head = values[0][0]
        rows = [row for v in values for row in (v if v[0] != head else v[1:])]
        width = max(map(len, [head, *rows]))
        return [row + [""] * (width - len(row)) for row in [head, *rows]]
    return [item for value in values for item in value]
