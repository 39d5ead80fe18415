"""The kernels' own text, run as C++: Metal's as MLX writes it, CUDA's as MLX would.

Everything goes through :func:`kernels.matmul` and :func:`kernels.dequantize`, so what they launch
is tested too. Results are compared with numpy in float64.
"""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from afm_mlx.quant import kernels
from afm_mlx.quant.kernel_source import LANGUAGES, Language
from afm_mlx.quant.planes import PLANES, pack
from tests.quant.shim import KernelFault, Shim, clang

import mlx.core as mx
import numpy as np
import pytest

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]

HALF, BRAIN, FULL = mx.float16, mx.bfloat16, mx.float32
# Half a unit in the last place; float32 sums 1056 products in another order.
TOLERANCES = {HALF: 2**-11, BRAIN: 2**-8, FULL: 2e-6}


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, programs: Path) -> Iterator[Callable[..., None]]:
    """Have kernels of a language run on the shim, perhaps with their source changed."""
    compiler = clang()

    def put(language: Language, mutate: Callable[[str], str] = str, shift: int = 0) -> None:
        shim = Shim(language, programs, compiler, mutate, shift)
        monkeypatch.setattr(kernels, "backend", lambda: language)
        monkeypatch.setattr(mx.fast, f"{language}_kernel", shim.kernel)
        kernels._kernel.cache_clear()
        kernels._passes.cache_clear()

    yield put
    kernels._kernel.cache_clear()
    kernels._passes.cache_clear()


class Weights:
    """Random palettised weights ``[n, k]``; ``dense`` has them in float64."""

    def __init__(
        self, bits: int, n: int, k: int, group_size: int = 16, lut_dtype: mx.Dtype = HALF
    ) -> None:
        random = np.random.default_rng([bits, n, k, group_size])
        codes = random.integers(0, 1 << bits, (n, k), np.uint8)
        self.lut = mx.array(random.standard_normal((n // group_size, 1 << bits))).astype(lut_dtype)
        table = np.array(self.lut).astype(np.float64)
        self.dense: Array = table[np.arange(n)[:, None] // group_size, codes]
        self.planes = [mx.array(plane) for plane in pack(codes, bits)]
        self.bits, self.group_size, self.random = bits, group_size, random

    def matmul_error(self, m: int, dtype: mx.Dtype) -> float:
        """Largest error of the product with m random vectors, beside the largest number."""
        x = mx.array(self.random.standard_normal((m, self.dense.shape[1]))).astype(dtype)
        exact = np.array(x.astype(FULL)).astype(np.float64) @ self.dense.T
        y = kernels.matmul(x, self.planes, self.lut, self.bits, self.group_size)
        assert y.dtype == dtype and y.shape == exact.shape
        return float(np.abs(np.array(y.astype(FULL)) - exact).max() / np.abs(exact).max())

    def dequantized_exactly(self, dtype: mx.Dtype) -> bool:
        y = kernels.dequantize(self.planes, self.lut, self.bits, self.group_size, dtype)
        exact = mx.array(self.dense.astype(np.float32)).astype(dtype)
        assert y.dtype == dtype and y.shape == exact.shape
        return bool(mx.all(y == exact).item())


@pytest.mark.parametrize("bits", PLANES)
@pytest.mark.parametrize(
    ("language", "m", "group_size", "dtype", "lut_dtype"),
    [
        ("metal", 1, 16, HALF, HALF),
        ("metal", 3, 8, FULL, FULL),
        ("metal", 4, 16, BRAIN, HALF),
        ("metal", 8, 16, HALF, HALF),
        ("cuda", 1, 16, BRAIN, HALF),
        ("cuda", 8, 8, FULL, FULL),
    ],
)
def test_matmul(
    install: Callable[..., None],
    language: Language,
    bits: int,
    m: int,
    group_size: int,
    dtype: mx.Dtype,
    lut_dtype: mx.Dtype,
) -> None:
    install(language)
    # One word, in Metal's constant address space at one bit; steps that leave lanes idle.
    for groups, k in ((1, 32), (3, 576), (2, 1056)):
        weights = Weights(bits, groups * group_size, k, group_size, lut_dtype)
        assert weights.matmul_error(m, dtype) <= TOLERANCES[dtype], (groups, k)


@pytest.mark.parametrize(("m", "group_size"), [(2, 4), (5, 12), (6, 20), (7, 32)])
def test_other_numbers_of_vectors_and_rows(
    install: Callable[..., None], m: int, group_size: int
) -> None:
    install("metal")
    weights = Weights(3, 2 * group_size, 288, group_size)
    assert weights.matmul_error(m, HALF) <= TOLERANCES[HALF]


@pytest.mark.parametrize("bits", PLANES)
@pytest.mark.parametrize(
    ("language", "group_size", "dtype", "lut_dtype"),
    [
        ("metal", 16, HALF, HALF),
        ("metal", 8, BRAIN, FULL),
        ("cuda", 32, FULL, HALF),
    ],
)
def test_dequantize(
    install: Callable[..., None],
    language: Language,
    bits: int,
    group_size: int,
    dtype: mx.Dtype,
    lut_dtype: mx.Dtype,
) -> None:
    install(language)
    # Fewer columns than a group has threads; groups that are not full, one with 32 threads.
    for groups, k in ((1, 32), (3, 576), (2, 288)):
        weights = Weights(bits, groups * group_size, k, group_size, lut_dtype)
        assert weights.dequantized_exactly(dtype), (groups, k)


@pytest.mark.parametrize(("dtype", "shift"), [(HALF, 2), (FULL, 4)])
def test_vectors_anywhere_in_memory(
    install: Callable[..., None], dtype: mx.Dtype, shift: int
) -> None:
    """A view may start at any number, where CUDA reads no 16 bytes at once."""
    install("cuda", shift=shift)
    assert Weights(4, 16, 96).matmul_error(1, dtype) <= TOLERANCES[dtype]


def swap(old: str, new: str) -> Callable[[str], str]:
    def mutate(source: str) -> str:
        assert old in source
        return source.replace(old, new)

    return mutate


def hoist(source: str) -> str:
    """Leave early: ahead of a barrier that the others wait at."""
    check = "    if (k >= columns) return;\n"
    start = "    const unsigned k = (blockIdx.x * blockDim.x + threadIdx.x);\n"
    assert check in source and start in source
    return source.replace(check, "").replace(start, start + check)


METAL, CUDA = LANGUAGES["metal"], LANGUAGES["cuda"]
HALF_THE_THREADS = f"if ({METAL.thread} % 2u) {METAL.barrier}"


@pytest.mark.parametrize(
    ("language", "bits", "mutate", "caught"),
    [
        ("metal", 4, swap(f"{METAL.barrier};", ""), "wrong numbers"),
        ("metal", 4, swap(METAL.barrier, HALF_THE_THREADS), "wait for different things"),
        ("metal", 4, swap("j % 8u * 4u", "j % 8u * 3u"), "wrong numbers"),
        ("metal", 4, swap("j % 8u * 4u", "j % 8u * 5u"), "ends with -"),  # UBSan: 35 of 32 bits
        ("metal", 3, swap("<< 2u", "<< 1u"), "wrong numbers"),
        ("metal", 2, swap("row0 / 16u", "row0 / 32u"), "wrong numbers"),
        ("metal", 4, swap("k < columns", "k < columns + 16u"), "ends with -"),  # the page beyond
        ("metal", 4, swap("float sums", "const unsigned* p = low; float sums"), "error:"),
        ("cuda", 4, swap("__syncthreads();", ""), "wrong numbers"),
        ("cuda", 1, swap("(threadIdx.x / 32u)", "0u"), "wrong numbers"),
    ],
)
def test_broken_matmuls_are_caught(
    install: Callable[..., None],
    language: Language,
    bits: int,
    mutate: Callable[[str], str],
    caught: str,
) -> None:
    """Else a shim that sees nothing would pass for right kernels."""
    install(language, mutate)
    with pytest.raises(KernelFault, match=caught):
        if not Weights(bits, 48, 576).matmul_error(1, HALF) < 0.01:
            raise KernelFault("wrong numbers")


@pytest.mark.parametrize(
    ("language", "mutate", "caught"),
    [
        ("metal", swap(f"{METAL.barrier};", ""), "wrong numbers"),
        # Metal's last group has 32 threads: they alone must read all of the table.
        ("metal", swap(f"i += {METAL.threads}", "i += 256u"), "wrong numbers"),
        ("cuda", swap("    if (k >= columns) return;\n", ""), "ends with -"),
        ("cuda", hoist, "wait for different things"),
    ],
)
def test_broken_dequantizes_are_caught(
    install: Callable[..., None], language: Language, mutate: Callable[[str], str], caught: str
) -> None:
    install(language, mutate)
    with pytest.raises(KernelFault, match=caught):
        if not Weights(8, 32, 288).dequantized_exactly(HALF):
            raise KernelFault("wrong numbers")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_self_test_takes_right_kernels_and_no_others(
    install: Callable[..., None], language: Language
) -> None:
    install(language)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.usable(3)
    install(language, swap("<< 2u", "<< 1u"))
    with pytest.warns(RuntimeWarning, match=f"{language} kernels of 3-bit palettes"):
        assert not kernels.usable(3)
