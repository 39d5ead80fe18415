"""``afm --serve`` in a real browser: what the page shows, keys, and who can reach it."""

import asyncio
import importlib
import importlib.util
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.tui import browser
from tests.tui.made import PATIENCE, ROOT, environment, saved_model
from tests.tui.support import Wait

import pytest
from matplotlib import image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("textual_serve") is None, reason="textual-serve is not installed"
    ),
    pytest.mark.skipif(
        browser.found() is None, reason="no browser: install chromium or Google Chrome"
    ),
]


class Served(NamedTuple):
    """``afm --serve`` and where it is."""

    process: subprocess.Popen[str]
    address: str


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """``afm --serve`` with the tiny model; afterwards nothing of it may be left."""
    saved_model(tmp_path / "model")
    command = [sys.executable, "-m", "afm_mlx", "--serve", "--model", str(tmp_path / "model")]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            match = re.search(r"http://\S+", process.stdout.readline())
            assert match
            yield Served(process, match[0])
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)
            wait = Wait(PATIENCE)
            while left(process.pid):
                assert not wait.over, "the app goes on without its page"
                time.sleep(0.1)
        finally:
            if left(process.pid):
                os.killpg(process.pid, signal.SIGKILL)


def left(group: int) -> bool:
    """Whether there are processes in a group."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_app_is_in_the_page_and_takes_keys(served: Served) -> None:
    program = browser.found()
    assert program is not None

    async def look() -> None:
        async with browser.browsing(program, PATIENCE) as page:
            await page.open(served.address)
            first = await page.until(lambda shown: "demo: 10 stacks" in shown, PATIENCE)
            assert "▸F1 Notifications" in first and "may contain errors" in first
            picture = image.imread(io.BytesIO(await page.picture()))
            colours = {tuple(c) for c in picture.reshape(-1, picture.shape[-1]).tolist()}
            assert len(colours) > 20  # the terminal is drawn, not only filled
            await page.press("F2", 113)  # with no click before, which it needed
            second = await page.until(lambda shown: "▸F2 Writing" in shown, PATIENCE)
            assert "Type or paste a text" in second and "Proofread" in second
            await page.call("Input.insertText", text="Grüße 🌳")
            await page.until(lambda shown: "Grüße 🌳" in shown and "not saved" in shown, PATIENCE)
            # The page asked for a font of Google's, who then knew of every start.
            asked = {urlsplit(u).hostname for u in set(page.asked) - set(page.refused)}
            assert asked - {None} == {"127.0.0.1"}

    asyncio.run(look())


def test_a_killed_server_takes_its_apps_along(served: Served) -> None:
    """They went on for ever, each with a model; the fixture sees whether any is left."""
    aiohttp: Any = importlib.import_module("aiohttp")

    async def connect() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"{served.address}ws?width=100&height=30") as socket:
                shown = b""
                while b"Allotment" not in shown:
                    message = await socket.receive(PATIENCE)
                    shown += message.data if isinstance(message.data, bytes) else b""
                served.process.kill()
                await asyncio.to_thread(served.process.wait)

    asyncio.run(connect())


def test_only_this_machine_reaches_it(served: Served) -> None:
    where = urlsplit(served.address)
    assert where.hostname == "127.0.0.1" and where.port is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect(("192.0.2.1", 9))  # sends nothing: it only finds the own address
        except OSError:
            pytest.skip("this machine has no other address than its own")
        own = outward.getsockname()[0]
    with pytest.raises(OSError), socket.create_connection((own, where.port), timeout=5):
        pass
