"""Calibrated affine weights for MLX's own quantised layers: scale and bias for every few columns.

The same error feedback as for palettes, on grids that are fixed before it starts. The grid of a
group is the best of several clipped ranges, each refined by weighted least squares, where an
error counts by the inputs that meet it. Packed as ``mx.quantize`` does it, so that plain mlx-lm
loads the result and ``mx.quantized_matmul`` runs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.quant.feedback import Order, feed_back

import numpy as np

Array = np.ndarray[Any, Any]

GROUP_SIZE = 64
"""Columns that share a scale and a bias."""
WIDTHS = (2, 3, 4, 5, 6, 8)
"""Bits that MLX's quantised layers take."""
GROUP_SIZES = (32, 64, 128)

_CLIPPED = (1.0, 0.85, 0.7, 0.55)  # shares of a group's range that grids start from
_REFINED = 3  # least-squares refinements of each


@dataclass(frozen=True, eq=False)
class Affine:
    """A quantised matrix ``[N, K]``: ``scales * codes + biases``, by groups of columns.

    Attributes:
        codes: uint8 ``[N, K]``.
        scales, biases: float16 ``[N, K / group_size]``.
    """

    bits: int
    codes: Array
    scales: Array
    biases: Array

    @property
    def group_size(self) -> int:
        return self.codes.shape[1] // self.scales.shape[1]

    def weight(self) -> Array:
        """The matrix, float32."""
        grouped = self.codes.reshape(*self.scales.shape, -1).astype(np.float32)
        scales, biases = (a.astype(np.float32)[..., None] for a in (self.scales, self.biases))
        return (grouped * scales + biases).reshape(self.codes.shape)

    def packed(self) -> Array:
        """Codes as ``mx.quantize`` packs them, lowest bits first: uint32 ``[N, K * bits / 32]``."""
        places = np.arange(self.bits, dtype=np.uint8)
        stream = (self.codes[..., None] >> places) & 1
        rows = np.packbits(stream.reshape(len(self.codes), -1), axis=1, bitorder="little")
        return np.ascontiguousarray(rows).view("<u4")


def bits_per_weight(bits: int, group_size: int = GROUP_SIZE) -> float:
    """Bits of a weight with its share of scale and bias."""
    return bits + 32 / group_size


def fits(shape: tuple[int, ...], group_size: int = GROUP_SIZE) -> bool:
    """Whether MLX's layers take a matrix: columns in whole groups."""
    return len(shape) == 2 and shape[1] % group_size == 0


def quantize(
    weight: Array,
    widths: Sequence[int],
    importance: Array | None = None,
    order: Order | None = None,
    group_size: int = GROUP_SIZE,
) -> dict[int, Affine]:
    """Quantise a matrix at several widths.

    Args:
        weight: float32 ``[N, K]``.
        widths: bits, of :data:`WIDTHS`.
        importance: how much an error counts, ``[K]`` or ``[N, K]``; equal ones without it.
        order: the layer's inputs (:func:`afm_mlx.quant.feedback.factorise`); without it every
            weight takes the nearest point of its grid.

    Raises:
        InputError: the shape does not fit, or there are values that are no numbers.
    """
    if not fits(weight.shape, group_size):
        raise InputError(
            f"a matrix of {weight.shape} cannot be quantised in groups of {group_size} columns:"
            f" choose a group size that divides {weight.shape[1]}"
        )
    if not np.isfinite(weight).all():
        raise InputError("weights hold values that are no numbers: download the model again")
    counted = np.ones(weight.shape[1], np.float32) if importance is None else importance
    found = {}
    for bits in widths:
        if bits not in WIDTHS:
            raise InputError(f"MLX's layers have {', '.join(map(str, WIDTHS))} bits, not {bits}")
        scales, biases = grids(weight, bits, counted, group_size)
        rounding = _Grid(scales, biases, bits, group_size)
        if order is None:
            columns = [rounding(k, weight[:, k])[0] for k in range(weight.shape[1])]
            codes = np.stack(columns, axis=1)
        else:
            codes = feed_back(weight, order, rounding)
        found[bits] = Affine(bits, codes, scales, biases)
    return found


def grids(
    weight: Array, bits: int, importance: Array, group_size: int = GROUP_SIZE
) -> tuple[Array, Array]:
    """Scales and biases of least weighted error, float16 ``[N, K / group_size]``."""
    shape = (len(weight), -1, group_size)
    w = weight.reshape(shape)
    h = np.broadcast_to(importance, weight.shape).reshape(shape)
    h = h / np.maximum(h.mean(-1, keepdims=True), np.finfo(np.float32).tiny) + 1e-8
    top = 2**bits - 1
    low, high = w.min(-1), w.max(-1)
    sums = (h.sum(-1), (h * w).sum(-1))
    best_error = np.full(low.shape, np.inf)
    best = (np.ones_like(low), low)
    for share in _CLIPPED:
        scale, bias = np.maximum(share * (high - low) / top, 1e-8), share * low
        for turn in range(_REFINED + 1):
            scale, bias = (a.astype(np.float16).astype(np.float32) for a in (scale, bias))
            scale = np.where(scale == 0, np.float32(2**-24), scale)
            codes = np.clip(np.rint((w - bias[..., None]) / scale[..., None]), 0, top)
            error = (h * np.square(codes * scale[..., None] + bias[..., None] - w)).sum(-1)
            better = error < best_error
            best_error = np.where(better, error, best_error)
            best = (np.where(better, scale, best[0]), np.where(better, bias, best[1]))
            if turn < _REFINED:
                scale, bias = _least_squares(codes, w, h, sums, (scale, bias))
    return best[0].astype(np.float16), best[1].astype(np.float16)


def _least_squares(
    codes: Array, w: Array, h: Array, sums: tuple[Array, Array], now: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Scale and bias that fit the weights best with their codes fixed."""
    n, sw = sums
    weighted = h * codes
    sc, scc, scw = weighted.sum(-1), (weighted * codes).sum(-1), (weighted * w).sum(-1)
    spread = scc * n - sc * sc
    flat = spread <= 1e-6 * np.maximum(scc * n, 1e-30)  # all codes of the group are equal
    scale = np.where(flat, now[0], (scw * n - sc * sw) / np.where(flat, 1.0, spread))
    bias = np.where(flat, now[1], (sw - scale * sc) / n)
    usable = np.isfinite(scale) & np.isfinite(bias) & (np.abs(scale) < 6e4) & (np.abs(bias) < 6e4)
    return np.where(usable, scale, now[0]), np.where(usable, bias, now[1])


class _Grid:
    """The nearest point of the grid for each row of a column."""

    def __init__(self, scales: Array, biases: Array, bits: int, group_size: int) -> None:
        self.scales = np.ascontiguousarray(scales.T, np.float32)
        self.biases = np.ascontiguousarray(biases.T, np.float32)
        self.top, self.group_size = 2**bits - 1, group_size

    def __call__(self, column: int, weights: Array) -> tuple[Array, Array]:
        scale, bias = (a[column // self.group_size] for a in (self.scales, self.biases))
        codes = np.clip(np.rint((weights - bias) / scale), 0, self.top)
        return codes.astype(np.uint8), codes * scale + bias
