"""A headless browser, spoken to over its DevTools protocol, and the terminal in its page."""

import asyncio
import base64
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.tui.support import Wait

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "microsoft-edge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
KEEP_TERMINAL = """
Object.defineProperty(Object.prototype, "terminal", {configurable: true, set(it) {
    Object.defineProperty(this, "terminal", {value: it, writable: true, configurable: true});
    window.theTerminal = it;
}});
"""
"""Run before the page's own script, which gives its xterm to nobody."""
ROWS = """(() => {
    const buffer = window.theTerminal?.buffer.active;
    return [...Array(buffer?.length ?? 0).keys()]
        .map(row => buffer.getLine(row).translateToString(true)).join("\\n");
})()"""


def found() -> str | None:
    """A browser on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A page of the browser.

    Attributes:
        asked: addresses that it asked for, in order.
        refused: those of them that the page was not allowed to ask for.
    """

    def __init__(self, socket: Any) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._names: dict[str, str] = {}
        self.asked: list[str] = []
        self.refused: list[str] = []

    async def listen(self) -> None:
        """Take what the browser says, until it ends."""
        async for message in self._socket:
            said = message.json()
            given = said.get("params", {})
            match said.get("method"):
                case "Network.requestWillBeSent":
                    self._names[given["requestId"]] = given["request"]["url"]
                    self.asked.append(given["request"]["url"])
                case "Network.loadingFailed" if given.get("blockedReason") == "csp":
                    self.refused.append(self._names[given["requestId"]])
                case None:
                    self._waiting.pop(said["id"]).set_result(said)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Have the browser do something; returns what it answers."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        said = await answer
        assert "error" not in said, said
        result: dict[str, Any] = said["result"]
        return result

    async def open(self, address: str) -> None:
        """Go to an address."""
        for domain in ("Page", "Network"):
            await self.call(f"{domain}.enable")
        await self.call("Page.addScriptToEvaluateOnNewDocument", source=KEEP_TERMINAL)
        await self.call("Page.navigate", url=address)

    async def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return found["result"].get("value")

    async def press(self, key: str, code: int) -> None:
        """Press a key that writes nothing, and let it go."""
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
            )

    async def until(self, condition: Callable[[str], object], patience: float) -> str:
        """What the terminal shows, as soon as ``condition`` holds for it."""
        wait = Wait(patience)
        while not condition(shown := await self.evaluate(ROWS) or ""):
            assert not wait.over, f"the page does not come to it; it shows:\n{shown}"
            await asyncio.sleep(0.2)
        return shown

    async def picture(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot"))["data"])


@asynccontextmanager
async def browsing(program: str, patience: float) -> AsyncIterator[Page]:
    """An empty page of a browser that ends afterwards."""
    aiohttp: Any = import_module("aiohttp")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            program,
            "--headless",
            "--no-sandbox",  # there is none in many containers, and the page is our own
            "--disable-gpu",
            "--no-first-run",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
            "--window-size=1200,800",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port, wait = Path(folder) / "DevToolsActivePort", Wait(patience)
            while not (port.exists() and port.read_text().strip()):
                assert process.returncode is None, f"{program} ended with {process.returncode}"
                assert not wait.over, f"{program} does not start"
                await asyncio.sleep(0.1)
            host = f"http://127.0.0.1:{port.read_text().split()[0]}"
            async with aiohttp.ClientSession() as session:
                async with session.get(f"{host}/json/list") as answer:
                    pages = [p for p in await answer.json() if p["type"] == "page"]
                address = pages[0]["webSocketDebuggerUrl"]
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    page = Page(socket)
                    listening = asyncio.ensure_future(page.listen())
                    yield page
                    listening.cancel()
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
