"""Time and error of this package's palettes beside coremltools' k-means, matrix by matrix.

uv run --with coremltools,scikit-learn,kmeans1d python tests/bench/kmeans.py MODEL CACHE

MODEL is what ``afm quantize --model MODEL --cache CACHE`` was run on, whose statistics this reads.
Matrices of three blocks, one table per 16 rows, 2 to 4 bits. ``tables`` is the k-means alone,
unweighted on both sides, and ``mse`` what it leaves; ``whole`` is this package's recipe with Fisher
weights, row scales and error feedback; ``output`` is the error of the layer's outputs on
calibration text, relative to the outputs. coremltools gets float16, for which it has its exact
algorithm (groups of 10,000 numbers and more).
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from afm_mlx import load
from afm_mlx.errors import InputError
from afm_mlx.quant import kept, kmeans
from afm_mlx.quant.feedback import factorise
from afm_mlx.quant.palette import GROUP_SIZE, Palettized, palettize
from afm_mlx.quant.statistics import Statistics, linears
from afm_mlx.quant.variants import FormatOptions

import mlx.core as mx
import numpy as np
from coremltools.optimize.coreml._quantization_passes import palettize_weights

Array = np.ndarray[Any, Any]
WIDTHS = (2, 3, 4)


def coremltools(weight: Array, bits: int) -> Array:
    """``OpPalettizerConfig(mode="kmeans", granularity="per_grouped_channel", group_size=16)``."""
    found = palettize_weights.blockwise_compress(weight, "KMEANS", bits, [GROUP_SIZE, 0])
    luts = found.lut.reshape(len(weight) // GROUP_SIZE, 2**bits)
    grouped = found.indices.reshape(len(luts), -1)
    return np.take_along_axis(luts, grouped, 1).reshape(weight.shape).astype(np.float32)


def unweighted(weight: Array, bits: int) -> Array:
    """This package's tables for equal weights, and the nearest entries."""
    groups = weight.reshape(-1, GROUP_SIZE * weight.shape[1])
    lut = kmeans.tables(groups, np.ones_like(groups), [2**bits])[2**bits]
    middle = (lut[:, 1:] + lut[:, :-1]) / 2
    codes = np.stack([np.searchsorted(m, g) for m, g in zip(middle, groups, strict=True)])
    return np.take_along_axis(lut, codes, 1).reshape(weight.shape)


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    found = make()
    return found, time.perf_counter() - started


def output_error(error: Array, weight: Array, about: Statistics) -> float:
    def size(a: Array) -> float:
        return float(np.sum((a @ about.hessian) * a, dtype=np.float64))

    return size(error) / size(weight)


def of_block(layer: Any, about: dict[str, Statistics], block: int) -> Array:
    """Print a line for each matrix and width; seconds of tables, coremltools, whole recipe."""
    total = np.zeros(3)
    for name, linear in linears(layer).items():
        weight, known = np.array(linear.weight), about[name]
        power = np.mean(weight**2)
        whole, seconds = timed(partial(recipe, weight, known))
        for bits in WIDTHS:
            ours, took = timed(partial(unweighted, weight, bits))
            theirs, theirs_took = timed(partial(coremltools, weight.astype(np.float16), bits))
            mse = [float(np.mean((m - weight) ** 2) / power) for m in (ours, theirs)]
            out = [output_error(m - weight, weight, known) for m in (whole[bits].weight(), theirs)]
            total += (took, theirs_took, seconds / len(WIDTHS))
            print(
                f"{block}.{name} {bits} | {took:.2f} {theirs_took:.2f} | {mse[0]:.5f} {mse[1]:.5f}"
                f" | {seconds:.2f} | {out[0]:.5f} {out[1]:.5f}",
                flush=True,
            )
    return total


def recipe(weight: Array, about: Statistics) -> dict[int, Palettized]:
    order = factorise(about.hessian, FormatOptions().damping)
    return palettize(weight, WIDTHS, about.fisher, order)


def main(model: str, cache: Path) -> None:
    found = load(model, dtype=mx.float32).model
    folders = {f.parent for f in cache.glob("*/statistics-000.safetensors")}
    if len(folders) != 1:
        raise InputError(f"{cache} holds statistics of {len(folders)} models: give a fresh one")
    print(
        "matrix bits | seconds: tables, coremltools | mse: tables, coremltools"
        " | whole recipe at all widths, s | output: whole, coremltools"
    )
    total = np.zeros(3)
    for block in (0, len(found.layers) // 2, len(found.layers) - 1):
        about = kept.load(folders.copy().pop() / f"statistics-{block:03d}.safetensors")
        assert about is not None
        total += of_block(found.layers[block], about, block)
    print(
        f"seconds in all: tables {total[0]:.1f}, coremltools {total[1]:.1f},"
        f" whole recipe {total[2]:.1f}"
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
