"""The table of operations in text: rows, their order, what of them is shown, and the summary."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from afm_mlx.quant.profile import Operation, Option
from afm_mlx.tui.quantize.desk import Desk

BAR = 6
"""Columns of the bar of sensitivity."""
COLUMNS = {
    "name": "operation",
    "bits": "bits",
    "size": "MB",
    "time": "µs",
    "energy": "mJ*",
    "cost": "nats",
    "sensitivity": "sens.",
    "prefill": "prefill µs",
}
"""Heads of the columns; times are of one token in decoding unless they say otherwise."""
ORDERS = ("time", "size", "energy", "cost", "sensitivity", "prefill", "bits", "name")
"""What rows can be sorted by; names stand in the order in which the model runs."""


@dataclass(frozen=True)
class Line:
    """A row of the table in numbers.

    Attributes:
        number: its place in the model.
        bits: of a weight, as chosen, or nominal as they are; 0 without weights.
        narrower, wider: whether there are such widths.
        chosen: by a person.
        size, seconds, joules: as chosen; ``modelled`` if the time is not the one measured.
        cost: nats of the chosen width; ``None`` if not known.
    """

    number: int
    name: str
    kind: str
    bits: int
    narrower: bool
    wider: bool
    chosen: bool
    size: float
    seconds: float
    modelled: bool
    joules: float
    prefill: float
    cost: float | None
    sensitivity: float | None

    @property
    def short(self) -> str:
        """Its name without what all names of its kind have."""
        name = self.name.removeprefix("model.").removeprefix("layers.")
        name = name.replace("self_attn.", "").replace("mlp.", "").replace("_layernorm", "_norm")
        return name.replace("post_attention_norm", "post_norm")


def lines(desk: Desk) -> list[Line]:
    """All rows in the order of the model."""
    return [line(desk, number, o) for number, o in enumerate(desk.profile.operations)]


def line(desk: Desk, number: int, o: Operation) -> Line:
    """One row."""
    taken = desk.option(o.name)
    joules = desk.profile.energy.joules(o.decode.bytes, o.decode.flops)
    now = Option(o.width, o.stored, 0.0, o.decode.seconds, joules)
    option = taken or now
    widths = [x.bits for x in o.options]
    return Line(
        number,
        o.name,
        o.kind,
        option.bits if o.stored else 0,
        bool(taken and option.bits > min(widths)),
        bool(taken and option.bits < max(widths)),
        o.name in desk.chosen,
        option.size,
        option.seconds,
        taken is not None and option.bits != o.width,
        option.joules,
        o.prefill.seconds,
        option.cost if taken else None,
        o.sensitivity,
    )


_KEYS: dict[str, Callable[[Line], float]] = {
    "name": lambda x: x.number,
    "bits": lambda x: -x.bits,
    "size": lambda x: -x.size,
    "time": lambda x: -x.seconds,
    "energy": lambda x: -x.joules,
    "cost": lambda x: -(x.cost or 0.0),
    "sensitivity": lambda x: -(x.sensitivity or 0.0),
    "prefill": lambda x: -x.prefill,
}


def arranged(found: Iterable[Line], order: str, wanted: str = "") -> list[Line]:
    """Rows whose names or kinds have all words of ``wanted``, the largest first."""
    words = wanted.lower().split()
    kept = [x for x in found if all(w in f"{x.name} {x.kind}".lower() for w in words)]
    return sorted(kept, key=lambda x: (_KEYS[order](x), x.number))


def cells(x: Line, most: float) -> dict[str, str]:
    """A row in text; ``most`` is the largest sensitivity of all."""
    left, right = "◂" if x.narrower else " ", "▸" if x.wider else " "
    return {
        "name": x.short,
        "bits": f"{left}{x.bits}{right}{'•' if x.chosen else ' '}" if x.bits else "",
        "size": f"{x.size / 1e6:.2f}" if x.size else "",
        "time": ("~" if x.modelled else "") + number(x.seconds * 1e6),
        "energy": number(x.joules * 1e3),
        "cost": "" if x.cost is None else nats(x.cost),
        "sensitivity": bar(x.sensitivity, most),
        "prefill": number(x.prefill * 1e6),
    }


def bar(value: float | None, most: float) -> str:
    """A bar as long as ``value`` is of ``most``, logarithmic over three decades."""
    if value is None or value <= 0 or most <= 0:
        return ""
    share = max(1 + math.log10(value / most) / 3, 0.0)
    return "█" * max(round(share * BAR), 1)


def number(value: float) -> str:
    """Three digits or so."""
    if value >= 100 or value == 0:
        return f"{value:.0f}"
    if value >= 1:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def nats(value: float) -> str:
    """An expected rise of the loss."""
    return f"{value:+.4f}".replace("-", "−")


def signed(value: float, unit: str) -> str:
    """A difference, with a minus that is as wide as a plus."""
    text = number(abs(value))
    return f"{'−' if value < 0 else '+'}{text} {unit}"


def share(after: float, before: float) -> str:
    """A difference in percent."""
    return f"{100 * (after / before - 1):+.0f} %".replace("-", "−") if before else ""


def what_if(desk: Desk, name: str) -> list[str]:
    """What each other width of a row would change."""
    now = desk.option(name)
    if now is None:
        return []
    return [
        f"{now.bits}→{x.bits} {signed((x.size - now.size) / 1e6, 'MB')}"
        f" {signed((x.seconds - now.seconds) * 1e6, 'µs')} {nats(x.cost - now.cost)} nats"
        for x in desk.operations[name].options
        if x.bits != now.bits
    ]


def summary(desk: Desk) -> list[str]:
    """What the plan takes, beside the model as it is."""
    now, then = desk.profile.totals, desk.totals
    if then.cost is None:
        return [
            f"linear layers  {now.linear:.2f} bits",
            f"model          {now.bits:.2f} bits",
            f"size           {now.size / 1e6:.1f} MB",
            f"a token        {number(now.seconds * 1e3)} ms",
            f"energy*        {number(now.joules * 1e3)} mJ",
        ]
    return [
        f"linear layers  {then.linear:.2f} bits",
        f"expected loss  {nats(then.cost)} nats",
        f"size           {now.size / 1e6:.1f} → {desk.size / 1e6:.1f} MB"
        f"  {share(desk.size, now.size)}",
        f"a token*       {number(now.seconds * 1e3)} → {number(then.seconds * 1e3)} ms"
        f"  {share(then.seconds, now.seconds)}",
        f"energy*        {number(now.joules * 1e3)} → {number(then.joules * 1e3)} mJ"
        f"  {share(then.joules, now.joules)}",
        f"chosen by hand {len(desk.chosen)} of {len(desk.bits)}",
    ]


def brief(desk: Desk) -> str:
    """The summary in one line."""
    now, then = desk.profile.totals, desk.totals
    if then.cost is None:
        return f"{now.linear:.2f} bits · {now.size / 1e6:.1f} MB · {number(now.seconds * 1e3)} ms"
    return (
        f"{then.linear:.2f} bits · {nats(then.cost)} nats · {desk.size / 1e6:.1f} MB"
        f" {share(desk.size, now.size)} · {number(then.seconds * 1e3)} ms*"
        f" {share(then.seconds, now.seconds)}"
    )


def slider(desk: Desk, width: int) -> str:
    """The budget between the fewest and the most bits that there are."""
    least, most = desk.limits
    room = max(width - 12, 3)
    place = (desk.budget - least) / (most - least) if most > least else 0.0
    at = round(min(max(place, 0.0), 1.0) * (room - 1))
    return f"{least:.2f} {'─' * at}●{'─' * (room - 1 - at)} {most:.2f}"


def measured(desk: Desk) -> list[str]:
    """Where the figures come from."""
    profile = desk.profile
    said = [
        f"{profile.model} on {profile.machine.device}, {profile.machine.dtype}",
        f"one token after {profile.tokens}, a prompt of {profile.tokens}",
        "* modelled, not measured; ~ as on a machine that reads packed weights",
    ]
    return said + [f"note: {note}" for note in profile.notes]


def largest(found: Sequence[Line]) -> float:
    """The largest sensitivity."""
    return max((x.sensitivity or 0.0 for x in found), default=0.0)
