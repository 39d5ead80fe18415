"""Figures over all rows with 95 % intervals: model alone beside adapters, and the difference.

Intervals are percentiles of the bootstrap (Efron 1979): rows are drawn anew with replacement, the
same ones for every variant, so that a difference is a paired one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from afm_mlx.evaluation.checks import Given, Ratio, Scores, measure
from afm_mlx.evaluation.rows import Task
from afm_mlx.evaluation.verdict import judge

import numpy as np
import numpy.typing as npt

DRAWS = 2000
INTERVAL = (2.5, 97.5)  # percentiles
LOWER = frozenset(
    ("to be avoided", "unsupported facts", "replaced or cut", "correct text changed", "misled")
) | {"poor", "neutral"}
"""Figures that are better if lower."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure over ``rows`` rows, and where it lies 95 times in 100."""

    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class Line:
    """One figure of one feature for all variants, and what each adapter changes."""

    kind: str
    figure: str
    values: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]


def lines(
    tasks: Sequence[Task], answers: Iterable[Given], base: str, seed: int = 0, draws: int = DRAWS
) -> list[Line]:
    """All figures of ``answers``, feature by feature; ``base`` is what the others differ from.

    Of each feature only rows count that every variant has answered, save those that answered
    none of them; where there are no such rows, each variant is measured on its own.
    """
    known = {g.key: g for g in answers}
    variants = list(dict.fromkeys(variant for variant, _, _ in known))
    found: list[Line] = []
    for kind in dict.fromkeys(task.kind for task in tasks):
        rows = [task for task in tasks if task.kind == kind]
        asked = [v for v in variants if any((v, kind, task.id) in known for task in rows)]
        common = [task for task in rows if all((v, kind, task.id) in known for v in asked)]
        rows = common or rows
        given = {v: [known.get((v, kind, task.id)) for task in rows] for v in asked}
        scores = {v: [_scores(t, g) for t, g in zip(rows, given[v], strict=True)] for v in asked}
        for figure in dict.fromkeys(name for many in scores.values() for s in many for name in s):
            table = {v: np.array([s.get(figure, (0, 0)) for s in scores[v]]) for v in asked}
            values = {v: _estimate([t], seed, draws) for v, t in table.items() if t[:, 1].any()}
            differences = {}
            for variant in (v for v in values if v != base and base in values):
                answered = zip(given[variant], given[base], strict=True)
                both = np.array([[a is not None and b is not None] for a, b in answered])
                pair = [table[v] * both for v in (variant, base)]
                if all(t[:, 1].any() for t in pair):
                    differences[variant] = _estimate(pair, seed, draws)
            if values:
                found.append(Line(kind, figure, values, differences))
    return found


def _estimate(tables: Sequence[Floats], seed: int, draws: int) -> Estimate:
    """The figure of a table of parts and wholes ``[rows, 2]``, or by how much that of the first
    is above that of the second."""
    size = len(tables[0])
    rows = np.random.default_rng(seed).integers(size, size=(draws, size))
    figures = []
    with np.errstate(invalid="ignore"):  # a draw may have no row to which the figure applies
        for table in tables:
            sums = np.vstack([table[rows].sum(1), table.sum(0)])  # the last one of all rows
            figures.append(sums[:, 0] / sums[:, 1])
    figure = figures[0] - figures[1] if len(figures) > 1 else figures[0]
    low, high = np.nanpercentile(figure[:-1], INTERVAL)
    count = int((tables[0][:, 1] > 0).sum())
    return Estimate(float(figure[-1]), float(low), float(high), count)


def _scores(task: Task, given: Given | None) -> Scores:
    if given is None:
        return {}
    scores = measure(task, given)
    verdict = judge(task, given)
    if verdict:
        grades = {name: Ratio(verdict.grade == name) for name in ("good", "neutral", "poor")}
        scores = grades | scores
    return scores
