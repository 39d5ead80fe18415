"""Where every bit, byte and microsecond of a model goes (after Talaria, arXiv 2404.03085).

A profile is a table of operations: what each holds, moves and computes, how long it took
(:mod:`afm_mlx.quant.measure`), and what every width it could have would take. It is plain
numbers: what-if answers are sums over options that were worked out beforehand, and no array is
touched. A saved profile opens on any machine.

What it says of energy is modelled, bytes and operations times a coefficient each; only
:attr:`Whole.joules` is measured, where the machine has a meter.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from afm_mlx.errors import InputError, first_line
from afm_mlx.files import write_bytes
from afm_mlx.quant.machine import Energy, Machine
from afm_mlx.quant.variants import Row

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = get_args(Phase)
Kind = Literal["embedding", "norm", "linear", "rotary", "attention", "activation", "head"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_FORM = "afm-profile-1"
# Of files that are missing, damaged, or something else.
_FAILURES = OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError


@dataclass(frozen=True)
class Work:
    """What an operation does in one phase.

    Attributes:
        tokens: positions that it runs for.
        weights: bytes of weights that it reads, in the form that it computes with here.
        bytes: all that it moves, inputs and outputs included; what fits on the chip meanwhile
            (the scores of attention) is left out.
        flops: multiplications and additions that the result needs.
        seconds: measured, see :mod:`afm_mlx.quant.measure`.
    """

    tokens: int
    weights: int
    bytes: int
    flops: int
    seconds: float

    def __post_init__(self) -> None:
        if self.bytes <= 0 or self.seconds <= 0:
            raise ValueError("every operation moves bytes and takes time")


@dataclass(frozen=True)
class Option:
    """A width that a linear layer could have.

    Attributes:
        size: bytes with tables and scales.
        cost: nats that a token's loss is expected to rise by.
        seconds: modelled time in decoding: the bytes it would move, packed, at the bandwidth
            that the layer reaches now.
        joules: modelled likewise.
    """

    bits: int
    size: float
    cost: float
    seconds: float
    joules: float


@dataclass(frozen=True)
class Operation:
    """A row of the table.

    Attributes:
        name: dotted; of a module, or within one for what has no weights.
        block: number of its block, or ``None``.
        shape: ``[N, K]`` of a matrix, width of a norm or activation; heads and their width for
            rotary positions, query heads, key-value heads and their width for attention.
        width: nominal bits of a weight: those of its palette or grid, 16 for plain numbers.
        stored: bytes on disk, where plain numbers have 16 bits; 0 for a tied output table, which
            counts as embedding.
        options: widths that it could have; none where they are not known.
    """

    name: str
    kind: Kind
    block: int | None
    shape: tuple[int, ...]
    width: int
    stored: int
    prefill: Work
    decode: Work
    options: tuple[Option, ...] = ()

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"{self.name} has no shape")

    @property
    def parameters(self) -> int:
        """Number of weights that are its own."""
        return math.prod(self.shape) if self.stored else 0

    @property
    def bits(self) -> float | None:
        """Stored bits of a weight, all overheads included; ``None`` if it has none of its own."""
        return 8 * self.stored / self.parameters if self.stored else None

    @property
    def sensitivity(self) -> float | None:
        """Nats that the loss is expected to rise by at the fewest bits offered, if known."""
        return min(self.options, key=lambda o: o.bits).cost if self.options else None

    def option(self, bits: int) -> Option | None:
        """The option of so many bits, if it is offered."""
        return next((o for o in self.options if o.bits == bits), None)


@dataclass(frozen=True)
class Whole:
    """The whole model in one phase.

    Attributes:
        seconds: measured, median.
        joules: measured, other programs' included; ``None`` without a meter.
    """

    seconds: float
    joules: float | None = None

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise ValueError("a model takes time")


@dataclass(frozen=True)
class Totals:
    """What a model takes with chosen widths.

    Attributes:
        size: bytes on disk.
        linear: bits a weight of the linear layers.
        bits: bits a weight of the whole model.
        cost: nats that a token's loss is expected to rise by; ``None`` if no layer has options.
        seconds: modelled time of a token in decoding.
        joules: modelled energy of it.
    """

    size: float
    linear: float
    bits: float
    cost: float | None
    seconds: float
    joules: float


@dataclass(frozen=True)
class Profile:
    """A model's operations on a machine.

    Attributes:
        tokens: length of the prompt in prefill, and of what is cached in decoding.
        operations: in the order in which they run.
        prefill, decode: the whole model at once; what it takes beyond the sum of its operations
            are residual sums, cache updates and the calls themselves.
        notes: what a reader must know of this machine.
    """

    model: str
    tokens: int
    machine: Machine
    energy: Energy
    operations: tuple[Operation, ...]
    prefill: Whole
    decode: Whole
    notes: tuple[str, ...] = ()

    def with_choices(self, choices: Mapping[str, Row]) -> "Profile":
        """The profile with all widths of every matrix in it, for :meth:`what_if`.

        Raises:
            InputError: they are another model's.
        """
        linear = {o.name: o for o in self.operations if o.kind == "linear"}
        for name, row in choices.items():
            if name not in linear or linear[name].shape != row.shape:
                raise InputError(f"the choices are for another model: {name} differs")
        operations = tuple(
            replace(o, options=self._options(o, choices[o.name])) if o.name in choices else o
            for o in self.operations
        )
        return replace(self, operations=operations)

    def _options(self, operation: Operation, row: Row) -> tuple[Option, ...]:
        work = operation.decode
        others = work.bytes - work.weights
        options = []
        for choice in sorted(row.choices, key=lambda c: c.bits):
            moved = choice.size / 8 + others
            seconds = moved * work.seconds / work.bytes
            joules = self.energy.joules(moved, work.flops)
            options.append(Option(choice.bits, choice.size / 8, choice.cost, seconds, joules))
        return tuple(options)

    def what_if(self, bits: Mapping[str, int]) -> Totals:
        """What the model would take with other widths; layers not named stay as they are.

        Time and energy are those of a machine that reads packed weights, as GPUs do. A layer
        that computes from a dense copy takes the same time at any width: where it is not named
        and its own width is offered, that option counts.

        Raises:
            InputError: a name or width is not offered.
        """
        now, size, cost, seconds, joules = self.totals, 0.0, 0.0, 0.0, 0.0
        for name, width in bits.items():
            if name not in self._now:
                raise InputError(f"the profile has no operation {name}: choose one of its names")
            operation, old = self._now[name]
            new = operation.option(width)
            if new is None:
                raise InputError(_not_offered(operation, width))
            size += new.size - old.size
            cost += new.cost - old.cost
            seconds += new.seconds - old.seconds
            joules += new.joules - old.joules
        return Totals(
            now.size + size,
            now.linear + 8 * size / max(self._weights("linear"), 1),
            now.bits + 8 * size / max(self._weights(*KINDS), 1),
            None if now.cost is None else now.cost + cost,
            now.seconds + seconds,
            now.joules + joules,
        )

    @cached_property
    def totals(self) -> Totals:
        """What the model takes as it is, as :meth:`what_if` counts."""
        now = [option for _, option in self._now.values()]
        size = sum(option.size for option in now)
        linear = sum(option.size for o, option in self._now.values() if o.kind == "linear")
        known = any(o.options for o in self.operations)
        return Totals(
            size,
            8 * linear / max(self._weights("linear"), 1),
            8 * size / max(self._weights(*KINDS), 1),
            sum(option.cost for option in now) if known else None,
            sum(option.seconds for option in now) + self.rest("decode"),
            sum(option.joules for option in now),
        )

    @cached_property
    def _now(self) -> dict[str, tuple[Operation, Option]]:
        """Every operation, and what counts for it as it is."""
        return {o.name: (o, o.option(o.width) or self._as_it_is(o)) for o in self.operations}

    def _as_it_is(self, o: Operation) -> Option:
        joules = self.energy.joules(o.decode.bytes, o.decode.flops)
        return Option(o.width, o.stored, 0.0, o.decode.seconds, joules)

    def _weights(self, *kinds: Kind) -> int:
        return sum(o.parameters for o in self.operations if o.kind in kinds)

    def rest(self, phase: Phase) -> float:
        """Seconds that the whole model took beyond the sum of its operations."""
        total = self.prefill if phase == "prefill" else self.decode
        return max(total.seconds - sum(work(o, phase).seconds for o in self.operations), 0.0)

    def share(self, found: Work) -> float:
        """What an operation reaches of what the roofline allows, 1 being all."""
        return self.machine.least_seconds(found.bytes, found.flops) / found.seconds

    def report(self) -> dict[str, Any]:
        """All figures, the derived ones too, as JSON values."""
        return {
            "model": self.model,
            "tokens": self.tokens,
            "machine": asdict(self.machine),
            "energy": {**asdict(self.energy), "modelled": True},
            "prefill": {**asdict(self.prefill), "rest": self.rest("prefill")},
            "decode": {**asdict(self.decode), "rest": self.rest("decode")},
            "totals": asdict(self.totals),
            "notes": list(self.notes),
            "operations": [self._row(o) for o in self.operations],
        }

    def _row(self, o: Operation) -> dict[str, Any]:
        row: dict[str, Any] = {
            **asdict(o),
            "parameters": o.parameters,
            "bits": o.bits,
            "sensitivity": o.sensitivity,
        }
        for phase in PHASES:
            found = work(o, phase)
            row[phase] |= {
                "joules": self.energy.joules(found.bytes, found.flops),
                "bandwidth": found.bytes / found.seconds,
                "speed": found.flops / found.seconds,
                "roofline": self.share(found),
            }
        return row

    def save(self, path: Path) -> None:
        """Write the profile as JSON.

        Raises:
            InputError: the folder cannot be written.
        """
        values = {"form": _FORM, **asdict(self)}
        write_bytes(path, json.dumps(values, allow_nan=False).encode())


def work(operation: Operation, phase: Phase) -> Work:
    """What ``operation`` does in ``phase``."""
    return operation.prefill if phase == "prefill" else operation.decode


def _not_offered(operation: Operation, bits: int) -> str:
    known = ", ".join(str(o.bits) for o in operation.options)
    if not known:
        return f"{operation.name} has no other widths: leave it out"
    return f"{operation.name} is offered with {known} bits, not with {bits}"


# ---- files


def read(path: Path) -> Profile:
    """A profile from its file.

    Raises:
        InputError: it cannot be read, or is no profile.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("form") != _FORM:
            raise ValueError("it has another form")
        found: Profile = _made(Profile, values)
        if len({o.name for o in found.operations}) < len(found.operations):
            raise ValueError("two operations have one name")
        return found
    except _FAILURES as error:
        raise InputError(
            f"{path} is no profile ({first_line(error)}): write one with afm profile --save"
        ) from error


def _made(kind: Any, value: Any) -> Any:
    """A value of a type from what JSON made of it."""
    make = kind
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        if set(value) != set(hints):
            odd = min(set(value) ^ set(hints))
            raise ValueError(f"{odd!r:.40} is missing or too much")
        return make(**{name: _made(hint, value[name]) for name, hint in hints.items()})
    inner = get_args(kind)
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_made(inner[0], v) for v in value)
    if type(None) in inner:
        return None if value is None else _made(inner[0], value)
    if value in inner:  # of a Literal
        return value
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (int, str) and type(value) is kind and (kind is str or value >= 0):
        return value
    raise ValueError(f"{value!r:.40} is out of place")
