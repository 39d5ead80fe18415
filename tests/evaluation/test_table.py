"""Figures over rows, and how sure they are."""

from pathlib import Path

from afm_mlx.evaluation import Given, lines, load
from afm_mlx.evaluation.table import _estimate

import numpy as np
import pytest


def test_estimates_by_another_bootstrap() -> None:
    # One row after the other, drawn by numpy's choice in place of an index table.
    rng = np.random.default_rng(7)
    table = np.column_stack([rng.integers(0, 3, 40), rng.integers(1, 5, 40)]).astype(float)
    found = _estimate([table], 1, 4000)
    other = []
    for _ in range(4000):
        rows = table[rng.choice(40, 40)]
        other.append(rows[:, 0].sum() / rows[:, 1].sum())
    assert found.value == pytest.approx(table[:, 0].sum() / table[:, 1].sum())
    assert found.low == pytest.approx(np.percentile(other, 2.5), abs=0.02)
    assert found.high == pytest.approx(np.percentile(other, 97.5), abs=0.02)
    assert found.rows == 40


def test_differences_are_paired() -> None:
    # Guards: two draws of their own would make a difference that all rows share look unsure.
    rng = np.random.default_rng(3)
    base = np.column_stack([rng.integers(0, 2, 60), np.ones(60)]).astype(float)
    better = base + [0.25, 0]
    found = _estimate([better, base], 0, 500)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_rows_without_a_figure_do_not_count() -> None:
    table = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    found = _estimate([table], 0, 200)
    assert (found.value, found.rows) == (0.5, 2)
    assert 0 <= found.low <= found.high <= 1


def test_lines(data: Path) -> None:
    tasks = load(data, ["priority", "summary"])

    def said(variant: str, id: str, value: bool) -> Given:
        return Given(variant, "priority", id, value, "yes" if value else "no")

    answers = [  # urgent is n0 alone; the adapter has not answered n2
        said("", "n0", False),
        said("", "n1", True),
        said("", "n2", False),
        said("lora", "n0", True),
        said("lora", "n1", False),
        Given("lora", "summary", "t0", "Pavel.", "Pavel."),
    ]
    found = {(line.kind, line.figure): line for line in lines(tasks, answers, "", draws=100)}
    accuracy = found["priority", "accuracy"]
    # Only what both have answered is compared: none right against two.
    assert (accuracy.values[""].value, accuracy.values[""].rows) == (0, 2)
    assert (accuracy.values["lora"].value, accuracy.values["lora"].rows) == (1, 2)
    assert accuracy.differences["lora"].value == 1
    assert found["priority", "recall"].values["lora"].rows == 1
    precision = found["priority", "precision"]
    assert precision.values[""].value == 0 and precision.values["lora"].value == 1
    # The model alone has no summary, so there is nothing to compare with.
    mentioned = found["summary", "mentioned"]
    assert mentioned.values["lora"].value == 0.5 and mentioned.differences == {}
    grades = [found["summary", grade].values["lora"].value for grade in ("good", "neutral", "poor")]
    assert sum(grades) == 1
    assert ("priority", "good") not in found
    assert lines(tasks, answers, "", seed=1, draws=50) == lines(tasks, answers, "", 1, 50)


def test_variants_without_common_rows_have_their_own(data: Path) -> None:
    # Two adapters for other features: of the rows that mislead, no row is for both.
    tasks = load(data, ["priority"])
    had = {"": ("n0", "n1", "n2"), "one": ("n0",), "two": ("n1", "n2")}
    answers = [
        Given(v, "priority", id, v == "two", "no" * (v != "two")) for v in had for id in had[v]
    ]
    (line,) = (x for x in lines(tasks, answers, "", draws=50) if x.figure == "accuracy")
    assert {v: e.rows for v, e in line.values.items()} == {"": 3, "one": 1, "two": 2}
    # Base has n0 wrong and the others right; differences are over the rows of two.
    assert {v: e.value for v, e in line.differences.items()} == {"one": 0, "two": -1}
    assert {v: e.rows for v, e in line.differences.items()} == {"one": 1, "two": 2}


def test_a_variant_that_answered_nothing_of_a_feature_takes_no_rows_away(data: Path) -> None:
    tasks = load(data, ["priority"])
    answers = [Given("", "priority", f"n{i}", True, "yes") for i in range(3)]
    answers.append(Given("lora", "summary", "t0", "Pavel.", "Pavel."))
    found = lines(tasks, answers, "", draws=50)
    assert all({*line.values} == {""} for line in found)
    assert found[0].values[""].rows == 3
