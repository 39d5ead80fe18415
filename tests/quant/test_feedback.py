"""Error feedback against the textbook form: invert what is left after every column."""

from typing import Any

from afm_mlx.quant.feedback import factorise, feed_back

import numpy as np

Array = np.ndarray[Any, Any]
STEP = 0.5


def to_grid(column: int, weights: Array) -> tuple[Array, Array]:
    codes = np.clip(np.rint(weights / STEP) + 8, 0, 15)
    return codes.astype(np.uint8), ((codes - 8) * STEP).astype(np.float32)


def correlated(n: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * n, n)) @ rng.standard_normal((n, n)) * rng.exponential(size=n)
    return x.T @ x / len(x)


def optimal_brain(weights: Array, hessian: Array, damping: float) -> Array:
    """GPTQ as its paper defines it: the rest of the row is the least-squares answer to the
    column that was just rounded, with the inverse Hessian of the columns that are left."""
    w = weights.astype(np.float64).copy()
    h = hessian + damping * np.diag(hessian).mean() * np.eye(len(hessian))
    codes = np.empty(w.shape, np.uint8)
    left = list(np.argsort(-np.diag(hessian), kind="stable"))
    while left:
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        column = left[0]
        codes[:, column], value = to_grid(column, w[:, column])
        error = (w[:, column] - value) / inverse[0, 0]
        w[:, left] -= error[:, None] * inverse[0]
        left.pop(0)
    return codes


def test_equals_the_definition() -> None:
    # More columns than one block has, so that what blocks hand on is tested too.
    weights = np.random.default_rng(1).standard_normal((6, 80)).astype(np.float32)
    hessian = correlated(80)
    codes = feed_back(weights, factorise(hessian, 0.1), to_grid)
    assert (codes == optimal_brain(weights, hessian, 0.1)).mean() > 0.99


def test_outputs_change_less_than_by_rounding() -> None:
    weights = np.random.default_rng(2).standard_normal((16, 64)).astype(np.float32)
    hessian = correlated(64)

    def change(codes: Array) -> float:
        error = (codes.astype(np.float64) - 8) * STEP - weights
        return float(np.einsum("nk,kl,nl->", error, hessian, error))

    rounded = np.stack([to_grid(k, weights[:, k])[0] for k in range(64)], 1)
    fed_back = feed_back(weights, factorise(hessian, 0.01), to_grid)
    assert change(fed_back) < 0.6 * change(rounded)


def test_moments_that_are_not_positive() -> None:
    # Correlations kept in 16 bits have slightly negative eigenvalues.
    hessian = correlated(64)
    hessian -= 0.02 * np.diag(hessian).mean() * np.eye(64)
    assert np.linalg.eigvalsh(hessian)[0] < 0
    assert np.isfinite(factorise(hessian, 1e-4).factor).all()


def test_inputs_that_are_always_zero() -> None:
    weights = np.random.default_rng(3).standard_normal((4, 32)).astype(np.float32)
    codes = feed_back(weights, factorise(np.zeros((32, 32)), 0.1), to_grid)
    assert np.array_equal(codes, np.stack([to_grid(k, weights[:, k])[0] for k in range(32)], 1))
