"""Which matrix gets how many bits: the least cost at a target average.

Every matrix has a few choices, each with its bits and its cost, the second-order estimate of
what it adds to the loss. A price per bit splits the problem into one choice per matrix
(Lagrangian relaxation, Everett 1963); the price is found by bisection, and what is left of the
target buys the upgrades of the best value. That takes milliseconds, so a plan can be changed
row by row and solved again at once.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from afm_mlx.errors import InputError, first_line

Form = Literal["palette", "affine"]
FORMS = get_args(Form)


@dataclass(frozen=True)
class Choice:
    """One way to store a matrix.

    Attributes:
        bits: the width's name.
        size: bits it takes, tables and scales included.
        cost: nats that it is expected to add to the loss of a token.
    """

    bits: int
    size: float
    cost: float


Choices = Mapping[str, tuple[Choice, ...]]
"""The choices of every matrix, smallest first."""


@dataclass(frozen=True)
class Plan:
    """Bits of every matrix.

    Attributes:
        base: base signature of the model that it was made for.
        bits: width of each matrix by its name.
        group_size: rows that share a table, or columns that share a scale.
    """

    base: str
    bits: dict[str, int]
    group_size: int
    form: Form = "palette"

    def changed(self, name: str, bits: int) -> "Plan":
        """The plan with another width for one matrix."""
        if name not in self.bits:
            raise InputError(f"the plan has no matrix {name}: choose one of its names")
        return replace(self, bits={**self.bits, name: bits})


def solve(
    choices: Choices,
    target: float,
    weights: Mapping[str, int],
    extra: float = 0.0,
    fixed: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """The widths of least total cost whose average stays within ``target`` bits a weight.

    Args:
        choices: of every matrix.
        target: bits a weight, all overheads included.
        weights: number of weights of every matrix.
        extra: bits that are spent already (embedding, adapter) beside their weights, which the
            caller adds to ``weights``.
        fixed: widths that a person chose.

    Raises:
        InputError: the target lies below the smallest widths, or a fixed width is not offered.
    """
    names = list(choices)
    offered = {name: _offered(name, choices[name], (fixed or {}).get(name)) for name in names}
    budget = target * sum(weights.values()) - extra
    least = sum(row[0].size for row in offered.values())
    if least > budget * (1 + 1e-9):
        total = sum(weights.values())
        raise InputError(
            f"{target:g} bits a weight cannot be reached: the smallest widths take"
            f" {(least + extra) / total:.2f}; raise the target or offer fewer bits"
        )
    low, high = 1e-30, 1e30  # nats for a bit
    for _ in range(100):
        middle = math.sqrt(low * high)
        if _spent(_priced(offered, middle)) > budget:
            low = middle
        else:
            high = middle
    taken = _fill(offered, _priced(offered, high), budget)
    return {name: c.bits for name, c in taken.items()}


def _offered(name: str, row: tuple[Choice, ...], fixed: int | None) -> tuple[Choice, ...]:
    if fixed is None:
        return tuple(sorted(row, key=lambda c: c.size))
    kept = tuple(c for c in row if c.bits == fixed)
    if not kept:
        known = ", ".join(str(c.bits) for c in row)
        raise InputError(f"{name} is offered with {known} bits, not with {fixed}")
    return kept


def _priced(offered: Choices, price: float) -> dict[str, Choice]:
    """The best choice of each matrix if a bit costs ``price``; of equal ones the smaller."""
    return {
        name: min(row, key=lambda c: (c.cost + price * c.size, c.size))
        for name, row in offered.items()
    }


def _spent(taken: Mapping[str, Choice]) -> float:
    return sum(c.size for c in taken.values())


def _fill(offered: Choices, taken: dict[str, Choice], budget: float) -> dict[str, Choice]:
    """Spend what is left on the upgrades that save most for their size."""
    left = budget * (1 + 1e-12) - _spent(taken)
    while True:
        best: tuple[float, str, Choice] | None = None
        for name, row in offered.items():
            now = taken[name]
            for c in row:
                more, saved = c.size - now.size, now.cost - c.cost
                if 0 < more <= left and saved > 0 and (best is None or saved / more > best[0]):
                    best = (saved / more, name, c)
        if best is None:
            return taken
        left -= best[2].size - taken[best[1]].size
        taken = {**taken, best[1]: best[2]}


# ---- files


def to_text(plan: Plan) -> str:
    """The plan as TOML, one row for each matrix."""
    rows = [f'"{name}" = {bits}' for name, bits in plan.bits.items()]
    return "\n".join(
        [
            "# Bits of every matrix: change any row, then give the file to afm quantize --plan.",
            f'base = "{plan.base}"',
            f'form = "{plan.form}"',
            f"group_size = {plan.group_size}",
            "",
            "[bits]",
            *rows,
            "",
        ]
    )


def read(path: Path) -> Plan:
    """A plan from its file.

    Raises:
        InputError: it cannot be read, or is no plan.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        bits = {str(name): _whole(b) for name, b in values["bits"].items()}
        form = values["form"]
        if form not in FORMS:
            raise ValueError(f"form is {' or '.join(FORMS)}, not {form!r}")
        return Plan(str(values["base"]), bits, _whole(values["group_size"]), form)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} is no plan ({first_line(error)}): let afm quantize write one and change that"
        ) from error


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is no whole number")
    return value
