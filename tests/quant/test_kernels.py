"""The choice of kernels and their self-test, with stand-ins for MLX's kernels; and real GPUs."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.quant import kernels
from afm_mlx.quant.planes import PLANES, look_up, pack, unpack

import mlx.core as mx
import numpy as np
import pytest

Edit = Callable[[mx.array, int], mx.array]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Kernels and verdicts of one test are not those of the next."""
    for cached in (kernels._kernel, kernels._passes):
        cached.cache_clear()
    yield
    for cached in (kernels._kernel, kernels._passes):
        cached.cache_clear()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Edit], None]:
    """Have kernels computed plainly, and their results of so many bits edited."""

    def put(edit: Edit) -> None:
        def make(input_names: Sequence[str], **_: Any) -> Callable[..., list[mx.array]]:
            def call(
                inputs: Sequence[mx.array], output_dtypes: Sequence[mx.Dtype], **_: Any
            ) -> list[mx.array]:
                named = dict(zip(input_names, inputs, strict=True))
                bits = int(math.log2(named["lut"].shape[1]))
                codes = unpack(inputs[: len(PLANES[bits])], bits)
                y = look_up(codes, named["lut"].astype(mx.float32))
                if "x" in named:
                    y = named["x"].astype(mx.float32) @ y.T
                return [edit(y, bits).astype(output_dtypes[0])]

            return call

        monkeypatch.setattr(kernels, "backend", lambda: "metal")
        monkeypatch.setattr(mx.fast, "metal_kernel", make)

    return put


def test_without_a_gpu_nothing_is_usable_and_nobody_is_warned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "backend", lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not any(kernels.usable(bits) for bits in PLANES)
    assert kernels.self_test() == []
    planes, lut = [mx.zeros((16, 2), mx.uint32)], mx.zeros((1, 4), mx.float16)
    with pytest.raises(InputError, match="need a GPU"):
        kernels.dequantize(planes, lut, 2)


def test_right_kernels_are_usable(install: Callable[[Edit], None]) -> None:
    install(lambda y, bits: y)
    checks = kernels.self_test()
    assert all(check.ok and not check.message for check in checks)
    seen = {(c.kernel, c.bits, c.rows, c.dtype) for c in checks}
    assert len(seen) == len(checks) == len(PLANES) * 3 * (1 + 4)
    assert {bits for _, bits, _, _ in seen} == set(PLANES)
    assert {rows for kernel, _, rows, _ in seen if kernel == "matmul"} == {1, 3, 4, 8}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(kernels.usable(bits, mx.bfloat16) for bits in PLANES)
        assert not kernels.usable(3, mx.int32)


def test_a_wrong_kernel_is_not_used(install: Callable[[Edit], None]) -> None:
    install(lambda y, bits: mx.roll(y, 1, -1) if bits == 3 else y)
    with pytest.warns(RuntimeWarning, match="3-bit palettes.*afm doctor --kernels") as warned:
        assert not kernels.usable(3)
        assert not kernels.usable(3)
    assert len(warned) == 1 and warned[0].filename == __file__
    assert kernels.usable(2) and kernels.usable(4)


def test_numbers_that_are_none_do_not_pass(install: Callable[[Edit], None]) -> None:
    """NaN compares false with everything, a tolerance too."""
    install(lambda y, bits: mx.full(y.shape, math.nan))
    assert not any(check.ok for check in kernels.self_test((2,)))


def test_a_kernel_that_raises_is_a_failed_check(install: Callable[[Edit], None]) -> None:
    def fail(y: mx.array, bits: int) -> mx.array:
        raise RuntimeError("Unable to build metal library from source\nerror: …\n")

    install(fail)
    checks = kernels.self_test((4,), ("float16",), (1,))
    assert [check.kernel for check in checks] == ["dequantize", "matmul"]
    for check in checks:
        assert not check.ok and math.isnan(check.error)
        assert check.message == "fails: Unable to build metal library from source"
    with pytest.warns(RuntimeWarning, match="Unable to build"):
        assert not kernels.usable(4)


def test_a_cuda_build_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """mx.cuda.is_available says yes there, and the default device is a GPU."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_count", lambda kind: 0)
    assert kernels.backend() is None
    monkeypatch.setattr(mx, "device_count", lambda kind: 1)
    assert kernels.backend() == "cuda"
    monkeypatch.setattr(mx, "default_device", lambda: mx.cpu)  # what a person chose
    assert kernels.backend() is None


def arguments(bits: int = 3, n: int = 32, k: int = 64) -> tuple[list[mx.array], mx.array]:
    codes = np.zeros((n, k), np.uint8)
    return [mx.array(p) for p in pack(codes, bits)], mx.zeros((n // 16, 1 << bits), mx.float16)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((9, 64), mx.float16, r"\[1 to 8, 64\].*dequantize"),
        ((0, 64), mx.float16, r"\[1 to 8, 64\]"),
        ((1, 32), mx.float16, r"not \[1, 32\]"),
        ((64,), mx.float16, r"not \[64\]"),
        ((1, 64), mx.int32, "float16, bfloat16, float32, not mlx.core.int32"),
    ],
)
def test_vectors_that_no_kernel_takes(
    install: Callable[[Edit], None], shape: tuple[int, ...], dtype: mx.Dtype, message: str
) -> None:
    install(lambda y, bits: y)
    planes, lut = arguments()
    with pytest.raises(InputError, match=message):
        kernels.matmul(mx.zeros(shape, dtype), planes, lut, 3)


def test_weights_that_no_kernel_takes(install: Callable[[Edit], None]) -> None:
    install(lambda y, bits: y)
    planes, lut = arguments()
    for wrong, table, bits, group_size, message in (
        (planes[:1], lut, 3, 16, "3 bits in 1 planes"),
        (planes, lut, 5, 16, "5 bits"),
        (planes, lut, 3, 18, "groups of 4, 8, ... rows, not 18"),
        (planes, lut, 3, 0, "groups of 4"),
        (planes, lut, 3, 12, "multiple of 12 rows"),
        (planes[::-1], lut, 3, 16, "multiple of 16 rows and of 32 columns"),
        (planes, lut[:1], 3, 16, r"\[2, 8\], not .*\[1, 8\]"),
        (planes, lut.astype(mx.bfloat16), 3, 16, "float16 or float32"),
    ):
        with pytest.raises(InputError, match=message):
            kernels.dequantize(wrong, table, bits, group_size)
    columns48 = [mx.zeros((16, 3), mx.uint32)]
    with pytest.raises(InputError, match="of 32 columns, not 16 and 48"):
        kernels.dequantize(columns48, mx.zeros((1, 4), mx.float16), 2)


def test_kernels_of_one_name_have_one_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX up to 0.32.0 ran the first for all of them."""
    made: dict[str, set[str]] = {}

    def make(name: str, source: str, **_: Any) -> str:
        made.setdefault(name, set()).add(source)
        return name

    monkeypatch.setattr(mx.fast, "metal_kernel", make)
    shapes = itertools.product(PLANES, (8, 16), range(1, 9), kernels._DTYPES)
    for bits, group_size, vectors, dtype in shapes:
        kernels._kernel("matmul", "metal", bits, group_size, vectors, dtype, mx.float16)
        kernels._kernel("dequantize", "metal", bits, group_size, 0, dtype, mx.float16)
    assert len(made) == len(PLANES) * 2 * 3 * 9
    assert all(len(sources) == 1 and name.isidentifier() for name, sources in made.items())


@pytest.mark.metal
def test_metal() -> None:
    if kernels.backend() != "metal":
        pytest.skip("no Apple GPU")
    assert [check for check in kernels.self_test() if not check.ok] == []


@pytest.mark.cuda
def test_cuda() -> None:
    if kernels.backend() != "cuda":
        pytest.skip("no NVIDIA GPU")
    assert [check for check in kernels.self_test() if not check.ok] == []
