"""One table of what bits are worth: this package's weights beside MLX's own at equal bits.

Only the linear layers have few bits in every row, embeddings stay as they are; bits count scales,
biases and tables. KL is from the source, over the whole vocabulary, on text that the calibration
has not seen.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afm_mlx import checkpoint
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.compress import Compression, workshop
from afm_mlx.data.packing import Batch, Windows
from afm_mlx.data.sources import Source, read
from afm_mlx.data.tokens import cache_key, tokenize
from afm_mlx.distill.markdown import inline, table
from afm_mlx.distill.plots import style, svg
from afm_mlx.errors import InputError
from afm_mlx.fidelity import Fidelity, Judge
from afm_mlx.files import write_bytes
from afm_mlx.model import Model
from afm_mlx.quant import affine, palette, quantize
from afm_mlx.quant.layers import PalettizedLinear, make_ready
from afm_mlx.quant.quantize import Made, TargetOptions, Workshop
from afm_mlx.quant.statistics import Progress, linears
from afm_mlx.quant.variants import FormatOptions

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.convert import QUANT_RECIPES, mixed_quant_predicate_builder

GROUP = affine.GROUP_SIZE
FIGURE = "kl.svg"


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, and on which text."""

    test: tuple[str, ...] = ()
    """JSONL or text files to measure on; windows that calibration left out if none is given."""
    test_tokens: int = 8192
    """Tokens taken from each."""
    targets: tuple[float, ...] = (2.5, 3.0, 3.5, 4.0)
    """Bits a weight of this package's rows."""


@dataclass(frozen=True)
class Row:
    """One way to store the linear layers: bits a weight, and figures on each text."""

    name: str
    family: str
    bits: float
    found: Mapping[str, Fidelity]


@dataclass(frozen=True)
class Compared:
    """The rows are in ``folder`` as ``report.md`` and a plot."""

    folder: Path
    rows: tuple[Row, ...]


Event = Progress | Made | Row | Compared


def compare(compression: Compression, options: CompareOptions, folder: Path) -> Iterator[Event]:
    """Measure all rows and write the report.

    Raises:
        InputError: a file or option cannot be used.
    """
    source = checkpoint.load(compression.model, compression.revision, dtype=mx.float32)
    judges = {
        name: Judge(source.model, batches)
        for name, batches in _texts(compression, options, source).items()
    }
    rows: list[Row] = []
    for form in ("palette", "affine"):
        known = affine.WIDTHS if form == "affine" else palette.WIDTHS
        widths = tuple(b for b in compression.format.choices if b in known)
        if not widths:
            continue
        changed = FormatOptions(form, widths, damping=compression.format.damping)
        given = replace(compression, format=changed)
        shop: Workshop | None = None
        for event in workshop(given, given.format, source):
            if isinstance(event, Workshop):
                shop = event
            else:
                yield event
        assert shop is not None
        for target in options.targets:
            try:
                plan = quantize.choose(shop, TargetOptions(target))
            except InputError:
                continue  # below the smallest widths of this form
            bits = quantize.account(shop, plan, embedding=False).linear
            if any(row.family == form and row.bits == bits for row in rows):
                continue  # the largest widths everywhere, again
            fresh = _fresh(compression)
            small = quantize.apply(replace(shop, model=fresh), plan, embedding=False)
            kind = "palettes" if form == "palette" else "affine"
            how = "not calibrated" if compression.uncalibrated else "calibrated"
            name = f"{kind}, {how}, planned"
            rows.append(_row(name, form, bits, small, judges))
            yield rows[-1]
    for name, predicate in stock(source.model).items():
        small = _fresh(compression)
        nn.quantize(small, GROUP, 4, class_predicate=predicate)
        rows.append(_row(name, "MLX's own affine", model_bits(small), small, judges))
        yield rows[-1]
    if (folder / "config.json").exists():
        small = checkpoint.load(str(folder), dtype=mx.float32).model
        rows.append(_row("this model", "this model", model_bits(small), small, judges))
        yield rows[-1]
    _write(folder, source.name, rows, judges)
    yield Compared(folder, tuple(rows))


def stock(model: Model) -> dict[str, Callable[[str, nn.Module], Any]]:
    """mlx-lm's own ways for the linear layers: uniform bits and its mixed recipes."""
    names = {
        f"model.layers.{i}.{name}"
        for i, layer in enumerate(model.layers)
        for name, linear in linears(layer).items()
        if affine.fits(linear.weight.shape)
    }

    def uniform(bits: int) -> Callable[[str, nn.Module], Any]:
        return lambda path, _: path in names and {"group_size": GROUP, "bits": bits}

    def mixed(recipe: str) -> Callable[[str, nn.Module], Any]:
        choose: Any = mixed_quant_predicate_builder(recipe, model, GROUP)
        return lambda path, layer: path in names and choose(path, layer)

    found = {f"MLX affine, {bits} bits": uniform(bits) for bits in (2, 3, 4)}
    return found | {f"mlx-lm {recipe}": mixed(recipe) for recipe in QUANT_RECIPES}


def model_bits(model: nn.Module) -> float:
    """Bits a weight of all linear layers: packed ones with what belongs to them, others 16."""
    stored = weights = 0
    layers: list[Any] = [m for name, m in model.named_modules() if name != "lm_head"]
    for layer in layers:
        if isinstance(layer, PalettizedLinear):
            stored += 8 * sum(p.nbytes for p in layer.planes)
            stored += 16 * (layer.lut.size + layer.scales.size)
            weights += layer.input_dims * layer.output_dims
        elif isinstance(layer, nn.QuantizedLinear):
            stored += 8 * layer.weight.nbytes + 32 * layer.scales.size
            weights += layer.scales.size * layer.group_size
        elif isinstance(layer, nn.Linear):
            stored += 16 * layer.weight.size
            weights += layer.weight.size
    return stored / weights


def _fresh(compression: Compression) -> Model:
    return checkpoint.load(compression.model, compression.revision, dtype=mx.float32).model


def _row(name: str, family: str, bits: float, small: Model, judges: Mapping[str, Judge]) -> Row:
    small.set_dtype(mx.float32)
    make_ready(small, checkpoint.dense_bytes())
    return Row(name, family, bits, {text: judge(small) for text, judge in judges.items()})


def _texts(
    compression: Compression, options: CompareOptions, source: Checkpoint
) -> dict[str, list[Batch]]:
    """Windows of each text to measure on; without any, those that calibration does not take."""
    calibrated = compression.calibration
    files = options.test or calibrated.sources
    texts = {}
    for file in files:
        given = Source.parse(file)
        key = cache_key(source.tokenizer, [given])
        store = tokenize(read(given), source.tokenizer, compression.folder / "tokens", key)
        windows = Windows.of(store, calibrated.window)
        numbers = np.concatenate(windows.numbers)
        if not options.test:
            if len(files) > 1:
                raise InputError("name a --test text: calibration took windows of several files")
            numbers = calibrated.left_out(numbers)
        taken = numbers[: max(options.test_tokens // calibrated.window, 1)]
        if not len(taken):
            raise InputError("calibration leaves no text to measure on: name some with --test")
        name = Path(file).name
        texts[file if name in texts else name] = [windows.batch([n]) for n in taken]
    return texts


def _write(folder: Path, name: str, rows: Sequence[Row], texts: Mapping[str, Any]) -> None:
    parts = [f"# {inline(name)} with few bits\n"]
    try:
        write_bytes(folder / FIGURE, _plot(rows, list(texts)), new_folder=True)
        parts.append(f"![KL divergence from the source over bits a weight]({FIGURE})\n")
    except ImportError:
        parts.append("(no plot, matplotlib is not installed)\n")
    head = ["", "bits", "KL", "median", "p99", "largest", "flips", "perplexity"]
    for text in texts:
        found = [(r, r.found[text]) for r in sorted(rows, key=lambda r: (r.bits, r.name))]
        tokens, reference = found[0][1].tokens, found[0][1].source_perplexity
        parts.append(
            f"## {inline(text)}\n\n{tokens:,} tokens, perplexity of the source {reference:.2f};"
            " KL in nats a token, flips: share of changed likeliest tokens.\n"
        )
        parts.append(
            table(
                head,
                [
                    [
                        row.name,
                        f"{row.bits:.2f}",
                        f"{f.kl:.4f}",
                        f"{f.median:.4f}",
                        f"{f.p99:.2f}",
                        f"{f.largest:.1f}",
                        f"{f.flips:.1%}",
                        f"{f.perplexity:.2f}",
                    ]
                    for row, f in found
                ],
                numbers=True,
            )
            + "\n"
        )
    write_bytes(folder / "report.md", "\n".join(parts).encode(), new_folder=True)


def _plot(rows: Sequence[Row], texts: Sequence[str]) -> bytes:
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.6 * len(texts), 3.8), layout="constrained")
        for axes, text in zip(figure.subplots(1, len(texts), squeeze=False)[0], texts, strict=True):
            for family in dict.fromkeys(r.family for r in rows):
                points = sorted((r.bits, r.found[text].kl) for r in rows if r.family == family)
                line = "-" if family in ("palette", "affine") else ""
                axes.plot(*zip(*points, strict=True), marker="o", linestyle=line, label=family)
            axes.set_yscale("log")
            axes.set_title(text, parse_math=False)
            axes.set_xlabel("bits a weight")
            axes.set_ylabel("KL, nats a token")
        axes.legend(frameon=False)
        return svg(figure)
