"""Palettes: a small table of values for every few rows, and a few bits a weight that choose.

The recipe measured best at 2 to 4 bits: rows are divided by their root mean square, each group
of rows gets the table that is optimal for its Fisher weights (:mod:`afm_mlx.quant.kmeans`), and
the entries are chosen with error feedback (:mod:`afm_mlx.quant.feedback`). Unweighted k-means,
the usual default, places no level near the few weights that large activations meet. Tables for
16 rows are Apple's (arXiv 2407.21075, section 5.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.quant import kmeans
from afm_mlx.quant.feedback import Order, feed_back
from afm_mlx.quant.planes import PLANES, WORD

import numpy as np

Array = np.ndarray[Any, Any]

GROUP_SIZE = 16
"""Rows that share one table."""
WIDTHS = tuple(PLANES)
"""Bits that palettes may have."""


@dataclass(frozen=True, eq=False)
class Palettized:
    """A palettised matrix ``[N, K]``: ``scales[n] * lut[n // group_size][codes[n, k]]``.

    Attributes:
        codes: uint8 ``[N, K]``.
        lut: float16 ``[N / group_size, 2^bits]``, rising in each row.
        scales: float16 ``[N]``.
    """

    bits: int
    codes: Array
    lut: Array
    scales: Array

    def weight(self) -> Array:
        """The matrix, float32."""
        grouped = self.codes.reshape(len(self.lut), -1)
        values = np.take_along_axis(self.lut.astype(np.float32), grouped, axis=1)
        return values.reshape(self.codes.shape) * self.scales.astype(np.float32)[:, None]


def bits_per_weight(shape: tuple[int, int], bits: int, group_size: int = GROUP_SIZE) -> float:
    """Bits of a palettised matrix ``[N, K]`` with its tables and scales, for each weight."""
    columns = shape[1]
    return bits + 16 * 2**bits / (group_size * columns) + 16 / columns


def check_width(bits: int) -> None:
    if bits not in WIDTHS:
        raise InputError(f"palettes have {', '.join(map(str, WIDTHS))} bits, not {bits}")


def fits(shape: tuple[int, ...], group_size: int = GROUP_SIZE) -> bool:
    """Whether a matrix can be palettised: rows in whole groups, columns in whole words."""
    return len(shape) == 2 and shape[0] % group_size == 0 and shape[1] % WORD == 0


def palettize(
    weight: Array,
    widths: Sequence[int],
    fisher: Array | None = None,
    order: Order | None = None,
    group_size: int = GROUP_SIZE,
) -> dict[int, Palettized]:
    """Palettise a matrix at several widths.

    Args:
        weight: float32 ``[N, K]``.
        widths: bits, of 1, 2, 3, 4, 6 and 8.
        fisher: how much an error of each weight costs, ``[N, K]``; equal ones without it.
        order: the layer's inputs (:func:`afm_mlx.quant.feedback.factorise`); without it every
            weight takes its nearest entry.

    Raises:
        InputError: the shape does not fit (:func:`fits`), or there are values that are no numbers.
    """
    for bits in widths:
        check_width(bits)
    if not fits(weight.shape, group_size):
        raise InputError(
            f"a matrix of {weight.shape} cannot be palettised: it takes rows in groups of"
            f" {group_size} and columns in multiples of {WORD}"
        )
    if not np.isfinite(weight).all():
        raise InputError("weights hold values that are no numbers: download the model again")
    scales = row_scales(weight)
    divided = weight / scales.astype(np.float32)[:, None]
    counted = np.ones_like(weight) if fisher is None else fisher
    counted = counted * np.square(scales.astype(np.float32))[:, None]
    groups = len(weight) // group_size
    luts = kmeans.tables(
        divided.reshape(groups, -1), counted.reshape(groups, -1), [2**b for b in widths]
    )
    found = {}
    for bits in widths:
        lut = luts[2**bits].astype(np.float16)
        rounding = _Nearest(lut, scales, group_size)
        if order is None:
            codes = np.stack([rounding(k, weight[:, k])[0] for k in range(weight.shape[1])], axis=1)
        else:
            codes = feed_back(weight, order, rounding)
        found[bits] = Palettized(bits, codes, lut, scales)
    return found


def row_scales(weight: Array) -> Array:
    """Root mean square of each row, float16; 1 for rows without any weight."""
    rms = np.sqrt(np.mean(np.square(weight, dtype=np.float64), axis=1)).astype(np.float16)
    return np.where(rms > 0, rms, np.float16(1))


class _Nearest:
    """The nearest entry for each row of a column."""

    def __init__(self, lut: Array, scales: Array, group_size: int) -> None:
        rows = np.repeat(lut.astype(np.float32), group_size, axis=0)
        values = (rows * scales.astype(np.float32)[:, None]).T
        self.between = np.ascontiguousarray((values[1:] + values[:-1]) / 2)
        self.values = np.ascontiguousarray(values).reshape(-1)
        self.rows = len(scales)
        self.places = np.arange(self.rows)

    def __call__(self, column: int, weights: Array) -> tuple[Array, Array]:
        codes = np.zeros(self.rows, np.uint8)
        for bound in self.between:
            codes += weights > bound
        return codes, self.values.take(codes * np.intp(self.rows) + self.places)
