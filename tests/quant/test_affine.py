"""Calibrated affine weights against MLX's own packing and its own grids."""

from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.quant.affine import WIDTHS, quantize
from afm_mlx.quant.feedback import factorise

import mlx.core as mx
import numpy as np
import pytest

Array = np.ndarray[Any, Any]


def matrix(rows: int = 24, columns: int = 128, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("bits", WIDTHS)
def test_mlx_reads_what_is_packed(bits: int) -> None:
    q = quantize(matrix(), [bits])[bits]
    scales, biases = mx.array(q.scales, mx.float32), mx.array(q.biases, mx.float32)
    read = mx.dequantize(mx.array(q.packed()), scales, biases, q.group_size, bits)
    assert np.allclose(np.array(read), q.weight(), atol=1e-6)
    x = mx.array(matrix(3, 128, 9))
    y = mx.quantized_matmul(x, mx.array(q.packed()), scales, biases, True, q.group_size, bits)
    assert np.allclose(np.array(y), np.array(x) @ q.weight().T, atol=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_grids_err_less_than_mlx_own(bits: int) -> None:
    weight = matrix(64, 256)
    importance = np.random.default_rng(1).exponential(size=256).astype(np.float32) ** 2
    stock = np.array(mx.dequantize(*mx.quantize(mx.array(weight), 64, bits), 64, bits))
    q = quantize(weight, [bits], importance)[bits]
    ours, theirs = (((w - weight) ** 2 * importance).sum() for w in (q.weight(), stock))
    assert ours < 0.8 * theirs


def test_feedback_changes_outputs_less() -> None:
    weight, x = matrix(32, 128), matrix(600, 128, 3) @ matrix(128, 128, 4)
    hessian = x.T @ x / len(x)
    order, counted = factorise(hessian, 0.01), np.diag(hessian)
    fed_back = quantize(weight, [3], counted, order)[3].weight()
    rounded = quantize(weight, [3], counted)[3].weight()
    before, after = (np.square(x @ (w - weight).T).sum() for w in (rounded, fed_back))
    assert after < 0.6 * before


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_constant_matrix(value: float) -> None:
    q = quantize(np.full((4, 64), value, np.float32), [2])[2]
    assert np.allclose(q.weight(), value, atol=1e-3)


def test_what_cannot_be_stored() -> None:
    with pytest.raises(InputError, match="divides 96"):
        quantize(matrix(4, 96), [3])
    with pytest.raises(InputError, match="not 1"):
        quantize(matrix(), [1])
    with pytest.raises(InputError, match="no numbers"):
        quantize(np.full((4, 64), np.inf, np.float32), [3])
