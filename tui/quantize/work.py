"""What runs on the engine's thread for this screen: measuring, working out widths, writing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from afm_mlx import checkpoint
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.compress import Compression, Event, Loaded, Written, compress, workshop
from afm_mlx.quant import measure
from afm_mlx.quant.calibration import CalibrationOptions
from afm_mlx.quant.layers import configuration
from afm_mlx.quant.machine import Machine
from afm_mlx.quant.measure import ProfileOptions, Round
from afm_mlx.quant.profile import Profile
from afm_mlx.quant.quantize import Made, Planned, Workshop
from afm_mlx.quant.statistics import Progress

Cancelled = Callable[[], bool]


@dataclass(frozen=True)
class Options:
    """How a model is measured and calibrated.

    Attributes:
        cache: as in :class:`afm_mlx.compress.Compression`.
        machine: its ceilings, measured if left out.
    """

    measuring: ProfileOptions = field(default_factory=ProfileOptions)
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    cache: str = ""
    machine: Machine | None = None


def profile(
    base: Checkpoint, cancelled: Cancelled, options: Options
) -> Iterator[Round | Progress | Made | Profile]:
    """Measure the model; then work out every width of its matrices.

    The profile comes twice: as measured, and with the widths, which may take minutes more. A
    model that has few bits already has no others.
    """
    found: Profile | None = None
    for event in measure.profile(base.model, base.name, options.measuring, machine=options.machine):
        if cancelled():
            return
        if isinstance(event, Profile):
            found = event
        yield event
    assert found is not None
    if configuration(base.model):
        return
    # Another copy of the model: adapters may lie around the layers of this one.
    wanted = Compression(base.name, cache=options.cache, calibration=options.calibration)
    for made in workshop(wanted, wanted.format, checkpoint.load(base.name)):
        if cancelled():
            return
        yield found.with_choices(made.rows) if isinstance(made, Workshop) else made


def write(
    base: Checkpoint, cancelled: Cancelled, options: Options, plan: Path, out: Path
) -> Iterator[Event]:
    """Write the model with the bits of a plan, over what is at ``out``."""
    wanted = Compression(
        base.name,
        out=str(out),
        overwrite=True,
        plan=str(plan),
        cache=options.cache,
        calibration=options.calibration,
    )
    for event in compress(wanted):
        yield event
        if cancelled():
            return


def describe(event: object) -> tuple[str, int, int] | None:
    """What is being done, how much of it is done, and how much there is."""
    match event:
        case Round():
            return "measuring", event.done, event.total
        case Progress():
            return "reading calibration text", event.done, event.total
        case Made():
            return "fitting weights", event.number, event.total
        case Loaded():
            return "looking for widths", 0, 0
        case Planned():
            return "writing the model", 0, 0
        case Written():
            return "written", 1, 1
    return None
