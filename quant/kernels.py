"""Palettised products on GPUs: the kernels, and whether they are right on this machine.

Neither the Metal nor the CUDA form has run on a GPU yet: the tests run both through a C++
stand-in for one, and compile the CUDA form with NVRTC. So :func:`usable` lets a kernel be used
only after it has agreed with plain MLX on the machine at hand; ``afm doctor --kernels`` shows
:func:`self_test`.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

from afm_mlx.errors import InputError, first_line
from afm_mlx.quant import kernel_source
from afm_mlx.quant.kernel_source import LANES, MOST_VECTORS, ROWS, Dtype, Language
from afm_mlx.quant.planes import PLANES, WORD, look_up, pack, unpack

import mlx.core as mx
import numpy as np

Kind = Literal["matmul", "dequantize"]

# Largest error against float32, as a part of the largest number: a unit in the last place where
# the result is rounded, what sums in another order give where it is not.
TOLERANCES: dict[Dtype, float] = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 1e-5}
_DTYPES: dict[Dtype, mx.Dtype] = {
    "float16": mx.float16,
    "bfloat16": mx.bfloat16,
    "float32": mx.float32,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_DEQUANTIZE_THREADS = 256
_TEST_GROUP = 16  # rows per table in the self-test
_TEST_COLUMNS = 1056  # no power of two; leaves lanes and the last group of threads unfilled


@dataclass(frozen=True)
class Check:
    """One kernel beside plain MLX.

    Attributes:
        kernel: ``matmul`` or ``dequantize``.
        rows: vectors multiplied at once, or 0.
        dtype: type of the vectors and of the result.
        error: largest difference, as a part of the largest number; NaN if there is no result.
        message: what is wrong, in one line; empty if ``ok``.
    """

    kernel: Kind
    bits: int
    rows: int
    dtype: Dtype
    error: float
    ok: bool
    message: str


def backend() -> Language | None:
    """The language of the GPU that MLX computes on, or ``None`` where it uses the CPU."""
    if mx.default_device() == mx.cpu or not mx.device_count(mx.gpu):
        return None  # a CUDA build calls CUDA available without any GPU
    if mx.metal.is_available():
        return "metal"
    return "cuda" if mx.cuda.is_available() else None


def usable(bits: int, dtype: mx.Dtype = mx.float16) -> bool:
    """Whether a GPU is there that multiplies ``bits`` wide palettes with ``dtype`` rightly.

    Tried once for each width and type; warns if a kernel fails. CUDA takes some seconds to
    compile each of the three kernels tried.
    """
    language = backend()
    if language is None or dtype not in _NAMES:
        return False
    return _passes(language, bits, _NAMES[dtype])


def matmul(
    x: mx.array, planes: Sequence[mx.array], lut: mx.array, bits: int, group_size: int = 16
) -> mx.array:
    """``x @ W.T``, summed in float32; ``[M, N]`` in the type of ``x``.

    Args:
        x: ``[M, K]`` with M from 1 to 8.
        planes: indices ``[N, K]`` of :func:`afm_mlx.quant.planes.pack`.
        lut: ``[N / group_size, 2^bits]``, float16 or float32.

    Raises:
        InputError: the shapes or types are none that the kernels take.
    """
    n, k = _shape(planes, lut, bits, group_size)
    if x.ndim != 2 or x.shape[1] != k or not 1 <= len(x) <= MOST_VECTORS:
        raise InputError(
            f"kernels multiply [1 to {MOST_VECTORS}, {k}] vectors, not {list(x.shape)}:"
            " dequantize the weights for more"
        )
    kernel = _kernel("matmul", _language(), bits, group_size, len(x), _name(x.dtype), lut.dtype)
    tile = kernel_source.tile_rows(group_size)
    threads = tile // ROWS * LANES
    (y,) = kernel(
        inputs=[*planes, lut, x],
        grid=(n // tile * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[(len(x), n)],
        output_dtypes=[x.dtype],
    )
    return y


def dequantize(
    planes: Sequence[mx.array],
    lut: mx.array,
    bits: int,
    group_size: int = 16,
    dtype: mx.Dtype = mx.float16,
) -> mx.array:
    """Weights ``[N, K]`` in ``dtype``; arguments and errors are those of :func:`matmul`."""
    n, k = _shape(planes, lut, bits, group_size)
    kernel = _kernel("dequantize", _language(), bits, group_size, 0, _name(dtype), lut.dtype)
    (y,) = kernel(
        inputs=[*planes, lut],
        grid=(k, n // kernel_source.tile_rows(group_size), 1),
        threadgroup=(min(k, _DEQUANTIZE_THREADS), 1, 1),
        output_shapes=[(n, k)],
        output_dtypes=[dtype],
    )
    return y


def self_test(
    widths: Iterable[int] = tuple(PLANES),
    dtypes: Iterable[Dtype] = tuple(_DTYPES),
    rows: Iterable[int] = (1, 3, 4, MOST_VECTORS),
) -> list[Check]:
    """Every kernel on small random data beside plain MLX; empty where there is no GPU."""
    if backend() is None:
        return []
    rows = tuple(rows)
    dtypes = tuple(dtypes)
    return [check for bits in widths for dtype in dtypes for check in _checks(bits, dtype, rows)]


@cache
def _passes(language: Language, bits: int, dtype: Dtype) -> bool:
    # Both lengths of a matmul's steps.
    failed = [c for c in self_test((bits,), (dtype,), (1, MOST_VECTORS)) if not c.ok]
    if failed:
        warnings.warn(
            f"the {language} kernels of {bits}-bit palettes are not used: {failed[0].kernel}"
            f" {failed[0].message}; `afm doctor --kernels` shows more",
            RuntimeWarning,
            stacklevel=3,
        )
    return not failed


def _checks(bits: int, dtype: Dtype, rows: tuple[int, ...]) -> Iterator[Check]:
    random = np.random.default_rng(bits)
    groups = 2
    codes = random.integers(0, 1 << bits, (groups * _TEST_GROUP, _TEST_COLUMNS), np.uint8)
    planes = [mx.array(plane) for plane in pack(codes, bits)]
    lut = mx.array(random.standard_normal((groups, 1 << bits)).astype(np.float16))
    with mx.stream(mx.cpu):  # GPUs may round the factors of a float32 product
        weights = look_up(unpack(planes, bits), lut.astype(mx.float32))
        mx.eval(weights)
    yield _check(
        "dequantize",
        bits,
        0,
        dtype,
        partial(dequantize, planes, lut, bits, _TEST_GROUP, _DTYPES[dtype]),
        weights,
    )
    for m in rows:
        normal = random.standard_normal((m, _TEST_COLUMNS), np.float32)
        x = mx.array(normal).astype(_DTYPES[dtype])
        with mx.stream(mx.cpu):
            expected = x.astype(mx.float32) @ weights.T
            mx.eval(x, expected)
        yield _check(
            "matmul",
            bits,
            m,
            dtype,
            partial(matmul, x, planes, lut, bits, _TEST_GROUP),
            expected,
        )


def _check(
    kernel: Kind,
    bits: int,
    rows: int,
    dtype: Dtype,
    compute: Callable[[], mx.array],
    expected: mx.array,
) -> Check:
    try:
        found = np.array(compute().astype(mx.float32))
    except Exception as error:  # what a driver or compiler raises must not end the program
        return Check(kernel, bits, rows, dtype, float("nan"), False, f"fails: {first_line(error)}")
    wanted = np.array(expected)
    relative = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    ok = relative <= TOLERANCES[dtype]  # False for NaN
    return Check(kernel, bits, rows, dtype, relative, ok, "" if ok else f"is off by {relative:.1e}")


@cache
def _kernel(
    kind: Kind,
    language: Language,
    bits: int,
    group_size: int,
    vectors: int,
    dtype: Dtype,
    lut_dtype: mx.Dtype,
) -> Any:
    """MLX's callable; it compiles when it first runs."""
    names = kernel_source.input_names(bits)
    if kind == "matmul":
        names = (*names, "x")
        source = kernel_source.matmul(language, bits, group_size, vectors, dtype)
    else:
        source = kernel_source.dequantize(language, bits, group_size, dtype)
    make = mx.fast.metal_kernel if language == "metal" else mx.fast.cuda_kernel
    return make(
        # MLX has taken kernels of one name for one kernel, whatever their source.
        name=f"afm_{kind}_{bits}bit_{group_size}_{vectors}_{dtype}_{_name(lut_dtype)}",
        input_names=names,
        output_names=["y"],
        source=source,
        header=kernel_source.LANGUAGES[language].header,
    )


def _shape(
    planes: Sequence[mx.array], lut: mx.array, bits: int, group_size: int
) -> tuple[int, int]:
    """N and K, if the kernels take them."""
    if bits not in PLANES or len(planes) != len(PLANES[bits]):
        raise InputError(
            f"no palette has {bits} bits in {len(planes)} planes: use {', '.join(map(str, PLANES))}"
        )
    if group_size < ROWS or group_size % ROWS:
        raise InputError(f"kernels take groups of {ROWS}, {2 * ROWS}, ... rows, not {group_size}")
    n, words = planes[0].shape
    k = words * WORD // PLANES[bits][0]
    shapes = [(n, k * width // WORD) for width in PLANES[bits]]
    if k % WORD or n % group_size or [plane.shape for plane in planes] != shapes:
        raise InputError(
            f"kernels take a multiple of {group_size} rows and of {WORD} columns, not {n} and {k}"
        )
    if lut.shape != (n // group_size, 1 << bits) or lut.dtype not in (mx.float16, mx.float32):
        raise InputError(
            f"the table of {n} rows must be float16 or float32 [{n // group_size}, {1 << bits}],"
            f" not {lut.dtype} {list(lut.shape)}"
        )
    return n, k


def _language() -> Language:
    language = backend()
    if language is None:
        raise InputError("kernels need a GPU that MLX computes on: use the plain form")
    return language


def _name(dtype: mx.Dtype) -> Dtype:
    if dtype not in _NAMES:
        raise InputError(f"kernels compute in {', '.join(_DTYPES)}, not {dtype}")
    return _NAMES[dtype]
