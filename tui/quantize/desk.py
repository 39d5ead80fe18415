"""A profile, the bits that each matrix shall get, and what that takes; plain numbers.

Every change gives another desk, so that going back is keeping the one before. All widths of a
profile were worked out beforehand: a change of one row is a sum, a change of the budget a plan
(:func:`afm_mlx.quant.plan.solve`), some ten milliseconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

from afm_mlx.errors import InputError
from afm_mlx.quant.plan import Choice, Plan, solve
from afm_mlx.quant.profile import Operation, Option, Profile, Totals

USUAL = 3.5
"""Bits a weight that a desk begins with."""
EMBEDDING = 8
"""Bits of embeddings in a model that is written, beside one 16-bit scale a row."""
_NEARLY = 1e-6  # bits a weight, where a budget is just what the widths take


@dataclass(frozen=True, eq=False)
class Desk:
    """What a person is planning.

    Attributes:
        bits: of every matrix that has a choice.
        chosen: matrices whose bits a person chose; a new budget leaves them.
        budget: bits a weight of the linear layers that was asked for last.
    """

    profile: Profile
    bits: Mapping[str, int] = field(default_factory=dict)
    chosen: frozenset[str] = frozenset()
    budget: float = USUAL

    @classmethod
    def of(cls, profile: Profile, budget: float = USUAL) -> "Desk":
        """The plan of least expected loss within the budget, or the nearest to it."""
        return cls(profile).budgeted(budget)

    # ---- what there is

    @cached_property
    def operations(self) -> dict[str, Operation]:
        """The operations by name."""
        return {o.name: o for o in self.profile.operations}

    @cached_property
    def choices(self) -> dict[str, tuple[Choice, ...]]:
        """Widths of every matrix that has a choice."""
        return {
            o.name: tuple(Choice(x.bits, 8 * x.size, x.cost) for x in o.options)
            for o in self.profile.operations
            if o.options
        }

    @cached_property
    def limits(self) -> tuple[float, float]:
        """Bits a weight with the fewest and the most bits in all that a person did not choose."""
        rows = [
            [c.size for c in row if name not in self.chosen or c.bits == self.bits[name]]
            for name, row in self.choices.items()
        ]
        weights, extra = self._frame
        total = max(sum(weights.values()), 1)
        least, most = ((sum(map(end, rows)) + extra) / total for end in (min, max))
        return least, most

    @cached_property
    def _frame(self) -> tuple[dict[str, int], float]:
        """Weights of the linear layers, and bits of those among them without a choice."""
        weights, extra = {"": 0}, 0.0
        for o in self.profile.operations:
            if o.options:
                weights[o.name] = o.parameters
            elif o.kind == "linear":
                weights[""] += o.parameters
                extra += 8 * o.stored
        return weights, extra

    @cached_property
    def totals(self) -> Totals:
        """What the model takes with these bits, embeddings as they are."""
        return self.profile.what_if(self.bits)

    @cached_property
    def size(self) -> float:
        """Bytes of the model when it is written: embeddings have 8 bits there."""
        saved = sum(
            o.stored - o.parameters * (EMBEDDING + 16 / o.shape[1]) / 8
            for o in self.profile.operations
            if o.kind == "embedding" and o.stored and o.width > EMBEDDING
        )
        return self.totals.size - (saved if self.bits else 0)

    def option(self, name: str) -> Option | None:
        """The width that a matrix gets, if it has a choice."""
        return self.operations[name].option(self.bits[name]) if name in self.bits else None

    # ---- changes

    def stepped(self, name: str, by: int) -> "Desk":
        """The desk with the next wider (1) or narrower (-1) width for one matrix.

        Raises:
            InputError: it has no choice.
        """
        if name not in self.bits:
            why = "the widths are not worked out" if not self.choices else "it is no matrix"
            raise InputError(f"{name} stays as it is, {why}: p works out the widths of matrices")
        widths = sorted(c.bits for c in self.choices[name])
        place = widths.index(self.bits[name]) + by
        width = widths[min(max(place, 0), len(widths) - 1)]
        return self._changed({**self.bits, name: width}, self.chosen | {name})

    def released(self, name: str) -> "Desk":
        """The desk that may give a matrix what the budget says again."""
        return self._changed(self.bits, self.chosen - {name}).budgeted(self.budget)

    def budgeted(self, budget: float) -> "Desk":
        """The desk with another budget, or the nearest that can be reached."""
        if not self.choices:
            return self
        least, most = self.limits
        budget = min(max(budget, least + _NEARLY), max(most, least) + _NEARLY)
        weights, extra = self._frame
        fixed = {name: self.bits[name] for name in self.chosen}
        bits = solve(self.choices, budget, weights, extra, fixed)
        return replace(self._changed(bits, self.chosen), budget=budget)

    def planned(self, plan: Plan) -> "Desk":
        """The desk with the bits of a plan.

        Raises:
            InputError: it is for another model, or for widths that the profile does not know.
        """
        if set(plan.bits) != set(self.choices):
            raise InputError("the plan has other matrices than the profile: open its own profile")
        for name, bits in plan.bits.items():
            if all(c.bits != bits for c in self.choices[name]):
                raise InputError(
                    f"the plan has {bits} bits for {name}, which the profile does not know: work"
                    " the widths out again"
                )
        made = self._changed(dict(plan.bits), frozenset())
        return replace(made, budget=made.totals.linear)

    def _changed(self, bits: Mapping[str, int], chosen: frozenset[str]) -> "Desk":
        made = replace(self, bits=bits, chosen=chosen)
        for name in ("operations", "choices", "_frame"):  # of the profile alone: not again
            vars(made)[name] = getattr(self, name)
        return made


def frontier(desk: Desk) -> list[tuple[float, float]]:
    """Bits a weight and expected loss of the best plans, from the fewest bits to the most.

    These are the plans for every price of a bit: each matrix begins at its fewest bits, and the
    steps along the lower convex hulls of all are taken in the order of what they save for a bit.
    """
    weights, size = desk._frame
    cost, total = 0.0, max(sum(weights.values()), 1)
    steps: list[tuple[float, float]] = []  # of size and cost
    for row in desk.choices.values():
        hull = _hull(row)
        size, cost = size + hull[0].size, cost + hull[0].cost
        steps += [(b.size - a.size, b.cost - a.cost) for a, b in pairwise(hull)]
    found = [(size / total, cost)] if desk.choices else []
    for more, saved in sorted(steps, key=lambda step: step[1] / step[0]):
        size, cost = size + more, cost + saved
        found.append((size / total, cost))
    return found


def _hull(row: Sequence[Choice]) -> list[Choice]:
    """The choices that are the best at some price of a bit, smallest first."""
    kept: list[Choice] = []
    for c in sorted(row, key=lambda c: (c.size, c.cost)):
        if kept and c.cost >= kept[-1].cost:
            continue
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) >= _slope(kept[-1], c):
            kept.pop()
        kept.append(c)
    return kept


def _slope(a: Choice, b: Choice) -> float:
    return (b.cost - a.cost) / (b.size - a.size)
