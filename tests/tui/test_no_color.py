"""The app without colours (``NO_COLOR``): marks and words tell all that colours tell."""

import re
from functools import partial
from pathlib import Path

from afm_mlx.features import FEATURES
from afm_mlx.tui.app import AfmApp, screen_class
from afm_mlx.tui.screen import SCREENS
from tests.tui.inbox_screen import inbox, reading, script
from tests.tui.pictures import drawing
from tests.tui.support import in_app, screen_text, until

import pytest
from textual.pilot import Pilot
from textual.widgets import Button, TextArea

WANTED = {
    "notifications": ("▸F1", "✦ Ottoline moved the saw", "! urgent", "✓ names"),
    "writing": ("▸F2", "-their-+they're+", "1/"),
    "adapters": ("▸F3", "●", "(automatic)"),
    "quantize": ("▸F4", "No profile is open"),
    "distill": ("▸F5",),
}
FRAME = re.compile(r"<circle[^>]*>")
"""The buttons of the window that Rich draws around a screen."""


def colours(svg: str) -> set[str]:
    """Those of a drawing that are no grey."""
    found = set(re.findall(r"#([0-9a-f]{6})\b", FRAME.sub("", svg)))
    # Rich's own foreground, in which it draws the title and blanks, is a hair beside grey.
    return {c for c in found - {"c5c8c6"} if not c[:2] == c[2:4] == c[4:]}


@pytest.mark.parametrize("without", [True, False])
@pytest.mark.parametrize("theme", ["textual-dark", "textual-light"])
def test_all_screens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theme: str, without: bool
) -> None:
    if without:
        monkeypatch.setenv("NO_COLOR", "1")
    summaries = script()

    def answer(prompt: str) -> str:
        proofread = FEATURES["proofread"].instructions in prompt
        return "i think they're late" if proofread else summaries(prompt)

    services = reading(inbox(tmp_path), answer, theme=theme)
    app = AfmApp(services, screen_class)

    def shown(mode: str) -> bool:
        return app.current_mode == mode and all(w in screen_text(app) for w in WANTED[mode])

    async def test(pilot: Pilot[None]) -> None:
        for number, mode in enumerate(SCREENS, 1):
            await pilot.press(f"f{number}")
            if mode == "writing":
                await until(pilot, lambda: app.screen.query("#proofread"))
                app.screen.query_one(TextArea).load_text("i think their late")
                app.screen.query_one("#proofread", Button).press()
            await until(pilot, partial(shown, mode))
            # Without the variable there are colours: the test can tell.
            assert bool(colours(drawing(app))) is not without, colours(drawing(app))

    in_app(app, test, (120, 36))
