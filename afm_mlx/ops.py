"""Attention and SwiGLU; on GPUs MLX's own kernels, on the CPU ones with a quick ``exp``.

MLX's CPU backend computes ``exp`` one number at a time (about 15 ns each), so softmax and
SiLU take most of a prompt's time there. A polynomial, squared five times, is all products and
sums, which the C++ compiler behind ``mx.compile`` vectorises: about five times as fast, and
off by less than 8e-6 of the value.
"""

import math
import shutil
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mlx.core as mx
from mlx_lm.models import activations, base

# Taylor series of exp, for arguments within EXP_LIMIT / 32.
_COEFFICIENTS = [1 / math.factorial(n) for n in range(8, -1, -1)]
EXP_LIMIT = 40.0
"""Arguments are clipped there: exp(-40) = 4e-18 counts as nothing beside 1."""
MASKED = -1e9
"""Added to the scores of keys that a query must not see."""
LEAST_SIZE = 2**14
"""Below so many numbers (decoding, that is) MLX's own forms are as quick."""


COMPILES = (
    sys.platform != "linux" or mx.default_device() != mx.cpu or shutil.which("g++") is not None
)
"""Whether ``mx.compile`` can work: for Linux CPUs it calls g++."""
if not COMPILES:
    mx.disable_compile()  # else every compiled function would raise


def _quick(x: mx.array, size: int) -> bool:
    """Whether ``size`` numbers like ``x`` are worth the CPU forms."""
    return (
        COMPILES and size >= LEAST_SIZE and x.dtype == mx.float32 and mx.default_device() == mx.cpu
    )


def _exp(x: mx.array) -> mx.array:
    """exp of ``x`` within +-EXP_LIMIT, by exp(x) = exp(x / 32) ** 32."""
    y = mx.maximum(mx.minimum(x, EXP_LIMIT), -EXP_LIMIT) * (1 / 32)
    out: Any = _COEFFICIENTS[0]
    for c in _COEFFICIENTS[1:]:
        out = out * y + c
    for _ in range(5):
        out = out * out
    return out


def _silu_times(gate: mx.array, up: mx.array) -> mx.array:
    return gate * up / (1 + _exp(-gate))


def _silu_gradients(gate: mx.array, up: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
    s = 1 / (1 + _exp(-gate))
    silu = gate * s
    return cotangent * up * (s + silu * (1 - s)), cotangent * silu


@lru_cache(maxsize=512)
def _compiled(function: Callable[..., Any], shape: tuple[int, ...]) -> Callable[..., Any]:
    """One compiled form per shape: MLX vectorises no kernel that serves several shapes, and
    keeps all it ever compiled, so the least used are dropped here."""
    return mx.compile(function)


@mx.custom_function
def quick_softmax(x: mx.array) -> mx.array:
    """Softmax over the last axis."""
    shifted = x - mx.max(x, axis=-1, keepdims=True)
    e = _compiled(_exp, x.shape)(shifted)
    return e / mx.sum(e, axis=-1, keepdims=True)


@quick_softmax.vjp
def _softmax_vjp(x: mx.array, cotangent: mx.array, p: mx.array) -> mx.array:
    weighted = p * cotangent
    return weighted - p * mx.sum(weighted, axis=-1, keepdims=True)


@mx.custom_function
def quick_swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up, element by element."""
    return _compiled(_silu_times, gate.shape)(gate, up)


@quick_swiglu.vjp
def _swiglu_vjp(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array
) -> tuple[mx.array, mx.array]:
    return _compiled(_silu_gradients, cotangent.shape)(*primals, cotangent)


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up (arXiv 2002.05202)."""
    product: Any = quick_swiglu if _quick(gate, gate.size) else activations.swiglu
    return product(gate, up)


def attention(
    queries: mx.array, keys: Any, values: Any, cache: Any, scale: float, mask: Any
) -> mx.array:
    """Scaled dot-product attention of grouped queries, ``[B, num_heads, L, head_dim]``.

    Args:
        queries: ``[B, num_heads, L, head_dim]``.
        keys, values: ``[B, num_kv_heads, S, head_dim]``, or what ``mx.quantize`` made of them:
            codes, scales and biases, of any width and group size.
        cache: the KV cache they come from, or ``None``.
        mask: ``None``, ``"causal"`` (the last query sees all keys), or an array that
            broadcasts to ``[B, num_heads, L, S]``: booleans, or numbers to add.
    """
    b, heads, length, dim = queries.shape
    if not (isinstance(keys, mx.array) and isinstance(values, mx.array)):
        if length == 1 and mask is None and mx.default_device() != mx.cpu:
            return packed_attention(queries, keys, values, scale)
        keys, values, cache = dense(keys, dim), dense(values, dim), None
    if length == 1 or not _quick(queries, heads * length * keys.shape[2]):
        return base.scaled_dot_product_attention(
            queries, keys, values, cache=cache, scale=scale, mask=mask
        )
    kv_heads, total = keys.shape[1], keys.shape[2]
    grouped = (queries * scale).reshape(b, kv_heads, -1, dim)
    scores = (grouped @ keys.swapaxes(-1, -2)).reshape(b, heads, length, total)
    if isinstance(mask, str):
        mask = mx.arange(total - length, total)[:, None] >= mx.arange(total)
    if mask is not None:
        scores = scores + (mx.where(mask, 0.0, MASKED) if mask.dtype == mx.bool_ else mask)
    weights: Any = quick_softmax(scores)
    weights = weights.reshape(b, kv_heads, -1, total)
    return (weights @ values).reshape(b, heads, length, -1)


def packed_attention(queries: mx.array, keys: Any, values: Any, scale: float) -> mx.array:
    """Attention of queries that see all keys, straight from quantised keys and values.

    It moves the fewest bytes, which is what one query on a GPU costs. Several queries gain more
    from a dense copy that they share, and on the CPU a single one does: MLX's quantised product
    is slow there, and takes as long again for every query.
    """
    b, heads, length, dim = queries.shape
    kv_heads = (keys if isinstance(keys, mx.array) else keys[0]).shape[1]
    grouped = (queries * scale).reshape(b, kv_heads, -1, dim)
    weights = mx.softmax(_times(grouped, keys, dim, transpose=True), axis=-1, precise=True)
    return _times(weights, values, dim, transpose=False).reshape(b, heads, length, -1)


def _times(x: mx.array, table: Any, dim: int, transpose: bool) -> mx.array:
    if isinstance(table, mx.array):
        return x @ (table.swapaxes(-1, -2) if transpose else table)
    codes, scales, biases = table
    bits, group_size = _form(table, dim)
    return mx.quantized_matmul(x, codes, scales, biases, transpose, group_size, bits)


def dense(table: Any, dim: int) -> mx.array:
    """The array ``[..., dim]`` itself, or that from which ``mx.quantize`` made codes, scales and
    biases. On the CPU codes of 8 and 4 bits are read as bytes, twice as fast as MLX's own way."""
    if isinstance(table, mx.array):
        return table
    codes, scales, biases = table
    bits, group_size = _form(table, dim)
    if bits not in (4, 8) or mx.default_device() != mx.cpu:
        return mx.dequantize(codes, scales, biases, group_size, bits)
    codes = codes.view(mx.uint8)
    if bits == 4:  # spread the halves of each byte over two
        pairs = codes.astype(mx.uint16)
        codes = ((pairs | pairs << 4) & 0x0F0F).view(mx.uint8)
    grouped = codes.reshape(*scales.shape, group_size).astype(scales.dtype)
    return (grouped * scales[..., None] + biases[..., None]).reshape(*scales.shape[:-1], dim)


def _form(table: Any, dim: int) -> tuple[int, int]:
    """Bits and group size of quantised rows of ``dim`` numbers."""
    codes, scales, _ = table
    return codes.shape[-1] * 32 // dim, dim // scales.shape[-1]


def exp(x: mx.array) -> mx.array:
    """exp of ``x``; on the CPU arguments count as within +-EXP_LIMIT."""
    quick: Any = quick_exp if _quick(x, x.size) else mx.exp
    return quick(x)


def logsumexp(x: mx.array) -> mx.array:
    """log of the summed exp over the last axis, which is dropped.

    On the CPU MLX's own form is slow and, over a vocabulary, 1e-4 too small.
    """
    quick: Any = quick_logsumexp if _quick(x, x.size) else _logsumexp
    return quick(x)


@mx.custom_function
def quick_exp(x: mx.array) -> mx.array:
    """exp, element by element."""
    return _compiled(_exp, x.shape)(x)


@quick_exp.vjp
def _exp_vjp(_: mx.array, cotangent: mx.array, e: mx.array) -> mx.array:
    return cotangent * e


@mx.custom_function
def quick_logsumexp(x: mx.array) -> mx.array:
    """logsumexp over the last axis; a product with ones adds in blocks, so it is exact too."""
    peak = mx.max(x, axis=-1, keepdims=True)
    e = _compiled(_shifted_exp, x.shape)(x, peak)
    return mx.squeeze(mx.log(e @ mx.ones((x.shape[-1], 1))) + peak, -1)


@quick_logsumexp.vjp
def _logsumexp_vjp(x: mx.array, cotangent: mx.array, total: mx.array) -> mx.array:
    return _compiled(_softmax_gradient, x.shape)(x, total[..., None], cotangent[..., None])


def _shifted_exp(x: mx.array, shift: mx.array) -> mx.array:
    return _exp(x - shift)


def _softmax_gradient(x: mx.array, total: mx.array, cotangent: mx.array) -> mx.array:
    return _exp(x - total) * cotangent


def _logsumexp(x: mx.array) -> mx.array:
    return mx.logsumexp(x, axis=-1)
