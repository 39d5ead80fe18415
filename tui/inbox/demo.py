"""An invented inbox: some of it is there at once, the rest arrives over a few seconds.

Notifications of ``demo.jsonl`` that say how long ago they came are there from the start.
"""

import asyncio
import json
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from importlib import resources

from afm_mlx.errors import InputError
from afm_mlx.tui.inbox.arrivals import Arrived, News, Reader, local_now


@dataclass(frozen=True)
class DemoSource:
    """The demo.

    Attributes:
        seconds: until the last one arrives.
        seed: of the pauses between them.
    """

    seconds: float = 8.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise InputError("seconds must be 0 or above: they pass until all has arrived")

    @property
    def title(self) -> str:
        return "demo"

    async def follow(self) -> AsyncGenerator[News, None]:
        """First what is old, then the rest one by one; then nothing more comes."""
        all = await asyncio.to_thread(invented)
        old = tuple(one for one in all if one.notification.minutes_ago is not None)
        yield News(old, fresh=True)
        rest = [one for one in all if one.notification.minutes_ago is None]
        for one, pause in zip(rest, pauses(len(rest), self.seconds, self.seed), strict=True):
            await asyncio.sleep(pause)
            yield News((one,))
        await asyncio.Event().wait()


def invented() -> list[Arrived]:
    """All notifications of the demo, in the order in which they arrive."""
    text = resources.files(__package__).joinpath("demo.jsonl").read_text("utf-8")
    reader = Reader(local_now())
    return [one for line in text.splitlines() for one in reader.read(json.loads(line))]


def pauses(count: int, seconds: float, seed: int) -> list[float]:
    """Times between arrivals, of chance, that are ``seconds`` together."""
    chance = random.Random(seed)
    drawn = [chance.expovariate(1.0) for _ in range(count)]
    return [seconds * pause / sum(drawn) for pause in drawn]
