"""The app in a browser: the page, its secret, ports, and what is said without the package."""

import importlib.util
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from afm_mlx.cli import main
from afm_mlx.errors import InputError
from afm_mlx.tui import serve
from afm_mlx.tui.writing.screen import WritingScreen
from tests.tui.support import PATIENCE, app_with, fake_services, in_app, until

import pytest
from textual.messages import ExitApp
from textual.pilot import Pilot

ROOT = Path(__file__).parents[2]
here = pytest.mark.skipif(
    importlib.util.find_spec("textual_serve") is None, reason="textual-serve is not installed"
)


def test_command_is_quoted() -> None:
    found = serve.command("a model; rm -rf x", "in box.jsonl")
    assert found.endswith("-m afm_mlx app --model 'a model; rm -rf x' --inbox 'in box.jsonl'")


def test_ports() -> None:
    assert serve.free_port() > 1023
    with socket.socket() as taken:
        taken.bind((serve.HOST, 0))
        taken.listen()
        with pytest.raises(InputError, match="name another"):
            serve.free_port(taken.getsockname()[1])
    with pytest.raises(InputError, match="name another"):
        serve.free_port(70_000)


def test_without_the_package_its_name_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "textual_serve.server", None)
    assert main(["--serve"]) == 2
    assert "pip install 'afm-mlx[serve]'" in capsys.readouterr().err


def test_a_closed_tab_ends_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asked about a text that was not saved, and waited for an answer for ever."""
    monkeypatch.setenv("TEXTUAL_DRIVER", "textual.drivers.web_driver:WebDriver")
    app = app_with(fake_services(), writing=WritingScreen)

    async def test(pilot: Pilot[Any]) -> None:
        assert isinstance(app.screen, WritingScreen)
        app.screen.editor.insert("not saved")
        app.post_message(ExitApp())
        await until(pilot, lambda: app._exit)

    in_app(app, test, (80, 24))


def fetched(address: str) -> tuple[str, str]:
    """A page, and what it may load: at once, since the address is said when it listens."""
    with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
        return answer.read().decode(), answer.headers["Content-Security-Policy"]


@here
def test_page_over_loopback() -> None:
    code = "from afm_mlx.tui import serve; serve.serve('echo no app')"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            match = re.search(r"http://127\.0\.0\.1:\d+/([\w-]+)/", process.stdout.readline())
            assert match and len(match[1]) > 20
            page, allowed = fetched(match[0])
            assert f"{match[1]}/ws" in page
            # It asked Google for a font, and waited for it where there is no network.
            assert "default-src 'self'" in allowed
            # Without the secret there is nothing: others on this machine do not get in.
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(match[0].replace(match[1], ""), timeout=PATIENCE)
        finally:
            process.terminate()
