"""Rows are checked when they are loaded, not after an hour of answers."""

import json
from pathlib import Path
from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.evaluation import load
from tests.evaluation.conftest import ROWS

import pytest


def written(data: Path, name: str, *rows: dict[str, Any]) -> None:
    text = "\n".join(json.dumps(row) for row in rows)
    (data / f"{name}.eval.jsonl").write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("rewrite", {"keep": [5]}, "row r0 has 'keep' that is not a list of texts"),
        ("rewrite", {"concise": 3}, "row r0 has 'concise' that is not a text"),
        ("texts", {"mention": [1]}, "row t0 has 'mention' that is not a list of lists of texts"),
        ("texts", {"mention": ["Ana"]}, "row t0 has 'mention'"),
        ("texts", {"key_points": "one"}, "row t0 has 'key_points'"),
        ("texts", {"avoid": "Monday"}, "row t0 has 'avoid'"),
        ("proofread", {"corrected": None}, "row p0 lacks 'corrected'"),
        ("proofread", {"corrected": ["I"]}, "row p0 has 'corrected'"),
        ("notifications", {"urgent": "no"}, "row n0 has 'urgent' that is not true or false"),
        ("replies", {"replies": [None]}, "row y0 has 'replies'"),
        ("changes", {"output": {}}, "row c0 has 'output'"),
        ("adversarial", {"avoid": [1]}, "row a0 has 'avoid'"),
        ("adversarial", {"feature": ["summary"]}, "row a0 names none of"),
        ("adversarial", {"input": None}, r"row a0 cannot be used \(the JSON lacks the text 'text'"),
    ],
)
def test_values_of_other_forms_are_refused(
    data: Path, name: str, changed: dict[str, Any], message: str
) -> None:
    first, *others = ROWS[name]
    written(data, name, {**first, **changed}, *others)
    with pytest.raises(InputError, match=f"{name}.eval.jsonl: {message}") as caught:
        load(data)
    assert "\n" not in str(caught.value)


def test_rows_that_are_not_drawn_are_checked_too(data: Path) -> None:
    first, *others = ROWS["notifications"]
    written(data, "notifications", first, *others, {**first, "id": "n9", "urgent": 1})
    for seed in range(3):
        with pytest.raises(InputError, match="row n9 has 'urgent'"):
            load(data, ["priority"], limit=1, seed=seed)


def test_null_is_nothing(data: Path) -> None:
    (first,) = ROWS["texts"]
    written(data, "texts", {**first, "avoid": None, "mention": None})
    (found,) = load(data, ["summary"])
    assert "avoid" not in found.gold and found.gold["summary"] == first["summary"]


def test_an_id_names_one_row(data: Path) -> None:
    # The second answer took the place of the first, and both rows were judged by it.
    first, second = ROWS["proofread"]
    written(data, "proofread", first, second, {**second, "id": "p0"})
    with pytest.raises(InputError, match="has 2 rows p0: give each an id of its own"):
        load(data, ["proofread"])
