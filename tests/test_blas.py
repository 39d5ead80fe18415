"""The BLAS that is loaded before MLX: that it serves, that it is right, that it never fails.

What a process loads cannot be unloaded, so each case runs in an interpreter of its own.
"""

import ctypes
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from afm_mlx import blas

import mlx.core as mx
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
LIBRARIES = Path(np.__file__).parents[1] / "numpy.libs"
NUMPYS = next((str(p) for p in LIBRARIES.glob("libscipy_openblas64_*")), "")
COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="nothing is preloaded there"),
    pytest.mark.skipif(not (NUMPYS and COMPILER), reason="no C compiler, or numpy without BLAS"),
]

Run = Callable[..., tuple[dict[str, Any], str]]

STATUS = """
import ctypes, dataclasses, json
from afm_mlx import blas
found = dataclasses.asdict(blas.preload())
symbol = getattr(ctypes.CDLL(None), "cblas_sgemm", None)
address = ctypes.cast(symbol, ctypes.c_void_p).value if symbol else 0
owners = [line.split()[-1] for line in open("/proc/self/maps") if
          int(line.split("-")[0], 16) <= address < int(line.split("-")[1].split()[0], 16)]
print(json.dumps(found | {"owner": owners[0] if owners else None}))
"""

# A system's OpenBLAS for machines without one: numpy's, under the usual names.
STAND_IN = r"""
#define BOTH(p, T)                                                                         \
  void scipy_cblas_##p##gemm64_(int, int, int, long, long, long, T, const T *, long,       \
                                const T *, long, T, T *, long);                            \
  void scipy_cblas_##p##gemv64_(int, int, long, long, T, const T *, long, const T *, long, \
                                T, T *, long);                                             \
  void cblas_##p##gemm(int o, int ta, int tb, int m, int n, int k, T al, const T *a,       \
                       int lda, const T *b, int ldb, T be, T *c, int ldc) {                \
    scipy_cblas_##p##gemm64_(o, ta, tb, m, n, k, al, a, lda, b, ldb, be, c, ldc);          \
  }                                                                                        \
  void cblas_##p##gemv(int o, int t, int m, int n, T al, const T *a, int lda, const T *x,  \
                       int incx, T be, T *y, int incy) {                                   \
    scipy_cblas_##p##gemv64_(o, t, m, n, al, a, lda, x, incx, be, y, incy);                \
  }
BOTH(s, float) BOTH(d, double)
"""


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that the tests share, so that the shim is compiled once for all."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(cache: Path) -> Run:
    """Run code in a fresh interpreter; returns what it printed last, as JSON, and its stderr."""

    def start(code: str = STATUS, **changes: str) -> tuple[dict[str, Any], str]:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(cache, **changes),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().split("\n")[-1] or "{}"), done.stderr

    return start


@pytest.fixture(scope="session")
def system_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for LD_LIBRARY_PATH with a libopenblas.so.0 in it."""
    folder = tmp_path_factory.mktemp("system")
    command = [str(COMPILER), "-shared", "-fPIC", "-x", "c", "-", "-x", "none", NUMPYS]
    command += [f"-Wl,-rpath,{LIBRARIES}", "-o", str(folder / "libopenblas.so.0")]
    subprocess.run(command, input=STAND_IN, text=True, check=True)
    return folder


def environment(cache: Path, **changes: str) -> dict[str, str]:
    settings = ("AFM_BLAS", "CC", "LD_PRELOAD", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    env = {name: value for name, value in os.environ.items() if name not in settings}
    return env | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)} | changes


def products() -> None:
    """MLX's products against numpy's, through whichever BLAS is preloaded."""
    assert blas.preload().kind in ("system", "numpy")
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(shape).astype(np.float32)

    def check(ours: mx.array, theirs: np.ndarray[Any, Any]) -> None:
        scale = max(1.0, float(np.abs(theirs).max(initial=0)))
        np.testing.assert_allclose(np.array(ours), theirs, atol=1e-4 * scale, rtol=0)

    sizes = itertools.product((1, 2, 7, 130), (1, 3, 65, 200), (1, 16, 77, 577))
    for (m, n, k), ta, tb in itertools.product(sizes, (0, 1), (0, 1)):
        a, b, c = draw(*((k, m) if ta else (m, k))), draw(*((n, k) if tb else (k, n))), draw(n)
        x, y = mx.array(a), mx.array(b)
        x, y, a, b = x.T if ta else x, y.T if tb else y, a.T if ta else a, b.T if tb else b
        check(x @ y, a @ b)
        check(mx.addmm(mx.array(c), x, y, alpha=0.7, beta=-1.3), 0.7 * (a @ b) - 1.3 * c)
    w, v = draw(1537, 576), draw(576)
    check(mx.array(w) @ mx.array(v), w @ v)
    check(mx.array(v) @ mx.array(w).T, v @ w.T)
    check(mx.array(w[:, 0]) @ mx.array(w), w[:, 0] @ w)
    heads, keys = draw(2, 9, 1, 64), draw(2, 9, 300, 64)  # as in attention
    check(mx.array(heads) @ mx.array(keys).swapaxes(-1, -2), heads @ keys.swapaxes(-1, -2))
    wide = rng.standard_normal((1, 50))
    check(mx.array(wide, dtype=mx.float64) @ mx.array(wide, dtype=mx.float64).T, wide @ wide.T)


def gemm_by_definition() -> None:
    """The global ``cblas_sgemm`` itself: both orders, strides beyond the row, alpha, beta, NaN."""
    gemm = ctypes.CDLL(None).cblas_sgemm
    real, size, pointer = ctypes.c_float, ctypes.c_int, ctypes.c_void_p
    gemm.argtypes = [size] * 6 + [real, pointer, size, pointer, size, real, pointer, size]
    gemm.restype = None
    rng = np.random.default_rng(1)

    def stored(rows: int, columns: int, swapped: bool) -> np.ndarray[Any, Any]:
        """A matrix inside a larger one, its rows or its columns contiguous; NaN around it."""
        outer = np.full((columns, rows + 3) if swapped else (rows, columns + 3), np.nan, "f4")
        inner = outer[:, :-3]
        inner[:] = rng.standard_normal(inner.shape)
        return inner.T if swapped else inner

    def stride(x: np.ndarray[Any, Any], swapped: bool) -> int:
        least = x.shape[0] if swapped else x.shape[1]  # numpy's strides are 0 where k is
        return max(x.strides[1 if swapped else 0] // 4, least, 1)

    flags, scales = (False, True), ((1.0, 0.0), (0.7, 1.0), (-1.0, 0.5), (0.0, 0.5))
    sizes = [*itertools.product((1, 2, 9), (1, 8, 21), (0, 1, 33)), (150, 170, 40)]
    for (m, n, k), columns, ta, tb in itertools.product(sizes, flags, flags, flags):
        for alpha, beta in scales:
            a, b = stored(m, k, columns != ta), stored(k, n, columns != tb)
            c = stored(m, n, columns)
            before = c.copy()
            if beta == 0:  # MLX hands over memory as it comes
                c[:] = np.nan
            expected = alpha * (a @ b) + beta * before
            layout = [102 if columns else 101, 112 if ta else 111, 112 if tb else 111]
            gemm(
                *layout, m, n, k, alpha, a.ctypes.data, stride(a, columns != ta), b.ctypes.data,
                stride(b, columns != tb), beta, c.ctypes.data, stride(c, columns),
            )  # fmt: skip
            np.testing.assert_allclose(c, expected, atol=1e-4, err_msg=f"{m, n, k, layout, alpha}")


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_products_equal_numpys(run: Run, threads: str) -> None:
    code = "import tests.test_blas as t; t.products(); print('{}')"
    run(code, AFM_BLAS="numpy", OPENBLAS_NUM_THREADS=threads)


def test_gemm_does_what_cblas_defines(run: Run) -> None:
    # Guards: 0 * NaN from memory never written (beta = 0), k = 0, and gemv's strides.
    code = "import tests.test_blas as t; t.gemm_by_definition(); print('{}')"
    run(code, AFM_BLAS="numpy")


def test_mlx_binds_to_the_shim(run: Run, cache: Path, tmp_path: Path) -> None:
    code = "import afm_mlx, mlx.core as mx; mx.eval(mx.ones((9, 9)) @ mx.ones((9, 9))); print('{}')"
    run(code, AFM_BLAS="numpy", LD_DEBUG="bindings", LD_DEBUG_OUTPUT=str(tmp_path / "ld"))
    lines = "".join(path.read_text() for path in tmp_path.glob("ld*")).split("\n")
    bound = [line for line in lines if "libmlx.so [" in line and "`cblas_sgemm'" in line]
    assert bound and all(str(cache / "afm-mlx" / "blas-") in line for line in bound)


def test_numpys_library(run: Run, cache: Path) -> None:
    found, errors = run(AFM_BLAS="numpy")
    assert (found["kind"], found["detail"]) == ("numpy", Path(NUMPYS).name)
    assert Path(found["owner"]).parent == cache / "afm-mlx"
    assert found["remedy"] is None and "Warning" not in errors


def test_shim_is_compiled_once(run: Run, tmp_path: Path) -> None:
    settings = {"AFM_BLAS": "numpy", "XDG_CACHE_HOME": str(tmp_path)}
    shim = Path(run(**settings)[0]["owner"])
    stamp = shim.stat().st_mtime_ns
    assert Path(run(**settings)[0]["owner"]) == shim
    assert shim.stat().st_mtime_ns == stamp
    assert list((tmp_path / "afm-mlx").iterdir()) == [shim]


def test_damaged_shim_is_compiled_anew(run: Run, tmp_path: Path) -> None:
    # Guards: a file cut short by a crash would keep the reference BLAS for good.
    settings = {"AFM_BLAS": "numpy", "XDG_CACHE_HOME": str(tmp_path)}
    shim = Path(run(**settings)[0]["owner"])
    shim.write_bytes(shim.read_bytes()[:100])
    assert run(**settings)[0]["kind"] == "numpy"


def test_processes_may_compile_at_once(tmp_path: Path) -> None:
    env = environment(tmp_path, AFM_BLAS="numpy")
    command = [sys.executable, "-c", STATUS]
    started = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE) for _ in range(3)]
    kinds = [json.loads(process.communicate()[0])["kind"] for process in started]
    assert kinds == ["numpy"] * 3
    assert len(list((tmp_path / "afm-mlx").iterdir())) == 1


@pytest.mark.parametrize("compiler", ["/nowhere/cc", "false"])
def test_no_compiler_leaves_the_reference(run: Run, tmp_path: Path, compiler: str) -> None:
    found, errors = run(AFM_BLAS="numpy", CC=compiler, XDG_CACHE_HOME=str(tmp_path))
    assert (found["kind"], found["owner"]) == ("reference", None)
    assert "apt install libopenblas0" in found["remedy"]
    assert errors.count("RuntimeWarning") == 1
    found, _ = run(AFM_BLAS="numpy", PATH="", XDG_CACHE_HOME=str(tmp_path))
    assert "no C compiler" in found["detail"]


def test_cache_that_takes_no_file_leaves_the_reference(run: Run, tmp_path: Path) -> None:
    plain = tmp_path / "file"
    plain.write_text("")
    found, errors = run(AFM_BLAS="numpy", XDG_CACHE_HOME=str(plain))
    assert found["kind"] == "reference" and errors.count("RuntimeWarning") == 1
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
    found, errors = run(full + STATUS, AFM_BLAS="numpy", XDG_CACHE_HOME=str(tmp_path))
    assert found["kind"] == "reference" and errors.count("RuntimeWarning") == 1
    assert not list((tmp_path / "afm-mlx").iterdir())


def test_system_library(run: Run, system_folder: Path, cache: Path) -> None:
    settings = {"LD_LIBRARY_PATH": str(system_folder)}
    found, errors = run(**settings)
    assert found["kind"] == "system" and "Warning" not in errors
    assert Path(found["owner"]).parent == cache / "afm-mlx"
    run("import tests.test_blas as t; t.products(); print('{}')", **settings)


def test_system_library_without_compiler(run: Run, system_folder: Path, tmp_path: Path) -> None:
    settings = {"LD_LIBRARY_PATH": str(system_folder), "CC": "false"}
    found, _ = run(**settings, XDG_CACHE_HOME=str(tmp_path))
    assert (found["kind"], found["owner"]) == ("system", str(system_folder / "libopenblas.so.0"))
    assert "decoding slower" in found["detail"] and found["remedy"]


def test_library_without_the_symbols(run: Run, tmp_path: Path) -> None:
    # Guards: a shim that found nothing behind it stayed in front, and the first product died.
    command = [str(COMPILER), "-shared", "-fPIC", "-x", "c", "-"]
    command += ["-o", str(tmp_path / "libopenblas.so.0")]
    subprocess.run(command, input="int nothing;", text=True, check=True)
    settings = {"LD_LIBRARY_PATH": str(tmp_path)}
    assert run(**settings)[0]["kind"] == "numpy"
    run("import tests.test_blas as t; t.products(); print('{}')", **settings)


def test_unknown_choice(run: Run) -> None:
    found, errors = run(AFM_BLAS="fastest")
    assert found["kind"] == "reference"
    assert "none of auto, system, numpy, off" in errors


def test_off_leaves_mlx_alone_silently(run: Run) -> None:
    found, errors = run(AFM_BLAS="off")
    assert (found["kind"], found["owner"]) == ("reference", None)
    assert not errors


def test_too_late_once_mlx_is_imported(run: Run) -> None:
    found, errors = run("import mlx.core\n" + STATUS)
    assert (found["kind"], found["owner"]) == ("reference", None)
    assert "import afm_mlx before mlx" in errors


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert blas.preload.__wrapped__() == blas.Blas(
        "native", "MLX brings a fast BLAS on this system"
    )


def test_import_is_light() -> None:
    code = "import sys, afm_mlx; assert not {'mlx.core', 'numpy', 'textual'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_measure_gflops() -> None:
    assert blas.measure_gflops(64) > 0
