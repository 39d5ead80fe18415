"""The app in a real terminal, through tmux: the tiny model, and a session with the real one."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from afm_mlx import checkpoint
from tests.tui.made import PATIENCE, ROOT, adapters_home, environment, saved_adapters, saved_model
from tests.tui.support import Wait

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux: install it"),
]
MISSPELT = "I recieved teh keys yesterday."


class Terminal:
    """A terminal of tmux with the app in it.

    Attributes:
        process: of the app, and the number of its group.
    """

    def __init__(self, folder: Path, columns: int = 120, rows: int = 36, *arguments: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="afm")  # names of sockets are short
        self._tmux = ["tmux", "-S", f"{self._folder.name}/tmux", "-f", os.devnull]
        app = [sys.executable, "-m", "afm_mlx", *arguments]
        size = ["-x", str(columns), "-y", str(rows)]
        env = {**environment(folder), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        subprocess.run(
            [*self._tmux, "-u", "new-session", "-d", *size, *app], cwd=ROOT, env=env, check=True
        )
        self.process = int(self._ask("display-message", "-p", "#{pane_pid}"))

    def _ask(self, *words: str) -> str:
        asked = subprocess.run([*self._tmux, *words], capture_output=True, text=True)
        return asked.stdout if asked.returncode == 0 else ""

    @property
    def shown(self) -> str:
        """The text on the screen; empty when the app has ended."""
        return self._ask("capture-pane", "-p")

    def press(self, *keys: str) -> None:
        self._ask("send-keys", *keys)

    def write(self, text: str) -> None:
        self._ask("send-keys", "-l", text)

    def until(self, condition: Callable[[str], object], why: str) -> str:
        """What is shown, as soon as ``condition`` holds for it."""
        wait = Wait(PATIENCE)
        while not condition(shown := self.shown):
            assert shown and not wait.over, f"{why}; the last screen was:\n{shown}"
            time.sleep(0.2)
        return shown

    def choose(self, command: str, done: Callable[[str], object]) -> None:
        """Take a command of the palette, until what is shown says so: on a busy machine a key may
        come before the palette has laid out what it found."""
        for _ in range(5):
            self.press("C-p")
            self.until(lambda shown: "Search" in shown, "the palette does not open")
            self.write(command)
            self.until(lambda shown: shown.count(command) > 1, f"there is no command {command}")
            self.press("Enter")
            self.until(lambda shown: "Search" not in shown, "the palette does not close")
            wait = Wait(PATIENCE / 5)
            while not wait.over:
                if done(self.shown):
                    return
                time.sleep(0.2)
        raise AssertionError(f"{command} does nothing; the last screen was:\n{self.shown}")

    @property
    def left(self) -> bool:
        """Whether a process of the app is there."""
        try:
            os.killpg(self.process, 0)
        except ProcessLookupError:
            return False
        return True

    def ended(self) -> None:
        """Wait until the app and all that it started are gone."""
        wait = Wait(PATIENCE)
        while self.left:
            assert not wait.over, f"the app does not end:\n{self.shown}"
            time.sleep(0.2)

    def close(self) -> None:
        """End all that is left."""
        if self.left:
            os.killpg(self.process, signal.SIGKILL)
        self._ask("kill-server")
        self._folder.cleanup()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Opens terminals; none outlives the test."""
    opened: list[Terminal] = []

    def open_one(*arguments: object) -> Terminal:
        opened.append(Terminal(tmp_path, *arguments))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def summarised(shown: str) -> bool:
    """Whether all of the demo has arrived and no stack waits for its summary."""
    return "demo: 10 stacks" in shown and "  … " not in shown and "▌" not in shown


def test_start_look_around_and_quit(tmp_path: Path, terminal: Callable[..., Terminal]) -> None:
    """In 40 columns too; a terminal has keys and colours of its own."""
    base = saved_model(tmp_path / "model")
    saved_adapters(base, adapters_home(tmp_path), ["mine"])
    model = ["--model", str(tmp_path / "model")]
    for columns, rows in ((120, 36), (40, 12)):
        app = terminal(columns, rows, "app", *model)
        app.until(lambda shown: "model" in shown and "Allotment" in shown, "the demo is not there")
        app.choose("Adapter: mine", lambda shown: "◆ mine" in shown)
        app.press("Escape")
        app.press("F2")
        app.until(lambda shown: "paste a text" in shown, "F2 does not lead to the writing tools")
        app.write("Grüße 🌳")
        app.until(lambda shown: "Grüße 🌳" in shown, "what is typed is not shown")
        app.press("C-q")
        app.until(lambda shown: "Lose it" in shown, "nobody asks about the text")
        app.press("y")
        app.ended()


def test_a_session_with_the_embedded_model(
    tmp_path: Path, gguf_path: Path, terminal: Callable[..., Terminal]
) -> None:
    """Start, summaries of the demo, another adapter, proofreading, one change, the end."""
    adapter = adapters_home(tmp_path)
    saved_adapters(checkpoint.load(), adapter, ["mine"])
    app = terminal(120, 36)
    app.until(lambda shown: "smollm2" in shown, "the app does not start")
    first = app.until(summarised, "the demo is not summarised")
    assert "✦ " in first.partition("▸F1")[2] and "tok/s" in first
    app.choose("Adapter: mine", lambda shown: "◆ mine" in shown and "swap" in shown)
    app.choose("Adapter: none", lambda shown: "◆" not in shown)
    app.press("Escape")
    app.press("F2")
    app.until(lambda shown: "paste a text" in shown, "F2 does not lead to the writing tools")
    app.write(MISSPELT)
    app.until(lambda shown: MISSPELT in shown and "┏" in shown, "what is typed is not shown")
    app.press("C-t")
    # Both at once would go to the text, which has a heavy border as long as it has the focus.
    app.until(lambda shown: "┏" not in shown, "the tools do not get the focus")
    app.press("Enter")
    app.until(lambda shown: re.search(r"1/\d .* open", shown), "there is no correction")
    assert MISSPELT in app.shown  # nothing changes by itself
    app.press("y")
    app.until(lambda shown: MISSPELT not in shown, "the accepted change is not in the text")
    app.press("C-q")
    app.until(lambda shown: "Lose it" in shown, "nobody asks about the text")
    app.press("y")
    app.ended()
