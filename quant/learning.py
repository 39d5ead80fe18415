"""Low-bit weights that learn: tables whose weights keep their entries, and norms."""

from typing import NamedTuple

from afm_mlx.quant.planes import look_up

import mlx.core as mx
import numpy as np
from mlx import nn


class Codes(NamedTuple):
    """Indices of a matrix while its tables learn.

    Attributes:
        codes: uint8 ``[N, K]``.
        order: weights of each table ``[G, N K / G]`` by rising code.
        ends: where the weights of each entry end in that order, ``[G, 2^bits]``; the first number
            after them.
    """

    codes: mx.array
    order: mx.array
    ends: mx.array

    @classmethod
    def of(cls, codes: mx.array, groups: int, bits: int) -> "Codes":
        grouped = codes.reshape(groups, -1)
        small = grouped.shape[1] <= np.iinfo(np.uint16).max + 1
        order = mx.argsort(grouped, axis=1).astype(mx.uint16 if small else mx.uint32)
        counts = [mx.sum(grouped == entry, axis=1) for entry in range(2**bits)]
        found = cls(codes.astype(mx.uint8), order, mx.cumsum(mx.stack(counts, axis=1), axis=1))
        mx.eval(found)
        return found


@mx.custom_function
def learnt_weight(
    lut: mx.array, scales: mx.array, codes: mx.array, order: mx.array, ends: mx.array
) -> mx.array:
    """``scales * lut[codes]`` ``[N, K]``, with gradients to tables and scales."""
    return look_up(codes, lut) * scales[:, None]


@learnt_weight.vjp
def _learnt_weight_vjp(
    primals: tuple[mx.array, ...], cotangent: mx.array, _: mx.array
) -> tuple[mx.array, ...]:
    lut, scales, codes, order, ends = primals
    part = (cotangent * scales[:, None]).reshape(order.shape)
    # Sums over runs of equal codes: 20 times as fast as scattered additions on the CPU.
    running = mx.cumsum(mx.take_along_axis(part, order, axis=1), axis=1)
    running = mx.pad(running, [(0, 0), (1, 0)])
    upto = mx.take_along_axis(running, ends, axis=1)
    tables = mx.diff(mx.pad(upto, [(0, 0), (1, 0)]), axis=1)
    by_row = mx.sum(cotangent * look_up(codes, lut), axis=1)
    unused = (mx.zeros_like(a) for a in (codes, order, ends))
    return tables.astype(lut.dtype), by_row.astype(scales.dtype), *unused


class LearntNorm(nn.Module):
    """A norm whose weights learn as factors of themselves: scales of the next layers' columns."""

    def __init__(self, norm: nn.RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps, self.gain = norm.weight, norm.eps, mx.ones(norm.weight.shape)
        self.freeze(keys=["weight"])

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight * self.gain, self.eps)

    def settled(self) -> nn.RMSNorm:
        """The norm as it has learnt."""
        norm = nn.RMSNorm(self.weight.size, self.eps)
        norm.weight = (self.weight * self.gain).astype(self.weight.dtype)
        norm.freeze()
        return norm
