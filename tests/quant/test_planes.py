"""Bit planes against bits set one by one, and against MLX's own packing."""

from afm_mlx.quant.planes import PLANES, look_up, pack, unpack

import mlx.core as mx
import numpy as np
import pytest


@pytest.mark.parametrize("bits", list(PLANES))
def test_unpacking_gives_back_the_codes(bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 2**bits, (48, 96)).astype(np.uint8)
    planes = pack(codes, bits)
    assert [p.shape for p in planes] == [(48, 96 * width // 32) for width in PLANES[bits]]
    assert np.array_equal(np.array(unpack([mx.array(p) for p in planes], bits)), codes)


def test_bits_lie_where_kernels_read_them() -> None:
    codes = np.zeros((1, 64), np.uint8)
    codes[0, 33] = 0b110  # the second word's second index
    low, high = pack(codes, 3)
    assert low.tolist() == [[0, 0, 0b10 << 2, 0]]
    assert high.tolist() == [[0, 0b1 << 1]]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_order_is_that_of_mlx(bits: int) -> None:
    codes = np.random.default_rng(1).integers(0, 2**bits, (8, 128)).astype(np.uint8)
    ones, zeros = mx.ones((8, 2)), mx.zeros((8, 2))
    read = mx.dequantize(mx.array(pack(codes, bits)[0]), ones, zeros, 64, bits)
    assert np.array_equal(np.array(read), codes)


def test_tables_serve_groups_of_rows() -> None:
    codes, lut = mx.array([[0, 1], [1, 1], [0, 1], [1, 0]]), mx.array([[1.0, 2.0], [3.0, 4.0]])
    assert look_up(codes, lut).tolist() == [[1, 2], [2, 2], [3, 4], [4, 3]]
