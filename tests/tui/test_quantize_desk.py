"""The quantize screen's desk, rows and files, without the screen."""

from dataclasses import replace
from pathlib import Path

from afm_mlx.errors import InputError
from afm_mlx.quant import plan as plan_files
from afm_mlx.quant import profile as profile_files
from afm_mlx.quant.plan import Plan, solve
from afm_mlx.quant.profile import Profile
from afm_mlx.tui.quantize import plans, rows
from afm_mlx.tui.quantize.desk import Desk, frontier
from tests.tui.profiles import UP

import pytest


def test_budget_is_the_packages_own_plan(found: Profile) -> None:
    desk = Desk.of(found, 3.0)
    weights = {o.name: o.parameters for o in found.operations if o.kind == "linear"}
    assert desk.bits == solve(desk.choices, 3.0, weights)
    assert desk.totals == found.what_if(desk.bits)
    assert desk.totals.linear <= 3.0 + 1e-9


def test_a_row_changes_and_the_rest_stays(found: Profile) -> None:
    desk = Desk.of(found, 3.0)
    wider = desk.stepped(UP, 1)
    assert {n for n in desk.bits if desk.bits[n] != wider.bits[n]} == {UP}
    assert wider.bits[UP] == desk.bits[UP] + 1 and wider.chosen == {UP}
    most = wider.stepped(UP, 5)
    assert most.bits[UP] == 4
    assert desk.bits[UP] != 4  # the desk before is as it was
    assert most.totals == found.what_if(most.bits)


def test_what_a_person_chose_stays_with_another_budget(found: Profile) -> None:
    desk = Desk.of(found, 3.0).stepped(UP, 5).budgeted(2.3)
    assert desk.bits[UP] == 4
    assert desk.totals.linear <= 2.3 + 1e-9
    freed = desk.released(UP)
    assert freed.bits == Desk.of(found, 2.3).bits and not freed.chosen


@pytest.mark.parametrize("budget", [-1.0, 0.5, 99.0])
def test_budgets_out_of_reach_give_the_nearest(budget: float, found: Profile) -> None:
    desk = Desk.of(found, budget)
    assert set(desk.bits.values()) == {4 if budget > 4 else 2}
    assert desk.limits[0] - 1e-5 <= desk.budget <= desk.limits[1] + 1e-5


def test_with_all_rows_chosen_any_budget_is_out_of_reach(found: Profile) -> None:
    """Limits that counted chosen rows as free raised an error from the solver."""
    desk = Desk.of(found)
    for name in desk.bits:
        desk = desk.stepped(name, 1)
    assert desk.budgeted(2.0).bits == desk.bits


def test_plans_come_back(found: Profile) -> None:
    desk = Desk.of(found, 2.7)
    again = Desk.of(found).planned(plans.make(desk, "s"))
    assert again.bits == desk.bits and not again.chosen
    other = Plan("s", {"model.layers.9.x": 2}, 16)
    with pytest.raises(InputError, match="other matrices"):
        desk.planned(other)
    with pytest.raises(InputError, match="does not know"):
        desk.planned(Plan("s", {**desk.bits, UP: 6}, 16))


def test_without_widths_nothing_changes(bare: Profile) -> None:
    desk = Desk.of(bare)
    assert desk.budgeted(2.0).totals == bare.totals
    assert desk.size == bare.totals.size
    assert frontier(desk) == []
    with pytest.raises(InputError, match="p works out"):
        desk.stepped(UP, 1)
    with pytest.raises(InputError, match="p works"):
        plans.make(desk, "s")


def test_frontier_is_what_the_solver_finds(found: Profile) -> None:
    """Its points are plans for some price, so the solver finds each at its size."""
    desk = Desk.of(found)
    curve = frontier(desk)
    bits, costs = zip(*curve, strict=True)
    assert list(bits) == sorted(bits) and list(costs) == sorted(costs, reverse=True)
    assert (bits[0], bits[-1]) == pytest.approx(desk.limits)
    for target, cost in curve[:: len(curve) // 6]:
        totals = desk.budgeted(target + 1e-7).totals
        assert totals.cost == pytest.approx(cost, rel=1e-6)


def test_frontier_leaves_out_what_is_never_best(found: Profile) -> None:
    row = found.operations[[o.name for o in found.operations].index(UP)]
    first, second, third = row.options
    bad = replace(row, options=(first, replace(second, cost=first.cost * 2), third))
    one = replace(found, operations=(bad,))
    assert len(frontier(Desk.of(one))) == 2


def test_rows_are_sorted_and_filtered(found: Profile) -> None:
    every = rows.lines(Desk.of(found))
    assert [x.number for x in rows.arranged(every, "name")] == list(range(len(every)))
    sizes = [x.size for x in rows.arranged(every, "size")]
    assert sizes == sorted(sizes, reverse=True)
    for order in rows.ORDERS:
        assert len(rows.arranged(every, order)) == len(every)
    words = [x.name for x in rows.arranged(every, "name", "LAYERS.1 proj")]
    assert len(words) == 7 and all("layers.1." in name for name in words)
    assert {x.kind for x in rows.arranged(every, "time", "norm")} == {"norm"}


def test_cells(found: Profile) -> None:
    desk = Desk.of(found, 3.0).stepped(UP, 5)
    known = {x.name: x for x in rows.lines(desk)}
    up, norm = rows.cells(known[UP], 1.0), rows.cells(known["model.norm"], 1.0)
    assert (up["name"], up["bits"], up["time"][0]) == ("0.up_proj", "◂4 •", "~")
    assert (norm["bits"], norm["cost"], norm["sensitivity"]) == (" 16  ", "", "")
    two = rows.cells(known[UP].__class__(**{**vars(known[UP]), "bits": 3, "wider": True}), 1.0)
    assert two["bits"] == "◂3▸•"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.5, "1234"), (12.34, "12.3"), (1.2345, "1.2"), (0.5, "0.50"), (1e-5, "0.000")],
)
def test_numbers(value: float, text: str) -> None:
    assert rows.number(value) == text


def test_bars_and_signs() -> None:
    assert [rows.bar(x, 1.0) for x in (1.0, 0.1, 1e-9, 0, None)] == ["█" * 6, "█" * 4, "█", "", ""]
    assert rows.signed(-1.5, "MB") == "−1.5 MB" and rows.signed(2, "µs") == "+2.0 µs"
    assert rows.share(50, 100) == "−50 %" and rows.share(1, 0) == ""


def test_what_if_of_a_row_is_that_of_the_profile(found: Profile) -> None:
    desk = Desk.of(found, 3.0)
    option = desk.option(UP)
    assert option is not None
    said = rows.what_if(desk, UP)
    assert [x.partition(" ")[0] for x in said] == [
        f"{option.bits}→{b}" for b in (2, 3, 4) if b != option.bits
    ]
    then = found.what_if({**desk.bits, UP: 4})
    if option.bits != 4:
        assert rows.signed((then.size - desk.totals.size) / 1e6, "MB") in said[-1]
    assert rows.what_if(desk, "model.norm") == []


def test_slider_stays_within_its_room(found: Profile) -> None:
    for budget in (2.2, 3.0, 4.0):
        text = rows.slider(Desk.of(found, budget), 40)
        assert len(text) == 38 and text.count("●") == 1


def test_plans_and_profiles_are_kept(found: Profile, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "plans"
    made = plans.make(Desk.of(found), "signature")
    plans.save(made, plans.plan_file(folder, "mine-3.5"))
    assert plans.saved(folder) == ["mine-3.5"]
    assert plan_files.read(folder / "mine-3.5.toml") == made
    for bad in ("", "a/b", ".hidden", ".."):
        with pytest.raises(InputError, match="no name"):
            plans.plan_file(folder, bad)
    file = plans.profile_file(tmp_path / "profiles", "owner/name of it")
    plans.keep(found, file)
    assert file.name == "owner-name-of-it.json" and profile_files.read(file) == found


def test_only_models_with_a_plan_are_replaced(tmp_path: Path) -> None:
    """A folder of a person's own, typed by mistake, would have been deleted."""
    assert not plans.replaceable(tmp_path / "new")
    with pytest.raises(InputError, match="no model with a plan"):
        plans.replaceable(tmp_path)
    for name in ("plan.toml", "config.json"):
        (tmp_path / name).write_text("", "utf-8")
    assert plans.replaceable(tmp_path)
