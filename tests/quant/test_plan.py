"""Plans against every possible assignment."""

import itertools
from pathlib import Path

from afm_mlx.errors import InputError
from afm_mlx.quant import plan
from afm_mlx.quant.plan import Choice, Plan, solve

import numpy as np
import pytest


def some_choices(n: int, seed: int = 0) -> dict[str, tuple[Choice, ...]]:
    rng = np.random.default_rng(seed)
    found = {}
    for i in range(n):
        costs = np.sort(rng.exponential(size=3))[::-1] * rng.exponential()
        size = int(rng.integers(1, 5)) * 100
        found[f"m{i}"] = tuple(
            Choice(b, b * size, float(c)) for b, c in zip((2, 3, 4), costs, strict=True)
        )
    return found


def weights(choices: dict[str, tuple[Choice, ...]]) -> dict[str, int]:
    return {name: round(row[0].size / row[0].bits) for name, row in choices.items()}


def total(choices: dict[str, tuple[Choice, ...]], bits: dict[str, int]) -> tuple[float, float]:
    taken = [next(c for c in row if c.bits == bits[n]) for n, row in choices.items()]
    return sum(c.size for c in taken), sum(c.cost for c in taken)


@pytest.mark.parametrize("seed", range(8))
def test_close_to_the_best_of_all_assignments(seed: int) -> None:
    choices = some_choices(7, seed)
    sizes = weights(choices)
    budget = 3.1 * sum(sizes.values())
    size, cost = total(choices, solve(choices, 3.1, sizes))
    assert size <= budget * (1 + 1e-9)
    every = itertools.product((2, 3, 4), repeat=7)
    all_of_them = (total(choices, dict(zip(choices, bits, strict=True))) for bits in every)
    best = min(c for s, c in all_of_them if s <= budget)
    # The price gives the convex hull; what lies between its corners is filled greedily.
    assert cost <= best + max(c.cost for row in choices.values() for c in row) * 0.5
    assert cost <= 1.35 * best


def test_hundreds_of_matrices_come_within_a_thousandth_of_the_target() -> None:
    choices = some_choices(210)
    sizes = weights(choices)
    size, _ = total(choices, solve(choices, 3.5, sizes))
    assert 3.499 * sum(sizes.values()) <= size <= 3.5 * sum(sizes.values()) * (1 + 1e-9)


def test_fixed_widths_stay() -> None:
    choices = some_choices(6)
    bits = solve(choices, 3.0, weights(choices), fixed={"m2": 4, "m3": 2})
    assert (bits["m2"], bits["m3"]) == (4, 2)
    with pytest.raises(InputError, match="m1 is offered with 2, 3, 4 bits, not with 6"):
        solve(choices, 3.0, weights(choices), fixed={"m1": 6})


def test_more_room_never_costs_more() -> None:
    choices = some_choices(40)
    costs = [
        total(choices, solve(choices, t, weights(choices)))[1] for t in (2.0, 2.5, 3.0, 3.5, 4.0)
    ]
    assert costs == sorted(costs, reverse=True)


def test_unreachable_target() -> None:
    choices = some_choices(3)
    with pytest.raises(InputError, match=r"1.5 bits a weight cannot be reached.*take 2.00"):
        solve(choices, 1.5, weights(choices))


def test_overheads_count() -> None:
    choices = some_choices(20)
    sizes = weights(choices) | {"embedding": 5000}
    spent = 8.0 * 5000
    size, _ = total(choices, solve(choices, 6.0, sizes, extra=spent))
    assert size + spent <= 6.0 * sum(sizes.values()) * (1 + 1e-9)


def test_a_person_can_edit_the_file(tmp_path: Path) -> None:
    made = Plan("abc", {"model.layers.0.mlp.up_proj": 3, "model.layers.0.mlp.down_proj": 4}, 16)
    path = tmp_path / "plan.toml"
    path.write_text(plan.to_text(made), encoding="utf-8")
    assert plan.read(path) == made
    path.write_text(path.read_text("utf-8").replace('up_proj" = 3', 'up_proj" = 2'), "utf-8")
    assert plan.read(path).bits["model.layers.0.mlp.up_proj"] == 2


@pytest.mark.parametrize(
    "text", ["", "bits = 3", 'base = "a"\nform = "odd"\ngroup_size = 1\n[bits]', "[bits", "\x00"]
)
def test_files_that_are_no_plan(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="is no plan"):
        plan.read(path)
