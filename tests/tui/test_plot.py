"""Plots in characters: against pictures drawn by hand, at their edges, and on the screen."""

import math
from typing import Any

from afm_mlx.tui.braille import MARKERS, NOTHING, Picture, Series, draw, nice_ticks, picture
from afm_mlx.tui.plot import Plot
from tests.tui.support import in_app, until

import pytest
from textual.app import App, ComposeResult
from textual.pilot import Pilot

NAN, INFINITE = math.nan, math.inf


def lines(drawn: list[str]) -> str:
    """The plot without the blanks at the ends."""
    return "\n".join(line.rstrip() for line in drawn)


def by_hand(text: str) -> str:
    """A picture of a docstring, whose left edge is ``|``."""
    return "\n".join(line.strip()[1:] for line in text.strip().splitlines())


# ---- pictures


def test_a_line_without_axes() -> None:
    """Two columns and a row are four by four dots: the diagonal is one of each."""
    assert draw([Series("", [(0, 0), (3, 3)])], 2, 1) == ["⡠⠊"]
    assert draw([Series("", [(0, 3), (3, 0)])], 2, 1) == ["⠑⢄"]
    assert draw([Series("", [(0, 1), (1, 1)])], 2, 1) == ["⠒⠒"]


def test_a_falling_line_with_axes() -> None:
    drawn = draw([Series("train", [(0, 4), (9, 0)])], 26, 7, x="step", y="loss")
    assert lines(drawn) == by_hand("""
        |loss   ⠤⠤ train
        |4 ┤⠉⠒⠢⠤⣀⡀
        |2 ┤     ⠈⠉⠒⠢⠤⣀⡀
        |  │           ⠈⠉⠒⠢⠤⣀⡀
        |0 ┤                 ⠈⠉⠒⠢⠤⣀
        |  └┬───────────┬───── step
        |   0           5
    """)


def test_two_series_and_their_markers() -> None:
    one = Series("train", [(0, 0), (8, 8)])
    two = Series("held-out", [(0, 8), (4, 4), (8, 8)])
    drawn = draw([one, two], 30, 8)
    assert lines(drawn) == by_hand("""
        |⠤⠤ train   ● held-out
        |  │●⠒⠢⠤⣀⡀               ⢀⣀⡤⠔⠒●
        |5 ┤     ⠈⠉⠒⠤⢄⣀    ⢀⣀⡤⠴⠒⠋⠉
        |  │          ⢀⣉⠵●⠛⠉⠁
        |  │     ⣀⡠⠤⠒⠊⠁
        |0 ┤⣀⠤⠔⠊⠉
        |  └┬───────────────┬──────────
        |   0               5
    """)


def test_a_logarithmic_scale() -> None:
    """Each decade is as high as the next; a straight line of what falls tenfold."""
    falling = [(x, 10.0**-x) for x in range(5)]
    plain, log = (draw([Series("", falling)], 40, 13, on, y="loss") for on in (False, True))
    assert log[0].startswith("loss, log") and plain[0].startswith("loss ")
    labels = [line.partition("┤")[0].strip() for line in log if "┤" in line]
    assert labels == ["1", "0.1", "0.01", "0.001", "0.0001"]
    rows = log[1:11]
    heights = [next(i for i, row in enumerate(rows) if row[c] != " ") for c in range(8, 40)]
    assert heights == sorted(heights) and heights[-1] - heights[0] == 9


# ---- what is no plain series


@pytest.mark.parametrize(
    "points",
    [[], [(NAN, 1.0)], [(1.0, NAN)], [(0.0, INFINITE), (1.0, -INFINITE)]],
)
def test_nothing_to_show(points: list[tuple[float, float]]) -> None:
    drawn = draw([Series("train", points)], 40, 8)
    assert NOTHING in drawn[4] and len(drawn) == 8
    assert {len(line) for line in drawn} == {40}


def test_one_point_is_seen() -> None:
    # A lone dot of a line without markers would not be, and a scale of no height divides by 0.
    drawn = draw([Series("train", [(3, 2.5)])], 40, 9)
    assert sum(line.count("•") for line in drawn) == 1
    log = draw([Series("train", [(3, 2.5)])], 40, 9, log=True)
    assert sum(line.count("•") for line in log) == 1


def test_what_is_no_number_breaks_the_line() -> None:
    whole = draw([Series("", [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)])], 20, 2)
    broken = draw([Series("", [(0, 1), (1, 1), (2, NAN), (3, 1), (4, 1)])], 20, 2)
    assert whole[0].count(" ") == 0
    assert broken[0][:5].count(" ") == 0 and broken[0][-5:].count(" ") == 0
    assert broken[0][7:13].strip() == ""


def test_what_has_no_logarithm_is_left_out() -> None:
    drawn = draw([Series("", [(0, 0), (1, 1), (2, -3), (3, 10)])], 30, 8, log=True)
    assert any("10 ┤" in line for line in drawn)
    assert NOTHING in "".join(draw([Series("", [(0, 0), (1, -1)])], 30, 8, log=True))


def test_scattered_points_are_not_joined() -> None:
    joined = draw([Series("", [(0, 0), (9, 9)])], 10, 4)
    apart = draw([Series("", [(0, 0), (9, 9)], joined=False)], 10, 4)
    assert sum(c != " " for line in joined for c in line) >= 10
    assert sum(c != " " for line in apart for c in line) == 2


@pytest.mark.parametrize("width, height", [(0, 0), (1, 1), (5, 3), (23, 4), (24, 5), (300, 60)])
def test_any_size_is_kept(width: int, height: int) -> None:
    """A window may have any size while it is being drawn larger or smaller."""
    series = [Series(f"series {i}", [(x, math.sin(x + i)) for x in range(30)]) for i in range(12)]
    for log in (False, True):
        drawn = draw(series, width, height, log, "step", "a long name of an axis")
        assert len(drawn) == height and all(len(line) == width for line in drawn)


def test_many_points_keep_their_extremes() -> None:
    # Thinned by leaving out every other point, an outlier would be lost.
    values = [1.0] * 20_000
    values[12_345] = 9.0
    drawn = draw([Series("loss", list(enumerate(values)))], 60, 12)
    spike = [line for line in drawn[1:4] if any(0x2800 < ord(c) < 0x2900 for c in line)]
    assert spike


def test_series_can_be_told_apart_without_colours() -> None:
    names = ["train", "held-out", "test", "other"]
    many = [Series(n, [(0, i), (1, i)]) for i, n in enumerate(names)]
    drawn = draw(many, 70, 12)
    for name, marker in zip(names[1:], MARKERS[1:], strict=False):
        assert f"{marker} {name}" in drawn[0]
        assert any(marker in line for line in drawn[1:])
    owners = {owner for row in picture(many, 70, 12).owners for owner in row}
    assert owners == {-1, 0, 1, 2, 3}


def test_runs_are_the_whole_row() -> None:
    made = Picture(6, 1)
    made.write(0, 2, "ab", 1)
    made.write(0, 5, "xyz", 0)  # beyond the edge
    assert list(made.runs(0)) == [("  ", -1), ("ab", 1), (" ", -1), ("x", 0)]


# ---- ticks


@pytest.mark.parametrize(
    "low, high, most, whole, labels",
    [
        (0, 10, 5, False, ["0", "5", "10"]),
        (0, 4, 5, False, ["0", "1", "2", "3", "4"]),
        (0.2, 0.9, 4, False, ["0.2", "0.4", "0.6", "0.8"]),
        (0, 3, 8, True, ["0", "1", "2", "3"]),
        (0, 50_000, 3, True, ["0", "20k", "40k"]),
        (1e6, 5e6, 4, True, ["2M", "4M"]),
        (2.300001, 2.300002, 3, False, ["2.3000010", "2.3000015", "2.3000020"]),
        (-1, 1, 3, False, ["-1", "0", "1"]),
    ],
)
def test_round_numbers(low: float, high: float, most: int, whole: bool, labels: list[str]) -> None:
    found = nice_ticks(low, high, most, whole)
    assert [label for label, _ in found] == labels
    assert len(found) <= most and all(low - 1e-9 <= v <= high + 1e-9 for _, v in found)


# ---- the widget


class Shown(App[None]):
    def compose(self) -> ComposeResult:
        yield Plot("step", "loss", id="plot")


def test_many_changes_are_drawn_together() -> None:
    # A trainer of thousands of steps a second would otherwise keep the app busy with drawing.
    async def test(pilot: Pilot[Any]) -> None:
        plot = pilot.app.query_one(Plot)
        for n in range(500):
            plot.show([Series("train", [(x, float(x)) for x in range(n)])])
        await until(pilot, lambda: plot.drawings)
        assert plot.drawings == 1 and len(plot.series[0].points) == 499
        assert "499" not in str(plot.render()) and "⠤⠤ train" in plot.render().plain
        plot.show([])
        plot.show([])
        await until(pilot, lambda: plot.drawings == 2)
        assert NOTHING in plot.render().plain

    in_app(Shown(), test, (60, 20))


def test_the_scale_can_be_switched() -> None:
    async def test(pilot: Pilot[Any]) -> None:
        plot = pilot.app.query_one(Plot)
        plot.show([Series("train", [(1, 1.0), (2, 100.0)])])
        await until(pilot, lambda: plot.drawings)
        assert "log" not in plot.render().plain
        plot.logarithmic = True
        assert "loss, log" in plot.render().plain
        assert {span.style for span in plot.render().spans}, "series have colours too"

    in_app(Shown(), test, (60, 20))
