"""Low-bit checkpoints: load, calibrate, plan, exchange the weights, save.

    for event in compress(Compression(model=None, out="quantized")):
        ...

The parts are :mod:`afm_mlx.quant`'s; here they meet checkpoints. Statistics and matrices at every
width stay in ``cache``, so a second target or an edited plan takes seconds.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from afm_mlx import checkpoint
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.errors import InputError
from afm_mlx.quant import calibration, plan, quantize
from afm_mlx.quant.calibration import CalibrationOptions
from afm_mlx.quant.layers import configuration
from afm_mlx.quant.quantize import Account, Made, Planned, TargetOptions
from afm_mlx.quant.statistics import Progress
from afm_mlx.quant.variants import FormatOptions

import mlx.core as mx

PLAN = "plan.toml"
"""Name of the plan in the folder of a low-bit model."""
STORED = mx.float16
"""Type of all that is not packed, tables and scales too, whatever computed them."""


@dataclass(frozen=True)
class Compression:
    """Palettise a model, or quantise it for MLX's own layers.

    Calibrates on text, chooses the bits of every matrix for a target average, and writes a
    model folder that afm, and with --form affine plain mlx-lm too, can load.
    """

    model: str | None = None
    """Model folder, .gguf file or hub repository; the embedded default if left out."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    out: str = "quantized"
    """Folder of the new model."""
    overwrite: bool = False
    """Replace the folder if it is there already."""
    go_on: bool = False
    """Take the folder as it is if it is there already, and go on with training and report."""
    target: TargetOptions = field(default_factory=TargetOptions)
    format: FormatOptions = field(default_factory=FormatOptions)
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    plan: str = ""
    """A plan.toml to follow, perhaps one that you changed; made anew if left out."""
    uncalibrated: bool = False
    """Use no text at all: quick, and several times the error."""
    cache: str = ""
    """Where statistics and matrices are kept; ~/.cache/afm-mlx/quant if left out."""

    @property
    def folder(self) -> Path:
        """The cache."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return Path(self.cache) if self.cache else home / "afm-mlx" / "quant"


@dataclass(frozen=True)
class Loaded:
    """The model is there: ``size`` is its bytes at 16 bits a weight."""

    name: str
    parameters: int
    size: int


@dataclass(frozen=True)
class Written:
    """The low-bit model is in ``folder``."""

    folder: Path
    signature: str
    account: Account


Event = Loaded | Progress | Made | Planned | Written


def compress(options: Compression, plan_only: bool = False) -> Iterator[Event]:
    """Make a low-bit model.

    Raises:
        InputError: an option, a plan or a file cannot be used; nothing is half-written.
        ModelError: the model cannot be loaded.
    """
    out = Path(options.out)
    if out.exists() and not plan_only:
        if options.go_on:
            return
        if not options.overwrite:
            raise InputError(
                f"{out} exists already: choose another --out, --overwrite it, or --go-on with it"
            )
    asked = plan.read(Path(options.plan)) if options.plan else None
    form = options.format
    if asked is not None:
        widths = tuple(sorted({*form.choices, *asked.bits.values()}))
        form = FormatOptions(asked.form, widths, False, asked.group_size, form.damping)
    loaded = checkpoint.load(options.model, options.revision)
    if configuration(loaded.model):
        raise InputError(f"{loaded.name} has few bits already: name the model it was made from")
    if asked is not None and asked.base != loaded.signature:
        raise InputError(f"{options.plan} is for another model: make one for {loaded.name}")
    target = options.target if asked is None else TargetOptions(16)
    quantize.check_model(loaded.model, form, target)
    parameters = loaded.model.args.num_parameters
    yield Loaded(loaded.name, parameters, 2 * parameters)
    shop: quantize.Workshop | None = None
    for event in workshop(options, form, loaded):
        if isinstance(event, quantize.Workshop):
            shop = event
        else:
            yield event
    assert shop is not None
    made = asked or quantize.choose(shop, options.target)
    account = quantize.account(shop, made, options.target.embedding)
    yield Planned(made, account)
    if plan_only:
        return
    small = quantize.apply(shop, made, options.target.embedding)
    extra = {PLAN: plan.to_text(made).encode()}
    small.set_dtype(STORED)
    signature = checkpoint.save(
        out,
        small,
        loaded.tokenizer,
        base=loaded.name,
        overwrite=options.overwrite,
        extra=extra,
    )
    yield Written(out, signature, account)


def workshop(
    options: Compression, form: FormatOptions, loaded: Checkpoint
) -> Iterator[Progress | Made | quantize.Workshop]:
    """Calibrate, and make every matrix at every width; ends with the workshop."""
    text = None
    if not options.uncalibrated:
        text = calibration.windows(options.calibration, loaded.tokenizer, options.folder)
    yield from quantize.prepare(
        loaded.model, loaded.signature, text, form, options.folder, options.calibration.seed
    )
