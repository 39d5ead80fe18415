"""Rows go through the features themselves, once each, and a broken run goes on."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from afm_mlx.engine import Engine
from afm_mlx.errors import InputError
from afm_mlx.evaluation import (
    Answered,
    Answers,
    EvaluationOptions,
    Task,
    evaluate,
    load,
    run,
    settings,
)
from afm_mlx.features import Answer, respond_together
from afm_mlx.features.run import Asked

import pytest

KINDS = ("priority", "notification-summary", "adversarial")


@pytest.fixture
def tasks(data: Path) -> list[Task]:
    """Tasks whose prompts fit the tiny model's window."""
    return [
        replace(
            task,
            feature=replace(
                task.feature, instructions="Do it.", examples=(), answer_tokens=lambda _: 6
            ),
        )
        for task in load(data, KINDS)
    ]


def work(
    engine: Engine,
    tasks: list[Task],
    answers: Answers,
    variants: Mapping[str, Mapping[str, str]] | None = None,
    stop: int | None = None,
    **options: Any,
) -> list[Answered]:
    async def collect() -> list[Answered]:
        found: list[Answered] = []
        chosen = EvaluationOptions(**options)
        async for event in evaluate(engine, tasks, variants or {"": {"": ""}}, answers, chosen):
            found.append(event)
            if len(found) == stop:
                break
        return found

    return asyncio.run(collect())


def test_every_row_is_answered_once(engine: Engine, tasks: list[Task]) -> None:
    answers = Answers({})
    events = work(engine, tasks, answers)
    assert [(e.done, e.total) for e in events] == [(n, 8) for n in range(1, 9)]
    assert [(t.kind, t.id) for t in tasks] == [(e.given.kind, e.given.id) for e in events]
    assert all(e.given.tokens > 0 and e.given.seconds > 0 for e in events)
    assert [*answers.known.values()] == [e.given for e in events]
    assert isinstance(events[0].given.text, str)


def test_a_broken_run_goes_on(
    engine: Engine, tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "ROWS", 2)
    path = tmp_path / "new" / "all.answers.jsonl"
    first = work(engine, tasks, Answers({"model": "a"}, path), stop=3)
    with path.open("a") as file:
        file.write('{"variant": "", "kind": "prio')  # what kill -9 may leave
    with mock.patch.object(run, "respond_together", side_effect=respond_together) as asked:
        second = work(engine, tasks, Answers({"model": "a"}, path))
    assert [len(call.args[1]) for call in asked.call_args_list] == [2, 2]  # of 8, 4 were there
    assert second[:3] == first
    whole = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    assert len(whole) == 1 + len(tasks)
    again = Answers({"model": "a"}, path)
    assert [*again.known.values()] == [e.given for e in second]
    with pytest.raises(InputError, match=r"another evaluation \(model changed\)"):
        Answers({"model": "b"}, path)


@pytest.mark.parametrize("begun", ["", '{"settings": {"mod'])
def test_a_run_killed_in_its_first_line_goes_on(
    engine: Engine, tasks: list[Task], tmp_path: Path, begun: str
) -> None:
    """Its settings were never written then, and the next run refused all answers after it."""
    path = tmp_path / "all.answers.jsonl"
    path.write_text(begun)
    events = work(engine, tasks[:2], Answers({"model": "a"}, path))
    again = Answers({"model": "a"}, path)
    assert [*again.known.values()] == [e.given for e in events]


def test_adapters_answer_what_they_are_for(engine: Engine, tasks: list[Task]) -> None:
    called: list[Any] = []

    async def note(engine: Engine, asked: Sequence[Asked], best_of: int | None) -> list[Answer]:
        called.extend((adapter, best_of) for _, _, adapter in asked)
        return await respond_together(engine, [(f, value, None) for f, value, _ in asked])

    with mock.patch.object(run, "respond_together", note):
        variants = {"": {"": ""}, "lora": {"notification-summary": "lora"}}
        events = work(engine, tasks, Answers({}), variants, best_of=2)
    mine = [e.given for e in events if e.given.variant == "lora"]
    assert [(g.kind, g.id) for g in mine] == [("notification-summary", f"n{i}") for i in range(3)]
    assert called.count((None, 2)) == len(tasks) and called.count(("lora", 2)) == 3


def test_settings_change_with_the_data(data: Path) -> None:
    tasks = load(data, ["summary"])

    def made(kv: str = "16", asked: Sequence[Task] = tasks, **options: Any) -> dict[str, Any]:
        given = EvaluationOptions(**options)
        return settings(given, data, asked, "signature", {"lora": "x"}, kv)

    before = made()
    assert before == made(limit=1, seed=4)
    assert before != made(best_of=2)
    assert before != made(kv="8")
    other = replace(tasks[0].feature, instructions="Say it in one word.")
    assert before != made(asked=[replace(tasks[0], feature=other)])
    (data / "texts.eval.jsonl").write_text("")
    assert before != made()


def test_wrong_options() -> None:
    with pytest.raises(InputError, match="limit"):
        EvaluationOptions(limit=0)
    with pytest.raises(InputError, match="best_of"):
        EvaluationOptions(best_of=0)
