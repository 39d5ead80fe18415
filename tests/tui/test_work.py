"""A tool's work without the screen: around what is protected, and with another seed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from afm_mlx.errors import DecodingFailureError, InputError
from afm_mlx.facts import Claim
from afm_mlx.features import Answer, Change, Edit, Feature, Progress, Proofread, Text
from afm_mlx.generation import GenerationOptions, Metrics
from afm_mlx.tui.writing.tools import BY_NAME, another
from afm_mlx.tui.writing.work import Door, Job, Result, Written, do, keep_original
from tests.tui.support import fake_services

import pytest


class Scripted:
    """Answers with given values, one after the other."""

    def __init__(self, *values: Any, notes: tuple[str, ...] = ()) -> None:
        self.values, self.notes = list(values), notes
        self.asked: list[Any] = []

    async def run(
        self, feature: Feature[Any], value: Any, *, options: GenerationOptions | None = None
    ) -> AsyncIterator[Progress | Answer]:
        self.asked.append(value)
        yield Progress("so far")
        if self.values:
            given = self.values.pop(0)
            text = given.corrected if isinstance(given, Proofread) else str(given)
            claims = (Claim("name", "Bo", 0, 2),)
            yield Answer(feature.name, given, text, self.notes, 1, Metrics(), claims)


def done(door: Door, job: Job) -> tuple[list[Written], Result]:
    async def run() -> list[Written | Result]:
        return [event async for event in do(door, job)]

    events = asyncio.run(run())
    result = events.pop()
    assert isinstance(result, Result)
    return [e for e in events if isinstance(e, Written)], result


def job(tool: str, text: str, instruction: str = "") -> Job:
    return Job.on(BY_NAME[tool], text, 0, 0, instruction)


SOURCE = "Hey you.\n```\nteh = 1\n```\nSee teh a@b.org ok\n"


def test_a_rewrite_goes_around_blocks() -> None:
    door = Scripted("Hi.\n", "Mail us\u2028now\r\n", notes=("one note",))
    written, result = done(door, job("rewrite", SOURCE))
    assert door.asked == [Text("Hey you.\n"), Text("See teh a@b.org ok\n")]
    assert result.text == "Hi.\n```\nteh = 1\n```\nMail us\nnow\n"
    assert [w.text for w in written] == ["so far", "```\nteh = 1\n```\n", "so far"]
    assert (result.notes, result.claims) == (("one note",), ("Bo",))
    assert [p.text for p in result.lost] == ["a@b.org"]
    kept = keep_original(result)
    assert kept.lost == () and "See teh a@b.org ok\n" in kept.text


def test_corrections_lie_where_their_stretch_lies() -> None:
    door = Scripted(
        Proofread("Hey you!\n", (Edit(4, 8, "you.", "you!"),)),
        Proofread(
            "See the ab.org ok\n", (Edit(4, 7, "teh", "the"), Edit(8, 15, "a@b.org", "ab.org"))
        ),
    )
    _, result = done(door, job("proofread", SOURCE))
    assert result.text == SOURCE.replace("you.", "you!").replace("See teh", "See the")
    assert "left out" in result.notes[0]


def test_a_list_keeps_the_blanks_around_its_text() -> None:
    # The line after a selection was joined to the list.
    _, result = done(Scripted(["a", "b"]), job("list", "\nfoo a@b.org\n\n"))
    assert result.text.startswith("\n") and result.text.endswith("\n\n")
    assert [p.text for p in result.lost] == ["a@b.org"]
    assert keep_original(result) == result  # an item is no sentence
    _, summary = done(Scripted("Foo."), job("summary", "foo a@b.org"))
    assert summary.lost == ()


def test_a_follow_up_is_held_to_the_first_text() -> None:
    first = job("change", "Mail a@b.org now.", "shorter")
    second = Job(first.tool, first.source, 0, first.original, "Mail now.", ("shorter", "nicer"))
    door = Scripted("Please mail.")
    _, result = done(door, second)
    assert door.asked == [Change("Mail now.", "nicer")]
    assert [p.text for p in result.lost] == ["a@b.org"]


@pytest.mark.parametrize(
    ("tool", "text", "said"),
    [
        ("rewrite", " \n", "the text is empty"),
        ("rewrite", "> a\n", "your own words"),
        ("smart-reply", "hello", "no name"),
    ],
)
def test_what_there_is_nothing_to_do_with(tool: str, text: str, said: str) -> None:
    door = Scripted("x")
    with pytest.raises(InputError, match=said):
        done(door, job(tool, text))
    assert door.asked == []


def test_a_run_without_an_answer() -> None:
    with pytest.raises(DecodingFailureError, match="try again"):
        done(Scripted(), job("rewrite", "hey"))


def test_limits_of_another_answer() -> None:
    tool = BY_NAME["rewrite"]
    assert another(tool, "short", 0) is None
    options = another(tool, "日本" * 5, 2)
    assert options is not None and options.sampling.seed == 2
    # Two characters may be six tokens: the answer would miss its end.
    assert options.maximum_response_tokens == tool.feature.answer_tokens(30)
    long = another(tool, "x" * 10_000, 1)
    assert long is not None
    assert long.maximum_response_tokens == tool.feature.answer_tokens(tool.feature.part_tokens)


def test_another_answer_of_a_real_model_is_another_text() -> None:
    async def texts() -> list[str]:
        services = fake_services(None)
        try:
            out = []
            for attempt in (1, 1, 2):
                asked = Job(BY_NAME["rewrite"], "hey", 0, "hey", "hey", attempt=attempt)
                *_, result = [event async for event in do(services, asked)]
                assert isinstance(result, Result)
                out.append(result.text)
            return out
        finally:
            await services.close()

    first, again, other = asyncio.run(texts())
    assert first == again != other
