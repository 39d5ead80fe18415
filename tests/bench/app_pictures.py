"""Make the README's pictures of the app: the app itself, with what a model says and learns in it.

uv run python tests/bench/app_pictures.py [FOLDER] [--model MODEL] [--only writing] [--tiny]

With the default model most of them take minutes: an adapter is trained, all widths are worked out,
a student learns. The times in the pictures are those of this machine. ``--tiny`` runs all of it on
a small random model, as a check of this script.
"""

import asyncio
import contextlib
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from afm_mlx.engine import Engine
from afm_mlx.packages import SHIPPED
from afm_mlx.quant.calibration import CalibrationOptions
from afm_mlx.tui.app import AfmApp
from afm_mlx.tui.inbox.demo import DemoSource
from afm_mlx.tui.services import Services
from afm_mlx.tui.settings import Settings

import tyro
from textual.pilot import Pilot
from textual.widgets import DataTable, Input

TEXT = "hey team, i think their going to ship it tomorow. can you look at the the notes before?"
STUDENT = "window=256 batch_size=2 held_out=16 evaluate_every=5"
SAMPLES = 40
CALIBRATION = 8_192
"""Tokens, for a picture in minutes."""
LARGEST = 150_000
"""Bytes of a picture."""


@dataclass(frozen=True)
class Options:
    folder: tyro.conf.Positional[Path] = Path("docs/pictures")
    model: str | None = None
    only: tuple[str, ...] = ("notifications", "writing", "adapters", "quantize", "distill")
    tiny: bool = False


class Photographer:
    """Brings the screens of an app to what is worth a picture; works in the current folder."""

    def __init__(self, pilot: Pilot[None], model: str | None) -> None:
        assert isinstance(pilot.app, AfmApp)
        self.pilot, self.app, self.model = pilot, pilot.app, model

    async def picture(self, mode: str) -> str:
        """The picture of a screen, as SVG."""
        await self.until(lambda: self.app.services.status.state == "ready")
        await self.app.action_go(mode)
        await vars(Photographer)[mode](self, self.app.screen)
        self.app.clear_notifications()
        await self.pilot.pause(1.0)
        return lean(self.app.export_screenshot())

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            if self.app.problems:
                raise SystemExit(self.app.problems[-1].text)
            await self.pilot.pause(0.1)

    def fill(self, **fields: object) -> None:
        for name, value in fields.items():
            self.app.screen.query_one(f"#{name}", Input).value = str(value)

    async def notifications(self, screen: Any) -> None:
        screen.clock = lambda: datetime(2026, 3, 9, 9, 41, tzinfo=UTC)
        screen.follow(DemoSource(seconds=0))
        await self.until(lambda: len(screen.box.stacks) == 10)
        await self.until(lambda: not screen.summaries.busy)
        await self.pilot.press("down", "down", "space")

    async def writing(self, screen: Any) -> None:
        screen.editor.insert(TEXT)
        await self.pilot.press("ctrl+t", "enter")
        await self.until(lambda: screen.desk.result)
        await self.pilot.press("y")

    async def adapters(self, screen: Any) -> None:
        rows = (SHIPPED / "smart-reply" / "train.jsonl").read_text("utf-8").splitlines()
        Path("replies.jsonl").write_text("\n".join(rows[:SAMPLES]), "utf-8")
        self.fill(data="replies.jsonl", name="replies", epochs=3)
        await self.pilot.press("ctrl+t")
        await self.until(lambda: screen.trainer.watched.finished)

    async def quantize(self, screen: Any) -> None:
        calibration = CalibrationOptions(tokens=CALIBRATION)
        screen.options = replace(screen.options, calibration=calibration)
        await self.pilot.press("p")
        await self.until(lambda: screen.desk and screen.desk.choices and not screen.working)
        await self.pilot.press("s", *["left_square_bracket"] * 4)
        screen.query_one(DataTable).move_cursor(row=2)
        await self.until(lambda: not screen.changes)

    async def distill(self, screen: Any) -> None:
        self.fill(teacher=self.model or "", steps=30, out="student", more=STUDENT)
        await self.pilot.press("ctrl+r")
        await self.until(lambda: screen.runner.watched.finished and not screen.runner.works)


def lean(svg: str) -> str:
    """A picture that asks nobody for a font, nor for anything else.

    Raises:
        ValueError: it is too large, or names an address.
    """
    found = re.sub(r"@font-face\s*{[^}]*}\s*|<!--.*?-->\s*", "", svg)
    if len(found.encode()) > LARGEST or found.count("://") > found.count("http://www.w3.org/"):
        raise ValueError(f"{len(found.encode()):,} bytes, {found.count('://')} addresses")
    return found


def tiny_model(folder: Path) -> str:
    """A small random model that the app opens."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.tui.made import saved_model

    saved_model(folder)
    return str(folder)


async def take_all(options: Options, model: str | None, out: Path) -> None:
    services = Services(Engine.open(model), Settings(model=model), home=Path("adapters"))
    async with AfmApp(services).run_test(size=(120, 36)) as pilot:
        photographer = Photographer(pilot, model)
        for mode in options.only:
            file = out / f"{mode}.svg"
            file.write_text(await photographer.picture(mode), "utf-8")
            print(file)
    await services.close()


def main(options: Options) -> None:
    out = options.folder.absolute()
    out.mkdir(parents=True, exist_ok=True)
    # In a folder of its own, so that no picture shows where this machine keeps its files.
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        model = tiny_model(Path("tiny")) if options.tiny else options.model
        asyncio.run(take_all(options, model, out))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
