"""Line plots in characters: two by four dots of Unicode's braille patterns in each cell.

    print("\\n".join(draw([Series("loss", [(1, 4.2), (2, 3.1)])], 60, 12, x="step")))

Series are told apart by their markers, which the legend shows; colours may come on top.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

MARKERS = ("", "●", "▲", "■", "◆", "○", "△", "□", "◇")
"""What the first series, the second and so on has at its points; the first is the bare line."""
LINE = "⠤⠤"
"""The bare line in the legend."""
SMALLEST = 24, 5
"""Columns and rows below which there are no axes, only the lines."""
GAP = 3
"""Columns between two markers of a series at least."""
MOST = 2000
"""Points of a series that are drawn, so that a plot of any length takes some milliseconds."""
NOTHING = "nothing to show yet"

_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BLANK = 0x2800

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Points with a name; those that are no finite numbers break the line.

    Attributes:
        joined: whether there is a line from each to the next.
    """

    name: str
    points: Sequence[Point]
    joined: bool = True


@dataclass
class Picture:
    """Characters of a plot by rows, and which series each belongs to; -1 is none."""

    width: int
    height: int
    characters: list[list[str]] = field(init=False)
    owners: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.characters = [[" "] * self.width for _ in range(self.height)]
        self.owners = [[-1] * self.width for _ in range(self.height)]

    def write(self, row: int, column: int, text: str, owner: int = -1) -> None:
        """Put ``text`` there, as far as there is room."""
        for place, character in enumerate(text, column):
            if 0 <= place < self.width and 0 <= row < self.height:
                self.characters[row][place] = character
                self.owners[row][place] = owner

    @property
    def lines(self) -> list[str]:
        return ["".join(row) for row in self.characters]

    def runs(self, row: int) -> Iterator[tuple[str, int]]:
        """The text of a row in pieces of one owner each."""
        both = zip(self.characters[row], self.owners[row], strict=True)
        for owner, piece in groupby(both, key=lambda cell: cell[1]):
            yield "".join(character for character, _ in piece), owner


@dataclass(frozen=True)
class _Scale:
    """Numbers to places on an axis of so many dots, from 0."""

    low: float
    high: float
    dots: int
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], dots: int, log: bool = False) -> "_Scale":
        found = list(values)
        low, high = min(found), max(found)
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 1, high + 1)
        return cls(low, high, dots, log)

    def __call__(self, value: float) -> int:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return round((value - low) / (high - low) * (self.dots - 1))


def draw(
    series: Sequence[Series], width: int, height: int, log: bool = False, x: str = "", y: str = ""
) -> list[str]:
    """A plot as ``height`` lines of ``width`` characters.

    Args:
        log: a logarithmic scale upwards; what is not above 0 is left out then.
        x, y: what the axes are.
    """
    return picture(series, width, height, log, x, y).lines


def picture(
    series: Sequence[Series], width: int, height: int, log: bool = False, x: str = "", y: str = ""
) -> Picture:
    """The plot of :func:`draw`, with the series that each character belongs to."""
    made = Picture(max(width, 0), max(height, 0))
    runs = [_runs(s.points, log) for s in series]
    points = [point for of_one in runs for run in of_one for point in run]
    if not points:
        made.write(made.height // 2, max((made.width - len(NOTHING)) // 2, 0), NOTHING)
        return made
    if width < SMALLEST[0] or height < SMALLEST[1]:
        _lines(made, series, runs, _Frame.over(points, 0, 0, width, height, log))
        return made
    rows = height - 3
    upward = _Scale.over((y for _, y in points), rows * 4, log)
    ticks = _upward_ticks(upward, rows)
    left = max(len(label) for label, _ in ticks) + 1
    frame = _Frame.over(points, left + 1, 1, width - left - 1, rows, log)
    _legend(made, series, f"{y}, log" if log else y)
    for row in range(rows):
        made.write(1 + row, left, "│")
    for label, value in ticks:
        row = 1 + (rows * 4 - 1 - frame.upward(value)) // 4
        made.write(row, left - 1 - len(label), f"{label} ┤")
    made.write(1 + rows, left, "└" + "─" * (width - left - 1))
    _along_ticks(made, frame, points)
    made.write(1 + rows, width - len(x) - 1, f" {x}" if x else "")
    _lines(made, series, runs, frame)
    return made


@dataclass(frozen=True)
class _Frame:
    """Where the lines go: its corner, and the scales in dots."""

    left: int
    top: int
    along: _Scale
    upward: _Scale

    @classmethod
    def over(
        cls, points: Sequence[Point], left: int, top: int, columns: int, rows: int, log: bool
    ) -> "_Frame":
        return cls(
            left,
            top,
            _Scale.over((x for x, _ in points), max(columns, 1) * 2),
            _Scale.over((y for _, y in points), max(rows, 1) * 4, log),
        )

    def dot(self, point: Point) -> tuple[int, int]:
        """Column and row of a point in dots, from the top left."""
        return self.along(point[0]), self.upward.dots - 1 - self.upward(point[1])


def _runs(points: Sequence[Point], log: bool) -> list[list[Point]]:
    """Points from left to right, in runs without a gap."""

    def shown(point: Point) -> bool:
        return all(map(math.isfinite, point)) and (not log or point[1] > 0)

    ordered = sorted((p for p in _fewer(points) if not math.isnan(p[0])), key=lambda p: p[0])
    return [list(run) for kept, run in groupby(ordered, key=shown) if kept]


def _fewer(points: Sequence[Point]) -> Sequence[Point]:
    """Lowest and highest of each stretch where there are too many to draw all of them at once."""
    if len(points) <= MOST:
        return points
    size = math.ceil(2 * len(points) / MOST)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        numbers = [p for p in stretch if p[1] == p[1]] or stretch[:1]
        kept += {min(numbers, key=_height): None, max(numbers, key=_height): None}
    return kept


def _height(point: Point) -> float:
    return point[1]


def _lines(
    made: Picture, series: Sequence[Series], runs: Sequence[list[list[Point]]], frame: _Frame
) -> None:
    dots: dict[tuple[int, int], int] = {}
    owners: dict[tuple[int, int], int] = {}
    for number in reversed(range(len(series))):  # the first one lies on top
        for run in runs[number]:
            places = _thinned([frame.dot(point) for point in run])
            for x, y in _joined(places) if series[number].joined else places:
                cell = frame.top + y // 4, frame.left + x // 2
                dots[cell] = dots.get(cell, 0) | _BITS[x % 2][y % 4]
                owners[cell] = number
    for (row, column), bits in dots.items():
        made.write(row, column, chr(_BLANK | bits), owners[row, column])
    for number, of_one in enumerate(runs):
        _stamp(made, number, [frame.dot(p) for run in of_one for p in run], frame)


def _stamp(made: Picture, number: int, places: Sequence[tuple[int, int]], frame: _Frame) -> None:
    """Put a series' marker on its points, on the last one and on as many as there is room for.

    A point alone has one even where the line has none: a dot would not be seen.
    """
    marker = MARKERS[number % len(MARKERS)] or ("•" if len(places) == 1 else "")
    taken = math.inf
    for x, y in reversed(places) if marker else ():
        if x // 2 <= taken - GAP:
            taken = x // 2
            made.write(frame.top + y // 4, frame.left + x // 2, marker, number)


def _thinned(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """First, highest, lowest and last of the dots in each column: more cannot be seen."""
    kept: list[tuple[int, int]] = []
    for _, column in groupby(places, key=lambda place: place[0]):
        dots = list(column)
        kept += dict.fromkeys((dots[0], min(dots), max(dots), dots[-1]))
    return kept


def _joined(places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """All dots on the way from each place to the next."""
    yield from places[:1]
    for (x0, y0), (x1, y1) in zip(places, places[1:], strict=False):
        steps = max(abs(x1 - x0), abs(y1 - y0))
        for i in range(1, steps + 1):
            yield x0 + round((x1 - x0) * i / steps), y0 + round((y1 - y0) * i / steps)


# ---- axes


def _legend(made: Picture, series: Sequence[Series], title: str) -> None:
    """The title, and each series with its marker where there are several."""
    made.write(0, 0, title)
    place = len(title) + 3 if title else 0
    for number, one in enumerate(series):
        sign = MARKERS[number % len(MARKERS)] or LINE
        entry = f"{sign} {one.name}"
        if one.name and place + len(entry) <= made.width:
            made.write(0, place, entry, number)
            place += len(entry) + 3


def _upward_ticks(scale: _Scale, rows: int) -> list[tuple[str, float]]:
    """Labels and values on the axis upwards, no two of them in one row."""
    most = max(rows // 2, min(rows, 3))
    if scale.log:
        powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
        for factors in ((1, 2, 5), (1, 3), (1,)):
            values = [f * 10.0**p for p in powers for f in factors]
            found = [v for v in values if scale.low <= v <= scale.high]
            if 2 <= len(found) <= most:
                return [(_short(v), v) for v in found]
        if len(found) > most:
            stride = math.ceil(len(found) / most)
            return [(_short(v), v) for v in found[::stride]]
    ticks = nice_ticks(scale.low, scale.high, most)
    if len(ticks) > 1:
        return ticks
    return [(_short(float(f"{v:.2g}")), v) for v in (scale.low, scale.high)]


def _along_ticks(made: Picture, frame: _Frame, points: Sequence[Point]) -> None:
    columns = frame.along.dots // 2
    whole = all(float(x).is_integer() for x, _ in points)
    free = 0
    for label, value in nice_ticks(frame.along.low, frame.along.high, max(columns // 10, 2), whole):
        column = frame.left + frame.along(value) // 2
        start = min(column - len(label) // 2, made.width - len(label))
        if start >= free:
            made.write(made.height - 2, column, "┬")
            made.write(made.height - 1, start, label)
            free = start + len(label) + 1


def nice_ticks(low: float, high: float, most: int, whole: bool = False) -> list[tuple[str, float]]:
    """At most ``most`` round numbers from ``low`` to ``high``, evenly spaced, with their labels.

    Args:
        whole: integers only.
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10, 20) if _count(low, high, f * power) <= most)
    step = max(step, 1.0) if whole else step
    first = math.ceil(low / step - 1e-9)
    values = [(first + i) * step for i in range(_count(low, high, step))]
    digits = max(-math.floor(math.log10(step) + 1e-9), 0)
    return [(_short(v) if abs(v) >= 1e4 else f"{v:.{digits}f}", v) for v in values]


def _count(low: float, high: float, step: float) -> int:
    return math.floor(high / step + 1e-9) - math.ceil(low / step - 1e-9) + 1


def _short(value: float) -> str:
    """A number in few characters: 0.25, 12, 3.4k, 1.2M."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 10.0 ** (3 * ' kMG'.index(sign))):.4g}{sign}"
    return f"{value:.4g}"
