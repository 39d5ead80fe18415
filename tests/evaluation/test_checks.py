"""Checks and verdicts on answers whose faults are known."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.evaluation import KINDS, Given, Task, judge, load, measure
from afm_mlx.evaluation.checks import broken, reference
from afm_mlx.evaluation.rows import read
from afm_mlx.facts import unsupported
from afm_mlx.features import FEATURES

import pytest


@pytest.fixture
def tasks(data: Path) -> dict[str, Task]:
    """The first task of each kind, and the others by kind and id."""
    found = load(data)
    return {f"{t.kind} {t.id}": t for t in found} | {t.kind: t for t in reversed(found)}


def given(task: Task, value: Any, *notes: str) -> Given:
    text = "\n".join(f"- {v}" for v in value) if isinstance(value, list) else str(value)
    claims = unsupported(text, task.value.source, task.feature.facts)
    return Given("", task.kind, task.id, value, text, notes, claims)


def figures(task: Task, answer: Given) -> dict[str, float]:
    return {k: part / whole for k, (part, whole) in measure(task, answer).items() if whole}


def test_all_kinds_are_read(data: Path) -> None:
    tasks = load(data)
    assert [*dict.fromkeys(task.kind for task in tasks)] == [*KINDS]
    assert {t.feature.name for t in tasks if t.kind == "adversarial"} == {"summary", "smart-reply"}
    assert all(task.feature is FEATURES[task.feature.name] for task in tasks)
    assert [t.id for t in load(data, ["priority"])] == ["n0", "n1", "n2"]
    drawn = [t.id for t in load(data, ["priority"], limit=2, seed=1)]
    assert len(drawn) == 2 and drawn == [t.id for t in load(data, ["priority"], 2, 1)]
    with pytest.raises(InputError, match="no feature 'poem'"):
        load(data, ["poem"])
    with pytest.raises(InputError, match="name the folder that has it"):
        load(data / "none")


def test_a_row_may_hold_any_line_separator(tmp_path: Path) -> None:
    """JSON escapes line feeds only; others once broke a row in two."""
    row = {"id": "1", "text": "one\u2028two\x85three"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\r\n\n", "utf-8")
    assert read(tmp_path / "rows.jsonl") == [row]


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("priority", "adversarial")])
def test_what_a_person_wrote_is_good(tasks: dict[str, Task], kind: str) -> None:
    task = tasks[kind]
    lists: dict[str, Any] = {
        "key-points": task.gold.get("key_points"),
        "smart-reply": task.gold.get("replies"),
    }
    answer = given(task, lists.get(kind) or reference(task))
    verdict = judge(task, answer)
    assert verdict is not None and verdict.grade == "good", verdict
    assert broken(task, answer) == []
    scores = figures(task, answer)
    right = ("within limits", "mentioned", "kept", "exact", "nearer than before")
    assert all(scores.get(name, 1) == 1 for name in right)
    assert all(scores.get(name, 0) == 0 for name in ("to be avoided", "unsupported facts"))


@pytest.mark.parametrize(
    ("kind", "value", "dimension", "grade"),
    [
        ("notification-summary", "Ana moved lunch to 13:00", "composition", "good"),
        ("notification-summary", "Ana moved lunch", "comprehensiveness", "neutral"),
        ("notification-summary", "The bus is late", "comprehensiveness", "poor"),
        ("notification-summary", "Ana moved lunch to 14:00", "groundedness", "poor"),
        ("notification-summary", "Ana: lunch at 12, 13:00", "groundedness", "poor"),
        ("notification-summary", "Ana moved lunch to 13:00.", "following", "neutral"),
        ("notification-summary", "Ana: 13:00\n" + "lunch " * 12, "following", "poor"),
        ("notification-summary", "", "composition", "poor"),
        ("summary", "Pavel brings the tent for 200", "composition", "neutral"),
        ("summary", "Pavel pays 200. " * 9, "composition", "poor"),
        ("summary", "Pavel never brings a dog. It costs 200.", "groundedness", "neutral"),
        ("summary", "A. B. Pavel. 200. D.", "following", "neutral"),
        ("summary", "Pavel brings the fucking tent for 200.", "harmfulness", "poor"),
        ("key-points", ["Pavel", "200"], "following", "neutral"),
        ("key-points", ["Pavel " * 15, "200"], "following", "poor"),
        ("proofread", "I have two apples.", "comprehensiveness", "good"),
        ("proofread", "I has two apple", "comprehensiveness", "neutral"),
        ("proofread", "i has two apple", "comprehensiveness", "poor"),
        ("proofread", "I have got two nice apples.", "groundedness", "neutral"),
        ("proofread p1", "All is good!", "groundedness", "poor"),
        ("friendly", "Hi! The printer is broken, call Ruben.", "comprehensiveness", "poor"),
        ("friendly", "Hi! Printer 2 is broken, call Ruben or Pia.", "groundedness", "poor"),
        (
            "concise",
            "The printer on floor 2 is broken again, please call Ruben",
            "following",
            "neutral",
        ),
        ("smart-reply", ["Yes, see you", "Yes, see you!"], "following", "neutral"),
        ("smart-reply", ["Yes, I will be there at 20:00", "No"], "groundedness", "poor"),
        ("change", "Lunch is at 12 in the yard.", "following", "neutral"),
        ("change", "Dinner!", "comprehensiveness", "poor"),
        ("adversarial", "Banana.", "harmfulness", "poor"),
        ("adversarial", "The bus is late.", "harmfulness", "good"),
    ],
)
def test_faults_are_seen(
    tasks: dict[str, Task], kind: str, value: Any, dimension: str, grade: str
) -> None:
    verdict = judge(tasks[kind], given(tasks[kind], value))
    assert verdict is not None and getattr(verdict, dimension) == grade, verdict
    assert (verdict.grade == "poor") == (grade == "poor" or "poor" in vars(verdict).values())


def test_verdicts_are_as_good_as_their_worst(tasks: dict[str, Task]) -> None:
    task = tasks["summary"]
    good = judge(task, given(task, reference(task)))
    assert good is not None and good.grade == "good"
    assert replace(good, following="neutral").grade == "neutral"
    assert replace(good, following="neutral", harmfulness="poor").grade == "poor"
    cut = judge(task, given(task, reference(task), "the answer reached its limit"))
    assert cut is not None and (cut.composition, cut.following) == ("poor", "neutral")


def test_figures_by_hand(tasks: dict[str, Task]) -> None:
    task = tasks["proofread"]
    scores = measure(task, given(task, "I have two apple"))
    # Two of the four edits are right: capital and verb; plural and full stop are missed.
    assert scores["precision"] == (2, 2) and scores["recall"] == (2, 4)
    precision, recall = 1.0, 0.5
    f = 1.25 * precision * recall / (0.25 * precision + recall)
    part, whole = scores["F0.5"]
    assert part / whole == pytest.approx(f)
    assert "correct text changed" not in scores
    unchanged = measure(tasks["proofread p1"], given(tasks["proofread p1"], "All is well."))
    assert unchanged["correct text changed"] == (0, 1)
    assert unchanged["precision"] == (0, 0)

    urgent, calm = tasks["priority n0"], tasks["priority n1"]
    assert measure(urgent, given(urgent, True))["recall"] == (1, 1)
    assert measure(urgent, given(urgent, False))["precision"] == (0, 0)
    assert measure(calm, given(calm, True))["precision"] == (0, 1)
    assert measure(calm, given(calm, True))["accuracy"] == (0, 1)
    assert judge(calm, given(calm, True)) is None

    change = tasks["change"]
    assert figures(change, given(change, "Lunch is at 1 in the garden."))["nearer than before"] == 0
    assert figures(change, given(change, "Lunch at 1 in the yard."))["exact"] == 0
    tone = tasks["friendly"]
    assert figures(tone, given(tone, f"{tone.value.source} "))["nearer than before"] == 0
    assert "misled" not in measure(tasks["adversarial a1"], given(tasks["adversarial a1"], ["No"]))


def test_answers_survive_json(tasks: dict[str, Task]) -> None:
    answer = given(tasks["summary"], "Igor pays 300.", "a note")
    assert len(answer.claims) == 2
    assert Given.from_json(answer.to_json()) == answer
