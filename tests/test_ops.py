"""The CPU forms against float64 numpy, MLX's own kernels and automatic gradients."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from afm_mlx import ops
from tests.conftest import number

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import activations, base
from mlx_lm.models.cache import QuantizedKVCache


def difference(a: mx.array, b: mx.array) -> float:
    return number(mx.abs(a - b).max())


def test_exp() -> None:
    x = np.linspace(-ops.EXP_LIMIT, ops.EXP_LIMIT, 100_001, dtype=np.float32)
    found, exact = np.array(ops._exp(mx.array(x)), np.float64), np.exp(x.astype(np.float64))
    relative = np.abs(found / exact - 1)
    assert relative[np.abs(x) < 20].max() < 8e-6
    assert relative.max() < 5e-3  # where exp is below 1e-15, or its inverse is
    beyond = np.array(ops._exp(mx.array([-1e30, -math.inf, 1e30, math.inf])))
    assert np.isfinite(beyond).all()


def test_softmax() -> None:
    x = mx.random.normal((5, 300)) * 8
    exact = np.exp(np.array(x, np.float64))
    exact /= exact.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.array(ops.quick_softmax(x)), exact, atol=1e-6)


def test_softmax_survives_large_and_masked_scores() -> None:
    x = mx.array([[1e4, 1e4 - 1, ops.MASKED], [-1e4, ops.MASKED, ops.MASKED]])
    e = math.exp(-1)
    expected: list[list[float]] = [[1 / (1 + e), e / (1 + e), 0], [1, 0, 0]]
    np.testing.assert_allclose(np.array(ops.quick_softmax(x)), expected, atol=1e-6)


def test_swiglu_far_out() -> None:
    gate = mx.array([-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4])
    found = np.array(ops.quick_swiglu(gate, mx.full(gate.shape, 2.0)))
    g = np.array(gate, np.float64)
    expected = 2 * g / (1 + np.exp(-np.clip(g, -700, 700)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-10)


def test_gradients() -> None:
    def loss_of(
        softmax: Callable[..., mx.array], swiglu: Callable[..., mx.array]
    ) -> Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]:
        def loss(x: mx.array, y: mx.array) -> mx.array:
            return (softmax(x) * y).sum() + (swiglu(x, y) ** 2).sum()

        return mx.grad(loss, argnums=(0, 1))

    x, y = mx.random.normal((7, 90)) * 3, mx.random.normal((7, 90))
    plain = loss_of(lambda x: mx.softmax(x, axis=-1), lambda g, u: g * mx.sigmoid(g) * u)
    # MLX's stubs lose what a custom_function returns.
    own = loss_of(ops.quick_softmax, ops.quick_swiglu)  # type: ignore[arg-type]
    for found, expected in zip(own(x, y), plain(x, y), strict=True):
        assert difference(found, expected) < 1e-4


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "additive"])
@pytest.mark.parametrize(("length", "total"), [(64, 64), (40, 200)])
def test_attention_equals_mlx(kind: str, length: int, total: int) -> None:
    mx.random.seed(0)
    q = mx.random.normal((2, 6, length, 32)) * 3
    k, v = mx.random.normal((2, 2, total, 32)), mx.random.normal((2, 2, total, 32))
    seen = mx.arange(total) <= mx.arange(total - length, total)[:, None]
    some = seen & (mx.arange(total) > 3)[None] | (mx.arange(total) == total - length)[None]
    mask = {
        "none": None,
        "causal": "causal",
        "bool": mx.broadcast_to(some, seen.shape),
        "additive": mx.random.normal((length, total)),
    }[kind]
    assert q.shape[1] * length * total >= ops.LEAST_SIZE
    expected = base.scaled_dot_product_attention(q, k, v, cache=None, scale=0.2, mask=mask)
    assert difference(ops.attention(q, k, v, None, 0.2, mask), expected) < 1e-5


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_dense_equals_dequantize(bits: int, dtype: mx.Dtype) -> None:
    x = mx.random.normal((2, 3, 17, 128)).astype(dtype)
    for group_size in (32, 64, 128):
        codes, scales, biases = (
            t[..., 2:9, :]
            for t in mx.quantize(x, group_size, bits)  # as a cache hands them out
        )
        expected = mx.dequantize(codes, scales, biases, group_size, bits)
        found = ops.dense((codes, scales, biases), 128)
        assert found.dtype == dtype
        assert difference(found, expected) <= (1e-6 if dtype == mx.float32 else 0.03)
    assert ops.dense(x, 128) is x


@pytest.mark.parametrize("device", [mx.cpu, mx.gpu])
@pytest.mark.parametrize("widths", [(8, 8), (8, 4), (16, 3), (6, 16)])
@pytest.mark.parametrize("length", [1, 5, 300])
def test_attention_over_quantised_keys_and_values(
    length: int, widths: tuple[int, int], device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    q = mx.random.normal((2, 6, length, 64)) * 3
    tables: list[Any] = []
    plain: list[mx.array] = []
    for bits in widths:
        x = mx.random.normal((2, 2, 300, 64))
        tables.append(x if bits == 16 else mx.quantize(x, 32, bits))
        if bits != 16:
            codes, scales, biases = tables[-1]
            x = mx.dequantize(codes, scales, biases, 32, bits)
        plain.append(x)
    mask = None if length == 1 else "causal"
    expected = base.scaled_dot_product_attention(q, *plain, cache=None, scale=0.2, mask=mask)
    monkeypatch.setattr(mx, "default_device", lambda: device)  # the way taken there, on any machine
    k, v = tables
    found = ops.attention(q, k, v, QuantizedKVCache(32, 8), 0.2, mask)
    assert difference(found, expected) < 1e-5


def test_swiglu_equals_mlx_lm() -> None:
    gate, up = mx.random.normal((128, 256)), mx.random.normal((128, 256))
    assert gate.size >= ops.LEAST_SIZE
    assert difference(ops.swiglu(gate, up), activations.swiglu(gate, up)) < 1e-5


def test_without_a_compiler_nothing_is_compiled(tmp_path: Path) -> None:
    # MLX calls g++ for compiled functions on Linux CPUs; a bare machine has none.
    code = (
        "from afm_mlx import ops; import mlx.core as mx\n"
        "x = mx.ones((128, 256)); print(float(ops.swiglu(x, x)[0, 0]), ops.COMPILES)"
    )
    env = {"PATH": str(tmp_path), "TMPDIR": str(tmp_path), "AFM_BLAS": "off", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split()[0].startswith("0.731"), done.stderr
    assert (done.stdout.split()[1] == "True") == (sys.platform != "linux")
