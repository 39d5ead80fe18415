"""Low-bit checkpoints: load, calibrate, plan, exchange the weights, save.

    for event in compress(Compression(model=None, out="quantized")):
        ...

The parts are :mod:`afm_mlx.quant`'s; here they meet checkpoints. Statistics and matrices at every
width stay in ``cache``, so a second target or an edited plan takes seconds.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from afm_mlx import checkpoint
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.errors import InputError
from afm_mlx.files import write_bytes
from afm_mlx.model import Model
from afm_mlx.quant import calibration, plan, quantize
from afm_mlx.quant.calibration import CalibrationOptions
from afm_mlx.quant.layers import configuration
from afm_mlx.quant.quantize import Account, Made, Planned, TargetOptions
from afm_mlx.quant.statistics import Progress
from afm_mlx.quant.variants import FormatOptions

import mlx.core as mx

PLAN = "plan.toml"
"""Name of the plan in the folder of a low-bit model."""


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
    if out.exists() and not options.overwrite and not plan_only:
        raise InputError(f"{out} exists already: choose another --out or allow to --overwrite it")
    asked = plan.read(Path(options.plan)) if options.plan else None
    form = options.format
    if asked is not None:
        form = replace(form, form=asked.form, group_size=asked.group_size)
        form = replace(form, choices=tuple(sorted({*form.choices, *asked.bits.values()})))
    loaded = checkpoint.load(options.model, options.revision)
    if configuration(loaded.model):
        raise InputError(f"{loaded.name} has few bits already: name the model it was made from")
    if asked is None:
        quantize.check_target(loaded.model, form, options.target)
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
    signature = save(out, small, loaded, options.overwrite)
    write_bytes(out / PLAN, plan.to_text(made).encode())
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


def save(folder: Path, model: Model, source: Checkpoint, overwrite: bool = False) -> str:
    """Write a low-bit model with 16-bit values where it is not packed; its base signature."""
    model.set_dtype(mx.float16 if mx.default_device() == mx.cpu else checkpoint.default_dtype())
    return checkpoint.save(folder, model, source.tokenizer, base=source.name, overwrite=overwrite)
