"""Source of the GPU kernels of palettised layers: one body for Metal and CUDA.

Two kernels per width. ``matmul`` computes ``x @ W.T`` for a few vectors: 32 lanes (a simdgroup,
or warp) share four rows of ``W``; each lane takes 8 or 16 neighbouring weights at a time, decodes
them once and uses them for all vectors. ``dequantize`` writes ``W``: each thread takes one column
of a few rows, so that neighbours write neighbouring numbers.

Indices come as bit planes (:mod:`afm_mlx.quant.planes`). Tables of one and two bits stay in
registers and are read by comparisons, which costs less than an indexed read; larger ones lie in
memory that the threads of a group share.

The functions here make text only. A body names its inputs ``low`` (and ``high`` where a width
has two planes), ``lut`` and ``x``, and its output ``y``; MLX writes the signature around it, with
``low_shape`` because the body mentions it. The text depends on no size of the matrix, as CUDA
takes seconds to compile one. It makes no pointers to planes and tables: Metal passes inputs below
eight elements in another address space, so their type depends on the size.
"""

from dataclasses import dataclass
from string import Template
from typing import Literal

from afm_mlx.quant.planes import PLANES, WORD

Language = Literal["metal", "cuda"]
Dtype = Literal["float16", "bfloat16", "float32"]

LANES = 32
"""Threads of a simdgroup or warp."""
ROWS = 4
"""Rows of weights that they work on together."""
MOST_VECTORS = 8
"""Vectors that one ``matmul`` takes; registers end there."""
_REGISTER_BITS = 2  # widths up to here keep their tables in registers


@dataclass(frozen=True)
class Words:
    """What a language calls the things that both have.

    Attributes:
        header: text before the kernel, with ``afm_read``, which makes N numbers float32.
        unroll: asks for the next loop to be written out, so that arrays become registers.
        shared: storage of what the threads of a group share.
        barrier: waits until all of them are there; every thread must come by.
        thread, threads: number of a thread in its group, and how many there are (fewer at the
            edge of a Metal grid).
        lane, simdgroup: number of a thread among its 32, and of these in their group.
        group, block, column: position of the group along x and y, of the thread along x.
        total: function that adds a number up over the 32 lanes.
        half, bfloat: names of the types with 16 bits.
    """

    header: str
    unroll: str
    shared: str
    barrier: str
    thread: str
    threads: str
    lane: str
    simdgroup: str
    group: str
    block: str
    column: str
    total: str
    half: str
    bfloat: str


LANGUAGES: dict[Language, Words] = {
    "metal": Words(
        header="""
template <int N, typename X> inline void afm_read(const device X* from, thread float* to) {
    for (int i = 0; i < N; i++) to[i] = float(from[i]);
}
""",
        unroll='_Pragma("clang loop unroll(full)")',
        shared="threadgroup",
        barrier="threadgroup_barrier(mem_flags::mem_threadgroup)",
        thread="thread_index_in_threadgroup",
        threads="threads_per_threadgroup.x",
        lane="thread_index_in_simdgroup",
        simdgroup="simdgroup_index_in_threadgroup",
        group="threadgroup_position_in_grid.x",
        block="threadgroup_position_in_grid.y",
        column="thread_position_in_grid.x",
        total="simd_sum",
        half="float16_t",
        bfloat="bfloat16_t",
    ),
    "cuda": Words(
        header="""
__device__ __forceinline__ float afm_total(float value) {
    for (int apart = 16; apart; apart >>= 1)
        value += __shfl_xor_sync(0xffffffffu, value, apart);
    return value;
}
// 16 bytes at once: numbers read one by one take as many turns for each lane's as for all.
template <int N, typename X> __device__ __forceinline__ void afm_read(const X* from, float* to) {
    constexpr int per = 16 / sizeof(X);
    struct alignas(16) Pack { X items[per]; };
    if (reinterpret_cast<size_t>(from) % 16 == 0) {
        _Pragma("unroll") for (int i = 0; i < N; i += per) {
            const Pack pack = *reinterpret_cast<const Pack*>(from + i);
            _Pragma("unroll") for (int j = 0; j < per; j++) to[i + j] = float(pack.items[j]);
        }
    } else  // a view
        _Pragma("unroll") for (int i = 0; i < N; i++) to[i] = float(from[i]);
}
""",
        unroll='_Pragma("unroll")',
        shared="__shared__",
        barrier="__syncthreads()",
        thread="threadIdx.x",
        threads="blockDim.x",
        lane="(threadIdx.x % 32u)",
        simdgroup="(threadIdx.x / 32u)",
        group="blockIdx.x",
        block="blockIdx.y",
        column="(blockIdx.x * blockDim.x + threadIdx.x)",
        total="afm_total",
        half="__half",
        bfloat="__nv_bfloat16",
    ),
}

_MATMUL = Template("""
    const unsigned lane = $lane;
    const unsigned row0 = $group * ${tile}u + $simdgroup * ${rows}u;
    const unsigned columns = low_shape[1] * ${low_per}u;
$table
    float sums[$rows][$vectors];
    $unroll for (unsigned r = 0; r < ${rows}u; r++)
        $unroll for (unsigned v = 0; v < ${vectors}u; v++) sums[r][v] = 0.0f;
    for (unsigned k = lane * ${step}u; k < columns; k += ${stride}u) {
$load
        float xs[$vectors][$step];
        $unroll for (unsigned v = 0; v < ${vectors}u; v++)
            afm_read<$step>(x + v * columns + k, xs[v]);
        $unroll for (unsigned r = 0; r < ${rows}u; r++)
            $unroll for (unsigned j = 0; j < ${step}u; j++) {
                const unsigned code = $code;
                const float weight = $weight;
                $unroll for (unsigned v = 0; v < ${vectors}u; v++)
                    sums[r][v] += weight * xs[v][j];
            }
    }
    $unroll for (unsigned r = 0; r < ${rows}u; r++)
        $unroll for (unsigned v = 0; v < ${vectors}u; v++) {
            const float sum = $total(sums[r][v]);
            if (lane == 0u) y[v * low_shape[0] + row0 + r] = $dtype(sum);
        }
""")

_DEQUANTIZE = Template("""
    const unsigned row0 = $block * ${tile}u;
    const unsigned columns = low_shape[1] * ${low_per}u;
    const unsigned k = $column;
$table
    if (k >= columns) return;
    $unroll for (unsigned r = 0; r < ${tile}u; r++) {
        const size_t row = row0 + r;
        const unsigned code = $code;
        y[row * columns + k] = $dtype($weight);
    }
""")

_SHARED_TABLE = Template("""\
    $shared float table[$entries];
    for (unsigned i = $thread; i < ${entries}u; i += $threads)
        table[i] = float(lut[row0 / ${group_size}u * ${entries}u + i]);
    $barrier;""")

_LOAD = Template("""\
        unsigned ${name}_words[$rows][$words];
        $unroll for (unsigned r = 0; r < ${rows}u; r++)
            $unroll for (unsigned i = 0; i < ${words}u; i++)
                ${name}_words[r][i] =
                    $name[size_t(row0 + r) * (columns / ${per}u) + k / ${per}u + i];""")


def input_names(bits: int) -> tuple[str, ...]:
    """Names of the planes of ``bits`` and of the table, as the bodies use them."""
    return (*_planes(bits), "lut")


def tile_rows(group_size: int) -> int:
    """Rows that a group of threads works on: all have one table, and 16 suffice."""
    simdgroups = next(n for n in (4, 3, 2, 1) if group_size % (n * ROWS) == 0)
    return simdgroups * ROWS


def matmul(language: Language, bits: int, group_size: int, vectors: int, dtype: Dtype) -> str:
    """Body of the product with ``vectors`` vectors of type ``dtype``.

    Launched with ``tile_rows / ROWS * LANES`` threads per group and a group for every
    ``tile_rows`` rows, along x.
    """
    words = LANGUAGES[language]
    step = 16 if vectors <= MOST_VECTORS // 2 else 8  # registers hold vectors * step of x
    loads, codes = [], []
    for name, width in _planes(bits).items():
        per, taken = WORD // width, max(1, step * width // WORD)
        loads.append(
            _LOAD.substitute(name=name, rows=ROWS, words=taken, per=per, unroll=words.unroll)
        )
        # A step of less than a word starts somewhere in it.
        start = f"k % {per}u * {width}u + " if step < per else ""
        codes.append(f"({name}_words[r][j / {per}u] >> ({start}j % {per}u * {width}u))")
    return _fill(
        _MATMUL,
        words,
        bits,
        group_size,
        dtype,
        codes,
        rows=ROWS,
        vectors=vectors,
        step=step,
        stride=step * LANES,
        load="\n".join(loads),
    )


def dequantize(language: Language, bits: int, group_size: int, dtype: Dtype) -> str:
    """Body of the kernel that writes the matrix in ``dtype``.

    Launched with a thread for every column along x, in groups of any size, and a group for
    every ``tile_rows`` rows along y.
    """
    codes = []
    for name, width in _planes(bits).items():
        per = WORD // width
        codes.append(f"({name}[row * (columns / {per}u) + k / {per}u] >> (k % {per}u * {width}u))")
    return _fill(_DEQUANTIZE, LANGUAGES[language], bits, group_size, dtype, codes)


def _planes(bits: int) -> dict[str, int]:
    return dict(zip(("low", "high"), PLANES[bits], strict=False))


def _fill(
    body: Template,
    words: Words,
    bits: int,
    group_size: int,
    dtype: Dtype,
    codes: list[str],
    **sizes: int | str,
) -> str:
    """``body`` in the words of a language; ``codes`` are a weight's bits in each plane, lowest
    first, with those of its neighbours above them."""
    low, *high = (
        f"({code} & {(1 << width) - 1}u)" for code, width in zip(codes, PLANES[bits], strict=True)
    )
    code = low if not high else f"{low} | {high[0]} << {PLANES[bits][0]}u"
    vocabulary = vars(words) | {"group_size": group_size, "entries": 1 << bits}
    if bits <= _REGISTER_BITS:
        table, weight = _register_table(bits, group_size)
    else:
        table, weight = _SHARED_TABLE.substitute(vocabulary), "table[code]"
    return body.substitute(
        vocabulary,
        table=table,
        weight=weight,
        code=code,
        dtype={"float16": words.half, "bfloat16": words.bfloat, "float32": "float"}[dtype],
        low_per=WORD // PLANES[bits][0],
        tile=tile_rows(group_size),
        **sizes,
    )


def _register_table(bits: int, group_size: int) -> tuple[str, str]:
    """Text that reads a small table, and that looks ``code`` up in it."""
    entries = 1 << bits
    table = "\n".join(
        f"    const float entry{i} = float(lut[row0 / {group_size}u * {entries}u + {i}u]);"
        for i in range(entries)
    )
    weight = "(code & 1u ? entry1 : entry0)"
    if bits == 2:
        weight = f"(code & 2u ? (code & 1u ? entry3 : entry2) : {weight})"
    return table, weight
