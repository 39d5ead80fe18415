"""From a model and text to low-bit weights at a target average, as a stream of events.

Statistics (:mod:`afm_mlx.quant.statistics`), every matrix at every width
(:mod:`afm_mlx.quant.variants`), the plan (:mod:`afm_mlx.quant.plan`), and the model with its
layers exchanged. The first two are kept in a folder named by what they were made from, so that
another target, or a plan that a person edited, takes seconds.
"""

import hashlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from afm_mlx.data.packing import Batch
from afm_mlx.errors import InputError, first_line
from afm_mlx.model import Model, named_weights
from afm_mlx.quant import affine, kept, variants
from afm_mlx.quant.layers import RowwiseEmbedding, quantized_layer
from afm_mlx.quant.plan import Choice, Plan, solve
from afm_mlx.quant.statistics import Progress, collect, linears
from afm_mlx.quant.variants import FormatOptions, Row

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_unflatten

EMBEDDING_GROUP, EMBEDDING_BITS = 64, 8
_FORMAT = 1  # raised when the same model and text give other statistics


@dataclass(frozen=True)
class TargetOptions:
    """How small the model shall be."""

    target: float = 3.5
    """Bits a weight on average, tables and scales included."""
    count: Literal["linear", "model"] = "linear"
    """What the average is taken over: the linear layers, or embeddings and norms too."""
    embedding: bool = True
    """Store the embeddings with 8 bits, by rows."""
    adapter_rank: int = 0
    """Count a LoRA adapter of this rank on every linear layer, too."""

    def __post_init__(self) -> None:
        if not 0 < self.target <= 16:
            raise InputError(f"target is a number of bits from 0 to 16, not {self.target:g}")
        if self.adapter_rank < 0:
            raise InputError(f"adapter_rank must not be below 0: {self.adapter_rank}")


@dataclass(frozen=True)
class Made:
    """Block ``number`` of ``total`` is there at every width; ``seconds`` is what it took."""

    number: int
    total: int
    seconds: float


@dataclass(frozen=True)
class Account:
    """What a plan takes.

    Attributes:
        linear: bits a weight of the linear layers, those that stay as they are at 16.
        model: bits a weight of the whole model.
        size: bytes of the whole model.
        cost: nats that a token's loss is expected to rise by, in second order.
        left: matrices that no width fits; they stay as they are.
    """

    linear: float
    model: float
    size: int
    cost: float
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planned:
    """The widths are chosen."""

    plan: Plan
    account: Account


@dataclass(frozen=True)
class Workshop:
    """The model's matrices at every width, and the folder where they are."""

    model: Model
    signature: str
    options: FormatOptions
    folder: Path
    rows: Mapping[str, Row] = field(default_factory=dict)

    @property
    def blocks(self) -> list[str]:
        """Dotted names of the blocks."""
        return [f"model.layers.{i}" for i in range(len(self.model.layers))]

    def file(self, number: int) -> Path:
        return self.folder / f"block-{number:03d}.safetensors"


def prepare(
    model: Model,
    signature: str,
    text: tuple[str, Sequence[Batch]] | None,
    options: FormatOptions,
    cache: Path,
    seed: int = 0,
) -> Iterator[Progress | Made | Workshop]:
    """Make every matrix at every width, or find them in ``cache``; ends with the workshop.

    Args:
        signature: base signature of the model.
        text: its name and batches (:func:`afm_mlx.quant.calibration.windows`); without it
            nothing is calibrated, which costs a multiple of the error.
    """
    named = text[0] if text else "none"
    computed = model.model.norm.weight.dtype
    known = hashlib.sha256(f"{_FORMAT} {signature} {computed} {named} {seed}".encode())
    statistics = cache / known.hexdigest()[:16]
    made = hashlib.sha256(options.name.encode()).hexdigest()[:16]
    shop = Workshop(model, signature, options, statistics / made)
    found = [variants.rows(shop.file(i), options) for i in range(len(shop.blocks))]
    if text and any(rows is None for rows in found):
        yield from _statistics(model, text[1], statistics, seed)
    for number, rows in enumerate(found):
        if rows is not None:
            continue
        started = time.perf_counter()
        layers = linears(model.layers[number])
        weights = {n: np.array(x.weight.astype(mx.float32)) for n, x in layers.items()}
        about = kept.load(_kept(statistics, number)) if text else None
        if text and about is None:
            raise InputError(f"{_kept(statistics, number)} is damaged: delete {statistics}")
        variants.make_block(weights, about, options, shop.file(number))
        found[number] = variants.rows(shop.file(number), options)
        yield Made(number + 1, len(found), time.perf_counter() - started)
    every = {
        f"{block}.{name}": row
        for block, rows in zip(shop.blocks, found, strict=True)
        for name, row in (rows or {}).items()
    }
    yield Workshop(model, signature, options, shop.folder, every)


def _kept(folder: Path, number: int) -> Path:
    return folder / f"statistics-{number:03d}.safetensors"


def _statistics(
    model: Model, batches: Sequence[Batch], folder: Path, seed: int
) -> Iterator[Progress]:
    if all(_kept(folder, i).exists() for i in range(len(model.layers))):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".inputs.", dir=folder) as inputs:
            for event in collect(model, batches, seed, Path(inputs)):
                if isinstance(event, Progress):
                    yield event
                else:
                    number, statistics = event
                    kept.save(_kept(folder, number), statistics)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{folder} cannot be written ({first_line(error)}): {kept.CACHE_REMEDY}"
        ) from error


def check_model(model: Model, form: FormatOptions, options: TargetOptions) -> None:
    """See that weights are numbers and the target can be reached, before any work is done.

    Raises:
        InputError: it is not so.
    """
    for name, weight in named_weights(model):
        if not mx.all(mx.isfinite(weight)).item():
            raise InputError(f"{name} holds values that are no numbers: download the model again")
    rows = {}
    for name, linear in _linears(model).items():
        shape = linear.weight.shape
        if form.fits(shape):
            offered = (Choice(b, form.size(shape, b), 0.0) for b in form.choices)
            rows[name] = Row(shape, tuple(offered))
    if not rows:
        raise InputError(
            f"no matrix of the model can be stored in groups of {form.group}: choose another"
            " --group-size"
        )
    choose(Workshop(model, "", form, Path(), rows), options)


def _linears(model: Model) -> dict[str, nn.Linear]:
    return {
        f"model.layers.{number}.{name}": linear
        for number, layer in enumerate(model.layers)
        for name, linear in linears(layer).items()
    }


def choose(shop: Workshop, options: TargetOptions, fixed: Mapping[str, int] | None = None) -> Plan:
    """The plan of least expected loss within the target.

    Raises:
        InputError: the target cannot be reached, or a fixed width is not offered.
    """
    weights = {name: row.shape[0] * row.shape[1] for name, row in shop.rows.items()}
    weights[""], extra = _others(shop, options.embedding, options.count == "linear")
    for linear in _linears(shop.model).values():
        extra += 16 * options.adapter_rank * sum(linear.weight.shape)
    choices = {name: row.choices for name, row in shop.rows.items()}
    bits = solve(choices, options.target, weights, extra, fixed)
    return Plan(shop.signature, bits, shop.options.group, shop.options.form)


def _others(shop: Workshop, embedding: bool, linear: bool) -> tuple[int, float]:
    """Number of weights outside the workshop, or of its linear layers alone, and their bits."""
    count, bits, inner = 0, 0.0, _linears(shop.model)
    for name, weight in named_weights(shop.model):
        layer = name.removesuffix(".weight")
        if layer in shop.rows or (linear and layer not in inner):
            continue
        count += weight.size
        each = 16.0
        if embedding and "embed_tokens" in name:
            each = 8 + 16 / weight.shape[1]
            if shop.options.form == "affine":
                each = affine.bits_per_weight(EMBEDDING_BITS, EMBEDDING_GROUP)
                each = 16.0 if weight.shape[1] % EMBEDDING_GROUP else each
        bits += weight.size * each
    return count, bits


def account(shop: Workshop, plan: Plan, embedding: bool) -> Account:
    """What ``plan`` takes; milliseconds, so it can follow a person's changes.

    Raises:
        InputError: the plan is for another model, or for other widths or groups.
    """
    check(shop, plan)
    size = cost = 0.0
    weights = 0
    for name, row in shop.rows.items():
        chosen = next(c for c in row.choices if c.bits == plan.bits[name])
        size, cost = size + chosen.size, cost + chosen.cost
        weights += row.shape[0] * row.shape[1]
    others, extra = _others(shop, embedding, linear=False)
    still, dense = _others(shop, embedding, linear=True)
    left = tuple(name for name in _linears(shop.model) if name not in shop.rows)
    return Account(
        (size + dense) / (weights + still),
        (size + extra) / (weights + others),
        round((size + extra) / 8),
        cost,
        left,
    )


def check(shop: Workshop, plan: Plan) -> None:
    if plan.base != shop.signature:
        raise InputError("the plan is for another model: make one for this")
    if plan.form != shop.options.form or plan.group_size != shop.options.group:
        raise InputError(
            f"the plan is for {plan.form} weights in groups of {plan.group_size}: choose the same"
        )
    if set(plan.bits) != set(shop.rows):
        odd = min(set(plan.bits) ^ set(shop.rows))
        raise InputError(f"the plan and the model differ in {odd}: make a new plan")
    for name, bits in plan.bits.items():
        offered = [c.bits for c in shop.rows[name].choices]
        if bits not in offered:
            known = ", ".join(map(str, offered))
            raise InputError(f"{name} is offered with {known} bits, not with {bits}")


def apply(shop: Workshop, plan: Plan, embedding: bool) -> Model:
    """Exchange the model's layers for those of the plan; the model itself is changed.

    Raises:
        InputError: see :func:`check`.
    """
    check(shop, plan)
    model = shop.model
    layers: list[tuple[str, nn.Module]] = []
    for number, block in enumerate(shop.blocks):
        for name in linears(model.layers[number]):
            dotted = f"{block}.{name}"
            if dotted in plan.bits:
                q = variants.read(shop.file(number), name, plan.bits[dotted], shop.options)
                layers.append((dotted, quantized_layer(q)))
    if embedding:
        layers.append(("model.embed_tokens", _embedding(model.model.embed_tokens, plan)))
    model.update_modules(tree_unflatten(layers))
    return model


def _embedding(table: Any, plan: Plan) -> Any:
    if plan.form == "affine":  # what plain mlx-lm loads
        if table.weight.shape[1] % EMBEDDING_GROUP:
            return table
        found: nn.Module = table.to_quantized(EMBEDDING_GROUP, EMBEDDING_BITS)
        return found
    return RowwiseEmbedding.of(np.array(table.weight.astype(mx.float32)))
