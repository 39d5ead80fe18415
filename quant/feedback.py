"""Error feedback: weights are rounded column by column, and what is lost is made good after.

GPTQ (arXiv 2210.17323) in activation order: the columns with the largest inputs come first, and
each error is spread over the columns that are still to come, so that the layer's outputs change
least on the calibration text. What a column is rounded to, entries of a table or a grid, is the
caller's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

Rounding = Callable[[int, Array], tuple[Array, Array]]
"""Column number and its weights ``[N]`` to uint8 codes and the values that they stand for."""

_BLOCK = 32  # columns whose errors are spread at once


@dataclass(frozen=True, eq=False)
class Order:
    """Order of the columns, and the factor ``U`` of the inverse Hessian ``U^T U`` in it."""

    columns: Array
    factor: Array


def factorise(hessian: Array, damping: float) -> Order:
    """Prepare the second moments ``[K, K]`` of a layer's inputs.

    Args:
        damping: added to the diagonal, as a share of its mean.
    """
    diagonal = np.diag(hessian).astype(np.float64)
    columns = np.argsort(-diagonal, kind="stable")
    ordered = hessian[np.ix_(columns, columns)].astype(np.float64)
    mean = float(diagonal.mean()) or 1.0  # inputs that are always 0
    plain = np.diag(ordered).copy()
    while True:
        np.fill_diagonal(ordered, plain + damping * mean)
        try:
            # H = R R^T with R upper triangular, so H^-1 = R^-T R^-1.
            upper = np.linalg.cholesky(ordered[::-1, ::-1])[::-1, ::-1]
            return Order(columns, np.ascontiguousarray(np.linalg.inv(upper), np.float32))
        except np.linalg.LinAlgError:  # moments from 16-bit numbers are not quite positive
            damping *= 10


def feed_back(weights: Array, order: Order, rounding: Rounding) -> Array:
    """Codes uint8 ``[N, K]`` of ``weights`` float32 ``[N, K]``."""
    u = order.factor
    w = np.ascontiguousarray(weights[:, order.columns].T)
    codes = np.empty(w.shape, np.uint8)
    for start in range(0, len(w), _BLOCK):
        stop = min(start + _BLOCK, len(w))
        errors = np.empty((stop - start, w.shape[1]), np.float32)
        for j in range(start, stop):
            codes[j], values = rounding(int(order.columns[j]), w[j])
            error = errors[j - start]
            np.subtract(w[j], values, out=error)
            error /= u[j, j]
            if j + 1 < stop:
                w[j + 1 : stop] -= u[j, j + 1 : stop, None] * error
        if stop < len(w):
            w[stop:] -= u[start:stop, stop:].T @ errors
    out = np.empty((w.shape[1], len(w)), np.uint8)
    out[:, order.columns] = codes.T
    return out
