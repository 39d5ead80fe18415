"""Weighted k-means on a line against every possible partition."""

import itertools
from typing import Any

from afm_mlx.quant import kmeans

import numpy as np
import pytest

Array = np.ndarray[Any, Any]


def error(values: Array, weights: Array, table: Array) -> float:
    """Weighted squared distance to the nearest entry."""
    return float((weights * np.square(values[:, None] - table).min(1)).sum())


def best_partition(values: Array, weights: Array, size: int) -> float:
    """The least error over all ways to cut the sorted values into ``size`` intervals."""
    order = np.argsort(values)
    v, w = values[order], weights[order]
    least = np.inf
    for cuts in itertools.combinations(range(1, len(v)), size - 1):
        total = 0.0
        for part in np.split(np.arange(len(v)), cuts):
            mean = np.average(v[part], weights=w[part])
            total += float((w[part] * (v[part] - mean) ** 2).sum())
        least = min(least, total)
    return least


@pytest.mark.parametrize("size", [2, 3, 4])
def test_small_groups_are_solved_exactly(size: int) -> None:
    rng = np.random.default_rng(size)
    values = rng.standard_normal((5, 11)).astype(np.float32)
    weights = rng.exponential(size=(5, 11)) ** 3 + 1e-3
    table = kmeans.tables(values, weights, [size])[size]
    for v, w, row in zip(values, weights, table, strict=True):
        assert error(v, w, row) == pytest.approx(best_partition(v, w, size), rel=1e-4)


def lloyd(values: Array, weights: Array, table: Array, rounds: int = 200) -> Array:
    """Weighted Lloyd iterations from a table."""
    for _ in range(rounds):
        nearest = np.abs(values[:, None] - table).argmin(1)
        for k in range(len(table)):
            if weights[nearest == k].sum() > 0:
                table[k] = np.average(values[nearest == k], weights=weights[nearest == k])
    return table


@pytest.mark.parametrize("size", [4, 8, 16])
def test_cells_cost_under_a_percent(size: int) -> None:
    rng = np.random.default_rng(size)
    values = rng.standard_t(4, (2, 6000)).astype(np.float32)
    weights = rng.exponential(size=values.shape) ** 4
    table = kmeans.tables(values, weights, [size])[size]
    for v, w, row in zip(values, weights, table, strict=True):
        refined = lloyd(v, w, row.astype(np.float64).copy())
        assert error(v, w, row) < 1.01 * error(v, w, refined)
        begun = np.quantile(v, (np.arange(size) + 0.5) / size)
        assert error(v, w, row) < 1.005 * error(v, w, lloyd(v, w, begun, 50))


def test_large_tables_use_all_their_entries() -> None:
    # 128 cells gave 124 different entries of 256.
    values = np.random.default_rng(0).standard_normal((1, 6000)).astype(np.float32)
    table = kmeans.tables(values, np.ones_like(values), [256])[256]
    assert len(np.unique(table)) > 240


def test_one_pass_gives_all_sizes() -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.standard_normal((3, 500)).astype(np.float32), np.ones((3, 500))
    together = kmeans.tables(values, weights, [2, 4, 8, 16])
    for size, table in together.items():
        assert np.array_equal(table, kmeans.tables(values, weights, [size])[size])


@pytest.mark.parametrize("n", [40, 400])
def test_equal_values_and_no_weights(n: int) -> None:
    values = np.full((2, n), 3.0, np.float32)
    values[1, : n // 2] = -1.0
    table = kmeans.tables(values, np.zeros((2, n)), [4])[4]
    assert np.isfinite(table).all() and (np.diff(table) >= 0).all()
    assert set(table[0]) == {3.0}
    assert {-1.0, 3.0} <= set(table[1].tolist())
