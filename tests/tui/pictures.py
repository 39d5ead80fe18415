"""SVG snapshots: pictures of the screens in ``tests/tui/snapshots``, compared to the last byte.

What would differ from run to run is left out or stands still: Rich's ids, blinking, animation,
messages that go away, rules for fonts. ``AFM_SNAPSHOTS=write`` writes them anew.
"""

import difflib
import html
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tests.bench.app_pictures import lean
from tests.tui.support import SNAPSHOTS, Wait, text_of

from rich.cells import cell_len
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, TextArea

THEMES = ("textual-dark", "textual-light")
MOST = 12
"""Lines that tell of other colours."""

_STYLE = re.compile(r"\.screen-(r\d+) { (.*?);? }")
_PART = re.compile(
    r'<rect fill="(?P<ground>#\w+)" x="(?P<rx>[\d.]+)" y="(?P<ry>[\d.]+)" width="(?P<w>[\d.]+)"'
    r'|<text class="screen-(?P<style>r\d+)" x="(?P<x>[\d.]+)" y="(?P<y>[\d.]+)"[^>]*>(?P<t>[^<]*)<'
)
_WIDTH, _HEIGHT = 12.2, 24.4  # of a cell in Rich's drawings


def drawing(app: App[Any]) -> str:
    """The screen as SVG, the same whenever it shows the same."""
    for table in app.screen.query(DataTable):  # it keeps rows as wide as they were once
        table.notify_style_update()
        table.refresh()
    svg = lean(app.export_screenshot(simplify=True))
    return re.sub(r"terminal-\d+", "screen", svg)


async def picture(pilot: Pilot[Any], name: str) -> None:
    """Compare the screen with ``snapshots/NAME-THEME-COLUMNSxROWS.svg``, once it is at rest."""
    app = pilot.app
    theme, size = app.theme.removeprefix("textual-"), app.size
    file = SNAPSHOTS / f"{name}-{theme}-{size.width}x{size.height}.svg"
    app.animation_level = "none"
    for widget in app.screen.query("Input, TextArea"):
        assert isinstance(widget, Input | TextArea)
        widget.cursor_blink = False
    app.clear_notifications()
    if os.environ.get("AFM_SNAPSHOTS") == "write":
        before, now = "", drawing(app)
        while before != now:
            await pilot.pause(1.0)
            before, now = now, drawing(app)
        file.write_text(now, encoding="utf-8")
        return
    assert file.is_file(), f"{file.name} is missing: write it with AFM_SNAPSHOTS=write"
    wanted, wait = file.read_text(encoding="utf-8"), Wait()
    while (shown := drawing(app)) != wanted and not wait.over:
        await pilot.pause(0.05)
        app.clear_notifications()  # of what came meanwhile
    assert shown == wanted, f"{file.name} differs\n" + "\n".join(differences(wanted, shown))


# ---- what differs


@dataclass(frozen=True)
class Cell:
    """A place of the screen; ``style`` is that of its character, which a blank has not."""

    text: str = " "
    style: str = ""
    ground: str = ""


def differences(wanted: str, shown: str) -> list[str]:
    """What is different in two drawings: their words; if those agree, their colours and styles."""
    before, after = text_of(wanted).splitlines(), text_of(shown).splitlines()
    if before != after:
        return list(difflib.unified_diff(before, after, "wanted", "shown", lineterm=""))
    told = list(_other_styles(_cells(wanted), _cells(shown)))
    if told:
        more = [f"… and {len(told) - MOST} more places"] if len(told) > MOST else []
        return told[:MOST] + more
    lines = difflib.unified_diff(wanted.splitlines(), shown.splitlines(), lineterm="", n=0)
    return [line[:200] for line in lines][:MOST]


def _cells(svg: str) -> dict[tuple[int, int], Cell]:
    """Cells of a drawing by row and column."""
    styles = {name: css.replace("fill: ", "") for name, css in _STYLE.findall(svg)}
    grounds: dict[tuple[int, int], str] = {}
    cells: dict[tuple[int, int], Cell] = {}
    for part in _PART.finditer(svg):
        if part["ground"]:
            row, column = round((float(part["ry"]) - 1.5) / _HEIGHT), float(part["rx"]) / _WIDTH
            for i in range(round(float(part["w"]) / _WIDTH)):
                grounds[row, round(column) + i] = part["ground"]
            continue
        row, at = round((float(part["y"]) - 20) / _HEIGHT), round(float(part["x"]) / _WIDTH)
        for character in html.unescape(part["t"]).replace("\xa0", " "):
            cells[row, at] = Cell(character, styles[part["style"]])
            at += cell_len(character)
    return {
        place: Cell(known.text, known.style, grounds.get(place, ""))
        for place in grounds.keys() | cells.keys()
        for known in [cells.get(place, Cell())]
    }


def _other_styles(
    wanted: dict[tuple[int, int], Cell], shown: dict[tuple[int, int], Cell]
) -> Iterator[str]:
    def change(place: tuple[int, int]) -> tuple[int, str]:
        row, _ = place
        a, b = wanted.get(place, Cell()), shown.get(place, Cell())
        parts = [
            f"{name} {x or 'none'} → {y or 'none'}"
            for name, x, y in (("text", a.style, b.style), ("ground", a.ground, b.ground))
            if x != y
        ]
        return row, ", ".join(parts)

    places = sorted(wanted.keys() | shown.keys())
    for (row, how), run in groupby(places, change):
        if how:
            found = list(run)
            text = "".join(wanted.get(place, Cell()).text for place in found).strip()
            yield f"row {row + 1}, column {found[0][1] + 1}, {text!r}: {how}"
