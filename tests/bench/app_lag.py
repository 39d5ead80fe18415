"""How late the app's event loop is, in milliseconds, while the engine and a person are at work.

uv run python tests/bench/app_lag.py [--model MODEL] [--seconds 20] [--tiny] [--json]

The app runs without a terminal, 120 columns by 36 rows. Beside it a task sleeps for 5 ms again and
again: what it sleeps longer is the lag, which a person feels as keys and scrolling that come late.
``idle`` shows the inbox; ``decoding`` has the writing tools at work without a pause; ``typing``
types into a text of 200 kB while a tool is at work on another; ``training`` trains an adapter
while a person types. ``--tiny`` runs all of it on a small random model, as a check of this script.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from afm_mlx.engine import Engine
from afm_mlx.errors import AFMError
from afm_mlx.features import CONCISE, Text
from afm_mlx.packages import SHIPPED
from afm_mlx.tui.app import AfmApp
from afm_mlx.tui.services import Services
from afm_mlx.tui.settings import Settings

import tyro
from textual.pilot import Pilot
from textual.widgets import Input

PERIOD = 0.005
SENTENCE = "The boat leaves at nine, and the band plays until the lamps go out at the pier. "
SIZE = 200_000
"""Characters of the long text."""
ROWS = 400
"""Samples of the adapter that is trained, more than it gets through."""
PAUSE = 0.08
"""Seconds between two keys of a quick typist."""


@dataclass(frozen=True)
class Options:
    model: str | None = None
    seconds: float = 20.0
    """Of each measurement."""
    tiny: bool = False
    json: bool = False


@dataclass(frozen=True)
class Lag:
    """Lags of a loop, in milliseconds."""

    what: str
    p50: float
    p99: float
    longest: float
    looks: int


async def lag(what: str, seconds: float, meanwhile: Callable[[], Awaitable[object]]) -> Lag:
    """The loop's lag for so many seconds, in which ``meanwhile`` is done over and over."""
    late: list[float] = []

    async def work() -> None:
        while True:
            await meanwhile()

    working = asyncio.ensure_future(work())
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end and not working.done():
        await asyncio.sleep(PERIOD)
        late.append((time.perf_counter() - began - PERIOD) * 1e3)
    if working.done():
        working.result()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    late.sort()
    p50, p99 = (late[int(share * (len(late) - 1))] for share in (0.5, 0.99))
    return Lag(what, p50, p99, late[-1], len(late))


class Bench:
    """The app, and what goes on in it."""

    def __init__(self, pilot: Pilot[None], seconds: float) -> None:
        assert isinstance(pilot.app, AfmApp)
        self.pilot, self.app, self.seconds = pilot, pilot.app, seconds
        self.screen: Any = None

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            if self.app.problems:
                raise SystemExit(self.app.problems[-1].text)
            await asyncio.sleep(0.05)

    async def idle(self) -> Lag:
        await self.until(lambda: self.app.services.status.state == "ready")
        screen: Any = self.app.screen
        await self.until(lambda: screen.box.stacks)
        screen.action_stop()
        return await lag("idle", self.seconds, lambda: asyncio.sleep(1))

    async def decoding(self) -> Lag:
        await self.app.action_go("writing")
        self.screen = self.app.screen
        self.screen.editor.insert(SENTENCE * 4)

        async def use() -> None:
            await self.pilot.press("ctrl+t", "right", "enter")  # rewrite
            await self.until(lambda: self.screen.running)
            while self.screen.running:
                await asyncio.sleep(0.05)

        found = await lag("decoding", self.seconds, use)
        await self.pilot.press("escape")
        return found

    async def typing(self) -> Lag:
        """In a long text, with a tool at work on a short one."""
        paragraph = SENTENCE * 5 + "\n"
        editor = self.screen.editor
        editor.become(paragraph * (SIZE // len(paragraph)))
        editor.focus()
        editor.move_cursor((editor.document.line_count // 2, 3))
        beside = asyncio.ensure_future(self._concise())
        found = await lag("typing, 200 kB", self.seconds, self._type)
        beside.cancel()
        await asyncio.gather(beside, return_exceptions=True)
        return found

    async def _concise(self) -> None:
        while True:
            async with aclosing(self.app.services.run(CONCISE, Text(SENTENCE * 4))) as events:  # type: ignore[type-var]
                async for _ in events:
                    pass

    async def _type(self) -> None:
        self.app.simulate_key("e")
        await asyncio.sleep(PAUSE)

    async def training(self, data: Path) -> Lag:
        """Of an adapter, on the screen that shows its curves; a person types beside."""
        await self.app.action_go("adapters")
        screen: Any = self.app.screen
        for name, value in {"data": data, "name": "lag", "epochs": 50}.items():
            screen.query_one(f"#{name}", Input).value = str(value)
        await self.pilot.press("ctrl+t")
        await self.until(lambda: screen.trainer.watched.step)
        await self.app.action_go("writing")
        self.screen.editor.focus()
        found = await lag("training", self.seconds, self._type)
        await self.app.action_go("adapters")
        await self.pilot.press("escape")
        await self.until(lambda: not screen.trainer.running)
        return found


async def measure(options: Options, model: str | None, work: Path) -> list[Lag]:
    home = work / "adapters"
    services = Services(Engine.open(model), Settings(model=model), home=home)
    rows = (SHIPPED / "smart-reply" / "train.jsonl").read_text("utf-8").splitlines()
    (work / "replies.jsonl").write_text("\n".join(rows[:ROWS]), "utf-8")
    async with AfmApp(services).run_test(size=(120, 36)) as pilot:
        bench = Bench(pilot, options.seconds)
        found = [await bench.idle(), await bench.decoding(), await bench.typing()]
        found.append(await bench.training(work / "replies.jsonl"))
    await services.close()
    return found


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if options.tiny:
            sys.path.insert(0, str(Path(__file__).parents[2]))
            from tests.tui.made import saved_model

            model = str(Path(folder) / "tiny")
            saved_model(Path(model))
        found = asyncio.run(measure(options, model, Path(folder)))
    if options.json:
        print(json.dumps([asdict(one) for one in found]))
        return
    print(f"{'ms':16s}{'p50':>8s}{'p99':>8s}{'max':>8s}{'looks':>8s}")
    for one in found:
        print(f"{one.what:16s}{one.p50:8.1f}{one.p99:8.1f}{one.longest:8.1f}{one.looks:8d}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except AFMError as error:
        sys.exit(f"app_lag: {error}")
