"""Features on an engine: prompts, prefixes, long input, every declaration."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx import cli
from afm_mlx.constraints import Among
from afm_mlx.engine import Engine
from afm_mlx.errors import InputError
from afm_mlx.facts import Claim, unsupported
from afm_mlx.features import (
    CHANGE,
    FEATURES,
    NOTIFICATION_SUMMARY,
    PRIORITY,
    PROOFREAD,
    SMART_REPLY,
    SUMMARY,
    TABLE,
    Answer,
    Change,
    ChatMessage,
    Feature,
    Notification,
    NotificationStack,
    Progress,
    Proofread,
    Text,
    Thread,
    reading,
    respond,
    respond_together,
    run,
    writing,
)
from afm_mlx.features.declaration import Reading
from afm_mlx.features.inputs import Input
from afm_mlx.features.run import make_request, split
from afm_mlx.generation import GenerationOptions, SamplingMode
from afm_mlx.grounding import Text as Grounded
from afm_mlx.keeping import Keeping
from afm_mlx.text import words
from afm_mlx.tokenizer import Tokenizer
from tests.features.small import STACK, small

import pytest

INPUTS: dict[type, Input] = {
    NotificationStack: STACK,
    Thread: Thread((ChatMessage("Ana", "Are you in?"),)),
    Text: Text("i has two apple."),
    Change: Change("Lunch at 12.", "move it to 1"),
}


def size(text: str) -> int:
    return len(words(text))


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_answers(engine: Engine, name: str) -> None:
    feature = small(FEATURES[name])
    answer = asyncio.run(respond(engine, feature, INPUTS[feature.input]))
    assert answer.feature == name
    assert answer.metrics.generated_tokens > 0
    json.dumps(answer.to_json())
    assert isinstance(answer.text, str)


def test_features_answer_side_by_side_as_alone(engine: Engine) -> None:
    """A stack's line and its urgency in one batch; what is too long for one request, after it."""
    asked: list[tuple[Feature[Any], Any, str | None]] = [
        (small(NOTIFICATION_SUMMARY), STACK, None),
        (small(PRIORITY), STACK, None),
        (small(PROOFREAD, part_tokens=40), Text("one two. " * 12), None),
        (small(CHANGE), INPUTS[Change], None),
    ]

    async def work() -> tuple[list[Any], list[Any]]:
        together = await respond_together(engine, asked)
        return together, [await respond(engine, f, value) for f, value, _ in asked]

    found, wanted = asyncio.run(work())
    assert [(a.feature, a.value, a.notes) for a in found] == [
        (a.feature, a.value, a.notes) for a in wanted
    ]
    assert [a.parts > 1 for a in found] == [False, False, True, False]
    assert asyncio.run(respond_together(engine, [])) == []


def test_there_are_all_features() -> None:
    assert len(FEATURES) == 13
    for name, feature in FEATURES.items():
        assert feature.name == name
        for question, answer in feature.examples:
            assert question.strip() and answer.strip()


@pytest.mark.parametrize("name", FEATURES)
def test_examples_pass_their_own_reading(name: str) -> None:
    # An example that breaks the limits would teach the model to break them.
    feature = FEATURES[name]
    for question, answer in feature.examples:
        assert unsupported(answer, question, feature.facts) == ()
        if feature.input is Text:
            assert feature.read(answer, Text(question)).note is None
        elif feature.choices:
            assert answer in feature.choices
    if feature is NOTIFICATION_SUMMARY:
        assert all(len(words(answer)) <= 12 for _, answer in feature.examples)


def test_priority_is_a_choice(engine: Engine) -> None:
    answer = asyncio.run(respond(engine, small(PRIORITY), STACK))
    assert answer.value in (True, False)
    assert answer.text in ("yes", "no")


def test_second_request_finds_the_prefix(engine: Engine) -> None:
    feature = small(SUMMARY)
    first = asyncio.run(respond(engine, feature, Text("The bus is late.")))
    second = asyncio.run(respond(engine, feature, Text("A new one. Quite other words!")))
    assert first.metrics.cached_tokens == 0
    shared = engine.checkpoint.tokenizer.chat(feature.messages(Text("x")))[:-20]
    assert second.metrics.cached_tokens >= len(shared) - 10


def test_request_keeps_no_byte_of_the_input(tokenizer: Tokenizer) -> None:
    for value in ("abc", "\n\nabc", " ", "<|im_end|>"):
        request = make_request(SUMMARY, Text(value + "x"), tokenizer)
        prefix = tokenizer.decode(list(request.tokens[: request.keep]))
        assert prefix.endswith("<|im_start|>user")


def test_wrong_input_is_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="summary works on Text"):
        asyncio.run(respond(engine, SUMMARY, STACK))  # type: ignore[misc]


LONG = "The bus left. The dog ran after it. A man laughed! Was it his dog? Nobody knew. " * 4


def test_long_text_is_split_and_nothing_is_lost() -> None:
    pieces = split(small(PROOFREAD, part_tokens=12), Text(LONG), size)
    assert len(pieces) > 4
    assert "".join(p.text for p in pieces).strip() == LONG.strip()


def test_long_stack_and_thread_are_split() -> None:
    notifications = tuple(Notification(f"n{i}", "word " * 9) for i in range(9))
    stacks = split(
        small(NOTIFICATION_SUMMARY, part_tokens=40), NotificationStack("A", notifications), size
    )
    assert len(stacks) > 2
    assert [n.title for s in stacks for n in s.notifications] == [n.title for n in notifications]
    messages = tuple(ChatMessage(f"m{i}", "word " * 9) for i in range(9))
    threads = split(small(SMART_REPLY, part_tokens=40), Thread(messages), size)
    assert [m.sender for t in threads for m in t.messages] == [m.sender for m in messages]


def test_one_endless_notification_is_split() -> None:
    stack = NotificationStack("A", (Notification("n", "word. " * 500),))
    pieces = split(small(NOTIFICATION_SUMMARY, part_tokens=60), stack, size)
    assert len(pieces) > 5
    assert sum(len(words(n.body)) for p in pieces for n in p.notifications) == 500


class Echo:
    """Reads the model's babble as something known, and records what was asked."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, _: str, value: Any) -> Reading:
        self.seen.append(value)
        return Reading(f"<{len(self.seen)}>")


def collect(engine: Engine, feature: Feature[Any], value: Input) -> list[Progress | Answer]:
    async def work() -> list[Progress | Answer]:
        return [event async for event in run(engine, feature, value)]

    return asyncio.run(work())


def test_transformed_parts_are_joined(engine: Engine) -> None:
    echo = Echo()
    feature = small(CHANGE, part_tokens=80, read=echo)
    events = collect(engine, feature, Change(LONG, "shout"))
    answer = events[-1]
    assert isinstance(answer, Answer)
    assert answer.parts == len(echo.seen) > 3
    assert answer.value == "".join(f"<{i}>" for i in range(1, answer.parts + 1))
    assert "".join(c.text for c in echo.seen).strip() == LONG.strip()
    assert {c.instruction for c in echo.seen} == {"shout"}
    parts = [e.part for e in events if isinstance(e, Progress)]
    assert parts == sorted(parts) and set(parts) == set(range(1, answer.parts + 1))


def test_summary_condenses_what_came_before(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo = Echo()
    feature = small(SUMMARY, part_tokens=120, read=echo)
    monkeypatch.setattr(writing, "SUMMARY", feature)
    answer = collect(engine, feature, Text(LONG))[-1]
    assert isinstance(answer, Answer)
    assert answer.value == f"<{len(echo.seen)}>" and len(echo.seen) > 1
    assert [t.text.split("\n")[0] for t in echo.seen[1:]] == [
        f"<{i}>" for i in range(1, len(echo.seen))
    ]


def test_proofreading_cut_short_changes_nothing(engine: Engine) -> None:
    # Guards: the missing end of an answer would be offered as a deletion.
    text = Text("The bus is late and so am I.")
    feature = small(PROOFREAD, read=lambda _, t: reading.proofread(t.text[:-8], t))
    answer = asyncio.run(respond(engine, feature, text))
    assert answer.value == Proofread(text.text, ())
    assert answer.notes == ("the answer reached its limit: text unchanged",)


def test_edits_of_later_parts_keep_their_place(engine: Engine) -> None:
    def upper(_: str, text: Text) -> Reading:
        return reading.proofread(text.text.replace("dog", "cat"), text)

    # A choice lets the answer end by itself, which the tiny model's free text never does.
    feature = small(PROOFREAD, part_tokens=80, read=upper, choices=("a",))
    answer = asyncio.run(respond(engine, feature, Text(LONG)))
    assert isinstance(answer.value, Proofread)
    assert answer.value.corrected.strip() == LONG.replace("dog", "cat").strip()
    assert len(answer.value.edits) == LONG.count("dog")
    for edit in answer.value.edits:
        assert LONG[edit.start : edit.end] == edit.was


def test_titles_without_bodies_survive_a_split() -> None:
    items = tuple(Notification(f"Missed call {i}", "") for i in range(9))
    pieces = split(
        small(NOTIFICATION_SUMMARY, part_tokens=30), NotificationStack("Phone", items), size
    )
    assert [n.title for p in pieces for n in p.notifications] == [n.title for n in items]


def test_blank_lines_keep_later_edits_in_place() -> None:
    text = "aaa." + 40 * "\n" + "bbb c."
    pieces = split(small(PROOFREAD, part_tokens=10), Text(text), len)
    assert "".join(p.text for p in pieces) == text and len(pieces) == 2


def test_tables_of_parts_lose_no_column(engine: Engine) -> None:
    answers = iter(["no table here", "| a | b | c |\n| 1 | 2 | 3 |"])
    feature = small(
        TABLE, part_tokens=30, read=lambda _, t: reading.table(next(answers, "| a |\n| 9 |"), t)
    )
    rows = asyncio.run(respond(engine, feature, Text("One bus. " * 5))).value
    assert ["1", "2", "3"] in rows
    assert len({len(row) for row in rows}) == 1


def test_answer_without_room_says_so(engine: Engine) -> None:
    feature = small(CHANGE, read=lambda text, _: Reading(text))
    answer = asyncio.run(respond(engine, feature, Change("Lunch at 12.", "move it")))
    assert answer.notes == ("the answer reached its limit and may lack its end",)


def test_invented_facts_are_claims(engine: Engine) -> None:
    said = "Ana: lunch at 14:00 with Boris"
    feature = small(SUMMARY, read=lambda _, t: Reading(said))
    answer = asyncio.run(respond(engine, feature, Text("Ana: lunch at 13:00")))
    assert answer.claims == (Claim("time", "14:00", 14, 19), Claim("name", "Boris", 25, 30))
    assert [said[c.start : c.end] for c in answer.claims] == ["14:00", "Boris"]
    assert answer.to_json()["claims"][0] == {
        "kind": "time",
        "text": "14:00",
        "start": 14,
        "end": 19,
    }
    free = asyncio.run(respond(engine, replace(feature, facts=()), Text("Ana: lunch at 13:00")))
    assert free.claims == ()


def test_claims_of_a_table_are_those_of_its_cells(engine: Engine) -> None:
    # A head is made up by the model, as it has to be; but places count from the whole text.
    rows = [["Fahrzeug", "Preis"], ["a", "5"], ["b", "20"]]
    feature = small(TABLE, read=lambda _, t: Reading(rows))
    answer = asyncio.run(respond(engine, feature, Text("Mode a costs 5")))
    assert [answer.text[c.start : c.end] for c in answer.claims] == ["20"]


def test_an_earlier_part_is_part_of_the_source(engine: Engine) -> None:
    feature = small(SUMMARY, part_tokens=120, read=lambda _, t: Reading("It costs 45."))
    answer = asyncio.run(respond(engine, feature, Text("It costs 45. " + LONG)))
    assert answer.parts > 1 and answer.claims == ()


def test_who_is_held_to_the_source(tokenizer: Tokenizer) -> None:
    for feature in FEATURES.values():
        value: Any = INPUTS[feature.input]
        within = make_request(feature, value, tokenizer).within()
        kind = Grounded if feature.grounded else Keeping if feature.keeps else Among
        assert isinstance(within, kind) or (within is None and not feature.choices)
        assert (within is None) == (kind is Among and not feature.choices)
        free = make_request(feature, value, tokenizer, GenerationOptions(grounded=False))
        assert free.constraint is None or kind is Keeping
        assert feature.grounded <= bool(feature.facts)
    assert [f.name for f in FEATURES.values() if f.keeps] == ["proofread"]
    # These are asked for words of their own.
    assert not any(f.grounded for f in (CHANGE, SMART_REPLY, PRIORITY, PROOFREAD))
    named = make_request(SUMMARY, Text("x"), tokenizer, adapter="notes")
    assert named.adapter == "notes"


def test_grounded_answers_take_names_from_the_source(engine: Engine) -> None:
    source = "Ana: lunch in room 13 on Monday."
    feature = small(SUMMARY, read=lambda text, _: Reading(text), facts=("name", "number"))
    feature = replace(feature, answer_tokens=lambda _: 60)
    warm = GenerationOptions(SamplingMode.random(seed=1), 1.5, 60)

    def claims(grounded: bool) -> int:
        options = replace(warm, grounded=grounded)
        answer = asyncio.run(respond(engine, feature, Text(source), options))
        return len([c for c in answer.claims if c.end < len(answer.text) - 1])

    assert claims(True) == 0 < claims(False)


def test_too_long_input_is_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="1,000,000 characters, more than the limit of 200,000"):
        asyncio.run(respond(engine, SUMMARY, Text("x" * 1_000_000)))


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (NotificationStack, {"app": "A"}, "lacks the list 'notifications'"),
        (NotificationStack, {"app": "A", "notifications": []}, "no notifications"),
        (NotificationStack, {"app": 3, "notifications": []}, "lacks the text 'app'"),
        (NotificationStack, {"app": "A", "notifications": [7]}, "lacks the text 'title'"),
        (Thread, {"messages": "x"}, "lacks the list 'messages'"),
        (Thread, {"messages": []}, "no messages"),
        (Text, ["x"], "lacks the text 'text'"),
        (Text, {"text": " \n"}, "text is empty"),
        (Change, {"text": "x"}, "lacks the text 'instruction'"),
        (Change, {"text": "x", "instruction": ""}, "instruction is empty"),
    ],
)
def test_bad_json(kind: Any, data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind.from_json(data)


def test_demo_inbox_is_readable() -> None:
    data = json.loads((Path(cli.__file__).parent / "demo.json").read_text("utf-8"))
    for item in data["inbox"]:
        NotificationStack.from_json(item)
    for item in data["texts"]:
        FEATURES[item["feature"]].input.from_json(item)
