"""Every matrix at every width, on disk: the choices that a plan is made of.

A block's file holds the matrices as they will be stored, and what each choice costs: the change
of the loss in second order, ``tr(dW G dW^T) / 2`` with the guided Hessian ``G``. Once they are
there, another target or a plan that a person edited takes seconds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.files import replacing
from afm_mlx.quant import affine, palette
from afm_mlx.quant.affine import Affine
from afm_mlx.quant.feedback import Order, factorise
from afm_mlx.quant.kept import CACHE_REMEDY
from afm_mlx.quant.kernel_source import ROWS
from afm_mlx.quant.palette import Palettized
from afm_mlx.quant.plan import Choice, Form
from afm_mlx.quant.statistics import Statistics

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

Array = np.ndarray[Any, Any]
_FORMAT = 1  # raised when the same options give other matrices
Quantized = Palettized | Affine


@dataclass(frozen=True)
class FormatOptions:
    """How weights are stored."""

    form: Form = "palette"
    """palette: smallest error, own kernels; affine: for MLX's own layers, loads in plain mlx-lm."""
    choices: tuple[int, ...] = (2, 3, 4)
    """Bits that a matrix may get."""
    apple: bool = False
    """Offer 2 and 4 bits only, as Apple does; at 3.5 bits that costs half as much KL again."""
    group_size: int = 0
    """Rows that share a table (16), or columns that share a scale (64); 0 takes these."""
    damping: float = 0.1
    """Share of the mean second moment that steadies the error feedback."""

    def __post_init__(self) -> None:
        if self.apple:
            object.__setattr__(self, "choices", (2, 4))
        if not self.choices:
            raise InputError("choices are empty: offer at least one width")
        known = affine.WIDTHS if self.form == "affine" else palette.WIDTHS
        for bits in self.choices:
            if bits not in known:
                raise InputError(
                    f"{self.form} weights have {', '.join(map(str, known))} bits, not {bits}"
                )
        if self.group_size < 0 or not 0 < self.damping < 1e3:
            raise InputError("group_size must not be below 0, and damping must be above 0")
        if self.form == "palette" and self.group_size % ROWS:
            raise InputError(f"a palette's group_size must be a multiple of {ROWS}, as kernels go")
        if self.form == "affine" and self.group_size not in (0, *affine.GROUP_SIZES):
            raise InputError("MLX's layers take a group_size of 32, 64 or 128")

    @property
    def name(self) -> str:
        """Tells files of matrices apart by what decides them."""
        return f"{_FORMAT} {self.form} {sorted(self.choices)} {self.group} {self.damping:g}"

    @property
    def group(self) -> int:
        default = affine.GROUP_SIZE if self.form == "affine" else palette.GROUP_SIZE
        return self.group_size or default

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix can be stored so; others stay as they are."""
        return (affine if self.form == "affine" else palette).fits(shape, self.group)

    def size(self, shape: tuple[int, int], bits: int) -> float:
        """Bits of a matrix with tables and scales."""
        weights = shape[0] * shape[1]
        if self.form == "affine":
            return weights * affine.bits_per_weight(bits, self.group)
        return weights * palette.bits_per_weight(shape, bits, self.group)


def candidates(
    weight: Array, statistics: Statistics | None, order: Order | None, options: FormatOptions
) -> dict[int, tuple[Quantized, float]]:
    """A matrix ``[N, K]`` at every width, with its cost; without statistics the squared error."""
    found: Mapping[int, Quantized]
    if options.form == "affine":
        counted = None if statistics is None else np.diag(statistics.hessian)
        found = affine.quantize(weight, options.choices, counted, order, options.group)
    else:
        fisher = None if statistics is None else statistics.fisher
        found = palette.palettize(weight, options.choices, fisher, order, options.group)
    return {bits: (q, cost(weight, q, statistics)) for bits, q in found.items()}


def cost(weight: Array, quantized: Quantized, statistics: Statistics | None) -> float:
    """Nats that a token's loss is expected to rise by."""
    error = quantized.weight() - weight
    if statistics is None:
        return float(np.square(error, dtype=np.float64).sum())
    return 0.5 * float(np.sum((error @ statistics.guided) * error, dtype=np.float64))


def make_block(
    weights: Mapping[str, Array],
    statistics: Mapping[str, Statistics] | None,
    options: FormatOptions,
    file: Path,
) -> None:
    """Write a block's matrices at every width to ``file``.

    Args:
        weights: float32 ``[N, K]`` by name; those that do not fit are left out.
    """
    orders: dict[int, Order] = {}
    arrays: dict[str, Array] = {}
    rows: dict[str, Any] = {}
    for name, weight in weights.items():
        if not options.fits(weight.shape):
            continue
        known = None if statistics is None else statistics[name]
        order = None
        if known is not None:  # layers with the same input share the factor too
            order = orders.get(id(known.hessian))
            if order is None:
                order = orders[id(known.hessian)] = factorise(known.hessian, options.damping)
        found = candidates(weight, known, order, options)
        rows[name] = {"shape": weight.shape, "costs": {b: c for b, (_, c) in found.items()}}
        for bits, (q, _) in found.items():
            fields = {k: v for k, v in vars(q).items() if k != "bits"}
            arrays |= {f"{name}.{bits}.{k}": v for k, v in fields.items()}
    with replacing(file, CACHE_REMEDY, new_folder=True) as temporary:
        save_file(arrays, temporary, metadata={"rows": json.dumps(rows)})


@dataclass(frozen=True)
class Row:
    """What is offered for one matrix."""

    shape: tuple[int, int]
    choices: tuple[Choice, ...]


def rows(file: Path, options: FormatOptions) -> dict[str, Row] | None:
    """Choices of a block's matrices, or ``None`` where its file is not there or damaged."""
    try:
        with safe_open(file, framework="numpy") as opened:
            found = json.loads(opened.metadata()["rows"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    out = {}
    for name, row in found.items():
        shape = (int(row["shape"][0]), int(row["shape"][1]))
        out[name] = Row(
            shape,
            tuple(
                Choice(int(b), options.size(shape, int(b)), float(c))
                for b, c in row["costs"].items()
            ),
        )
    return out


def read(file: Path, name: str, bits: int, options: FormatOptions) -> Quantized:
    """One matrix of a block at one width."""
    kind = Affine if options.form == "affine" else Palettized
    with safe_open(file, framework="numpy") as opened:
        fields = [k for k in kind.__dataclass_fields__ if k != "bits"]
        return kind(bits, **{k: opened.get_tensor(f"{name}.{bits}.{k}") for k in fields})
