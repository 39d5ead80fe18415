"""Give MLX a fast BLAS on Linux CPUs: must run before ``mlx.core`` is imported.

MLX's CPU wheel brings the reference BLAS (about 5 GFLOPS in float32 where OpenBLAS gives over
100 on two cores). Symbols of libraries loaded with ``RTLD_GLOBAL`` come first, so an OpenBLAS
loaded here serves MLX's ``cblas_sgemm``: the system's, or else the one inside numpy's wheel.

A small C shim stands in between. It gives numpy's symbols (``scipy_cblas_sgemm64_``, 64-bit
integers) the names MLX looks for, and sends products with one row, which is all of decoding,
to ``sgemv``: OpenBLAS's ``sgemm`` packs the whole weight matrix first and takes several times
as long. It is compiled once into the cache folder.

``AFM_BLAS`` chooses: ``auto`` (default), ``system``, ``numpy`` or ``off``.

MLX's CPU build also asks the system for every array anew, and glibc gives large ones fresh
pages from the kernel each time: filling those in takes ten times as long as a product of two
arrays. :func:`keep_memory` makes glibc use the pages again.
"""

import ctypes
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Kind = Literal["system", "numpy", "reference", "native"]
CHOICES = ("auto", "system", "numpy", "off")
REMEDY = "`apt install libopenblas0 gcc` (or your system's packages of that kind)"

_SYSTEM = "libopenblas.so.0"
# malloc.h: M_MMAP_MAX 0 (no pages of their own for large arrays), M_TRIM_THRESHOLD off,
# M_ARENA_MAX 1 (a thread's own arena holds no array above 64 MB).
_MALLOPT = ((-4, 0), (-1, -1), (-8, 1))
# No compiler or home folder, a full disk, a library without the symbols.
_FAILURES = (OSError, AttributeError, RuntimeError, subprocess.SubprocessError)
_SHIM = r"""
typedef INT I;  /* the library's integers: int, or 64 bits in numpy's */
enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };
#define PRODUCT(x, T)                                                                      \
  static void (*x##gemm)(int, int, int, I, I, I, T, const T *, I, const T *, I, T, T *, I); \
  static void (*x##gemv)(int, int, I, I, T, const T *, I, const T *, I, T, T *, I);         \
  void afm_##x##use(void *gemm, void *gemv) { x##gemm = gemm; x##gemv = gemv; }             \
  void cblas_##x##gemm(int order, int ta, int tb, int m, int n, int k, T alpha,             \
                       const T *a, int lda, const T *b, int ldb, T beta, T *c, int ldc) {   \
    if (m == 1 && k > 0 && order == ROW_MAJOR) {  /* y = b a; gemv does nothing if k = 0 */  \
      I step = ta == NO_TRANS ? 1 : lda;                                                    \
      if (tb == NO_TRANS) x##gemv(order, TRANS, k, n, alpha, b, ldb, a, step, beta, c, 1);  \
      else x##gemv(order, NO_TRANS, n, k, alpha, b, ldb, a, step, beta, c, 1);              \
    } else                                                                                 \
      x##gemm(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);                 \
  }
PRODUCT(s, float)
PRODUCT(d, double)
"""


@dataclass(frozen=True)
class Blas:
    """What serves MLX's matrix products on the CPU.

    Attributes:
        kind: ``system`` or ``numpy`` OpenBLAS, MLX's own ``reference``, or ``native``
            where MLX needs no help (macOS).
        remedy: what to do to make it faster, if something can be done.
    """

    kind: Kind
    detail: str
    remedy: str | None = None


@cache
def preload() -> Blas:
    """Load the best BLAS there is; warns once if that is the slow one. Never raises."""
    if sys.platform != "linux":
        return Blas("native", "MLX brings a fast BLAS on this system")
    wanted = os.environ.get("AFM_BLAS", "auto")
    if wanted == "off":
        return Blas("reference", "AFM_BLAS=off", "unset AFM_BLAS")
    keep_memory()
    if wanted not in CHOICES:
        return _slow(f"AFM_BLAS={wanted} is none of {', '.join(CHOICES)}", "correct AFM_BLAS")
    if "mlx.core" in sys.modules:
        return _slow("mlx was imported first", "import afm_mlx before mlx")
    reasons = []
    for kind, attempt in (("system", _load_system), ("numpy", _load_numpy)):
        if wanted in ("auto", kind):
            try:
                return attempt()
            except _FAILURES as error:
                reasons.append(f"{kind}: {_one_line(error)}")
    return _slow("; ".join(reasons), REMEDY)


def keep_memory() -> bool:
    """Let freed pages be used again, in place of returning them; whether glibc took it."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # no glibc
        return False
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in _MALLOPT)


def measure_gflops(n: int = 1024) -> float:
    """Speed of a float32 product of two ``n`` x ``n`` matrices on the CPU, best of five."""
    import mlx.core as mx

    with mx.stream(mx.cpu):
        a = mx.random.normal((n, n))
        mx.eval(a @ a)
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            mx.eval(a @ a)
            best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best / 1e9


def _slow(detail: str, remedy: str) -> Blas:
    warnings.warn(
        f"MLX computes with its slow reference BLAS ({detail}): {remedy}",
        RuntimeWarning,
        stacklevel=3,
    )
    return Blas("reference", detail, remedy)


def _load_system() -> Blas:
    library = ctypes.CDLL(_SYSTEM)
    try:
        _load_shim("int", library, "cblas_{}")
    except _FAILURES as error:
        if isinstance(error, AttributeError):
            raise  # no OpenBLAS of the usual kind
        ctypes.CDLL(_SYSTEM, mode=ctypes.RTLD_GLOBAL)
        return Blas("system", f"{_SYSTEM}, decoding slower ({_one_line(error)})", REMEDY)
    ctypes.CDLL(_SYSTEM, mode=ctypes.RTLD_GLOBAL)  # LAPACK, behind the shim
    return Blas("system", _SYSTEM)


def _load_numpy() -> Blas:
    spec = importlib.util.find_spec("numpy")
    if spec is None or spec.origin is None:
        raise OSError("numpy is not installed")
    folder = Path(spec.origin).parents[1] / "numpy.libs"
    found = sorted(folder.glob("libscipy_openblas64_*"))
    if not found:
        raise OSError("numpy's wheel has no OpenBLAS")
    _load_shim("long long", ctypes.CDLL(str(found[0])), "scipy_cblas_{}64_")
    return Blas("numpy", found[0].name)


def _load_shim(integer: str, library: ctypes.CDLL, symbol: str) -> None:
    """Put the shim before everything else and connect it to ``library``."""
    found = {  # looked up first: a shim without them would serve null pointers
        kind: [
            ctypes.cast(getattr(library, symbol.format(kind + name)), ctypes.c_void_p)
            for name in ("gemm", "gemv")
        ]
        for kind in "sd"
    }
    path = _compiled(integer)
    try:
        shim = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError:  # damaged: make it anew
        path.unlink()
        shim = ctypes.CDLL(str(_compiled(integer)), mode=ctypes.RTLD_GLOBAL)
    for kind, pointers in found.items():
        getattr(shim, f"afm_{kind}use")(*pointers)


def _compiled(integer: str) -> Path:
    """The shim as a shared library in the cache folder, compiled if it is not there yet."""
    name = hashlib.sha256(f"{integer}{_SHIM}".encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afm-mlx"
    target = folder / f"blas-{name}-{os.uname().machine}.so"
    if target.exists():
        return target
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise OSError("no C compiler")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        built = Path(temporary) / target.name
        subprocess.run(
            [
                *shlex.split(compiler),
                "-O2",
                "-shared",
                "-fPIC",
                f"-DINT={integer}",
                "-xc",
                "-",
                "-o",
                built,
            ],
            input=_SHIM,
            text=True,
            check=True,
            capture_output=True,
        )
        built.replace(target)  # two processes may do this at once: the last one wins
    return target


def _one_line(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return "the C compiler failed"
    return next(iter(str(error).splitlines()), type(error).__name__)
