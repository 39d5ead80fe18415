"""How palette indices lie in memory: bit planes of aligned 32-bit words.

A row of ``K`` indices of ``bits`` bits is stored as one plane, or two where the width is no
power of two (3 = 2 + 1, 6 = 4 + 2), so that every load of a kernel is an aligned word. Within a
word the first index has the lowest bits, as in ``mx.quantize``.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

Array = np.ndarray[Any, Any]

PLANES: dict[int, tuple[int, ...]] = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 6: (4, 2), 8: (8,)}
"""Widths of the planes that hold indices of so many bits, lowest bits first."""
WORD = 32
"""Indices in a row come in multiples of so many."""


def pack(codes: Array, bits: int) -> list[Array]:
    """Planes of ``codes``, uint8 ``[N, K]``: uint32 ``[N, K * width / 32]`` each."""
    planes, shift = [], 0
    for width in PLANES[bits]:
        per = WORD // width
        part = (codes >> shift) & ((1 << width) - 1)
        lanes = part.reshape(len(codes), -1, per).astype(np.uint32)
        places = np.arange(per, dtype=np.uint32) * np.uint32(width)
        planes.append(np.bitwise_or.reduce(lanes << places, axis=-1))
        shift += width
    return planes


def unpack(planes: Sequence[mx.array], bits: int) -> mx.array:
    """Indices uint32 ``[N, K]`` of :func:`pack`'s planes."""
    codes, shift = mx.array(0, mx.uint32), 0
    for plane, width in zip(planes, PLANES[bits], strict=True):
        places = mx.arange(0, WORD, width, dtype=mx.uint32)
        part = (plane[..., None] >> places) & ((1 << width) - 1)
        codes = codes | (part.reshape(len(plane), -1) << shift)
        shift += width
    return codes


def look_up(codes: mx.array, lut: mx.array) -> mx.array:
    """Table entries ``[N, K]`` of indices ``[N, K]``; each row of ``lut`` ``[G, 2^bits]`` serves
    ``N / G`` rows."""
    grouped = codes.reshape(len(lut), -1)
    return mx.take_along_axis(lut, grouped, axis=1).reshape(codes.shape)
