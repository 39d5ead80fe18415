"""docs/TOUR.md against the app: its table of keys, and the keys that its steps name.

``AFM_SNAPSHOTS=write`` writes the table anew.
"""

import importlib
import os
import pkgutil
import re
from collections.abc import Iterator

from afm_mlx import tui
from afm_mlx.tui.app import AfmApp, screen_class
from afm_mlx.tui.help import Section
from afm_mlx.tui.screen import SCREENS
from afm_mlx.tui.writing.files import PathInput
from afm_mlx.tui.writing.sheet import Sheet
from tests.tui.made import ROOT
from tests.tui.support import fake_services

import pytest
from textual.dom import DOMNode
from textual.screen import ModalScreen

TOUR = ROOT / "docs" / "TOUR.md"
HEAD = "| key | what it does |\n|---|---|\n"
ELSEWHERE = (Sheet, PathInput)
"""Their keys are said otherwise: those of all screens, and in the dialog itself."""


@pytest.fixture
def sections() -> list[Section]:
    """What the app's own help shows."""
    services = fake_services()
    try:
        return list(AfmApp(services)._sections())
    finally:
        services.engine.close()


def tables(sections: list[Section]) -> Iterator[str]:
    for title, keys in sections:
        rows = (f"| `{key.replace(' ', '` `')}` | {about} |\n" for key, about in keys)
        yield f"### {title}\n\n{HEAD}{''.join(rows)}"


def test_every_key_is_in_the_table(sections: list[Section]) -> None:
    text = TOUR.read_text("utf-8")
    begin = text.partition("### ")[0]
    wanted = begin + "\n".join(tables(sections))
    if os.environ.get("AFM_SNAPSHOTS") == "write":
        TOUR.write_text(wanted, "utf-8")
    assert TOUR.read_text("utf-8") == wanted, "write the table anew with AFM_SNAPSHOTS=write"


def test_the_steps_name_keys_that_there_are(sections: list[Section]) -> None:
    """A step told of a key that had become another one's."""
    known = {key for _, keys in sections for shown, _ in keys for key in shown.split(" ")}
    steps = TOUR.read_text("utf-8").partition("## Every key")[0]
    named = re.findall(r"\*\*(\S+)\*\*", steps)
    assert len(named) > 30
    assert {key.lower() for key in named} - {"wait."} <= known


def test_the_help_leaves_out_no_widget() -> None:
    """The palette's own key was not in it."""
    shown: set[type[DOMNode]] = {AfmApp}
    for mode in SCREENS:
        screen = screen_class(mode)
        shown |= {screen, *screen.KEYS}
    for module in pkgutil.walk_packages(tui.__path__, tui.__name__ + "."):
        for found in vars(importlib.import_module(module.name)).values():
            if isinstance(found, type) and issubclass(found, DOMNode) and "BINDINGS" in vars(found):
                own = found.__module__.startswith(tui.__name__) and vars(found)["BINDINGS"]
                if own and not issubclass(found, (ModalScreen, *ELSEWHERE)):
                    assert found in shown, f"the keys of {found.__name__} are in no help"
