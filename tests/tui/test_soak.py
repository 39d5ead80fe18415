"""Two hundred runs of tools, each with another adapter: nothing grows, nothing stays behind."""

import asyncio
import os
import subprocess
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import cycle, islice, product
from pathlib import Path

from afm_mlx.engine import Engine
from afm_mlx.features import Answer, Progress, Text
from afm_mlx.generation import GenerationOptions
from afm_mlx.tui.services import Services
from tests.tui.made import saved_adapters, saved_model

import mlx.core as mx
import pytest

RUNS, WARM, WINDOW = 200, 50, 20
"""Runs; those after which nothing is new any more; and over how many the most memory counts."""
TOOLS = ("summary", "friendly", "concise")
TEXTS = ("The ferry leaves at nine. Bring a coat.", "Ana has the keys.")
ADAPTERS = (None, "one", "two", "three")
FEW = GenerationOptions(maximum_response_tokens=12, grounded=False)
STOPPED = 7
"""Every so many runs one is closed after its first words."""
SLACK = 16 * 2**20
"""Bytes that allocators may take meanwhile; a single request's cache left behind has 4 MB."""

Asked = tuple[str, str, str | None]


@dataclass
class Seen:
    """What each question was answered at first, word by word; and the memory after every run."""

    first: dict[Asked, list[str]] = field(default_factory=dict)
    active: list[int] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)


def resident() -> int:
    """Bytes of this process that are in memory; without those of files where that is known, of
    which the system keeps as many as it likes."""
    status = Path("/proc/self/status")
    if status.exists():
        known = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return 1024 * int(known.get("RssAnon", known["VmRSS"]).split()[0])
    return 1024 * int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(os.getpid())]))


async def ask(services: Services, asked: Asked, stopped: bool, seen: Seen) -> None:
    """One run, compared with the first one that was asked the same."""
    tool, text, adapter = asked
    services.choose(adapter)
    said: list[str] = []
    events = services.run(tool, Text(text), options=FEW)
    async with aclosing(events):  # type: ignore[type-var]
        async for event in events:
            if isinstance(event, Progress):
                said.append(event.text)
                if stopped:
                    break
            elif isinstance(event, Answer):
                said.append(event.text)
    assert Path(services.status.adapter).name == (adapter or "")
    # Greedy answers are the same every time: a word of the run before would differ.
    first = seen.first.setdefault(asked, said)
    assert said and said == first[: len(said)]
    assert stopped or len(said) == len(first)
    active = services.engine.call(lambda _: mx.get_active_memory())
    seen.active.append(await asyncio.wrap_future(active))
    seen.resident.append(resident())


@pytest.mark.slow
def test_two_hundred_runs_with_swaps_between_them(tmp_path: Path) -> None:
    base = saved_model(tmp_path / "model")
    saved_adapters(base, tmp_path / "adapters", [name for name in ADAPTERS if name])
    del base
    seen = Seen()

    async def work() -> None:
        services = Services(
            Engine.open(str(tmp_path / "model")),
            home=tmp_path / "adapters",
            shipped=tmp_path / "none",
        )
        await services.start()
        for number, asked in enumerate(islice(cycle(product(TOOLS, TEXTS, ADAPTERS)), RUNS)):
            stopped = number >= WARM and number % STOPPED == 0
            await ask(services, asked, stopped, seen)
        await services.close()

    asyncio.run(work())
    answers = {tuple(said) for said in seen.first.values()}
    assert len(answers) > len(seen.first) / 2  # or a mix-up could go unseen
    for memory in (seen.active, seen.resident):
        warm, end = max(memory[WARM - WINDOW : WARM]), max(memory[-WINDOW:])
        assert end <= warm + SLACK, f"{warm / 1e6:.1f} MB after {WARM} runs, {end / 1e6:.1f} then"
