"""``afm demo``: an inbox and a few texts, worked on by the model, with what it cost."""

import asyncio
import json
import time
from collections.abc import Mapping
from importlib import resources
from typing import Any

from afm_mlx import features, packages
from afm_mlx.cli.commands import Demo
from afm_mlx.cli.output import console, final, print_json, show, timing
from afm_mlx.cli.work import options, stack_name
from afm_mlx.engine import Engine
from afm_mlx.features import FEATURES, Feature, NotificationStack
from afm_mlx.quant.kv import KVOptions

from rich.text import Text as Line


def run(command: Demo) -> int:
    return asyncio.run(_run(command))


async def _run(command: Demo) -> int:
    data = json.loads(resources.files("afm_mlx.cli").joinpath("demo.json").read_text("utf-8"))
    started = time.perf_counter()
    with Engine.open(command.model, command.revision, KVOptions.parse(command.kv)) as engine:
        checkpoint = await engine.ready()
        loaded = time.perf_counter() - started
        if not command.json:
            millions = checkpoint.model.args.num_parameters / 1e6
            console.print(
                Line(
                    f"{checkpoint.name} · {millions:.0f} M parameters · loaded in {loaded:.1f} s",
                    style="bold",
                )
            )
        adapters = await packages.load(engine, FEATURES if command.adapter else ())
        for item in data["inbox"]:
            await _stack(command, engine, NotificationStack.from_json(item), adapters)
        for item in data["texts"]:
            feature = FEATURES[item["feature"]]
            await _tool(command, engine, feature, feature.input.from_json(item), adapters)
    if not command.json:
        console.print(Line("\nSummaries are made by a model and may contain errors.", "dim"))
    return 0


async def _stack(
    command: Demo, engine: Engine, stack: NotificationStack, adapters: Mapping[str, str]
) -> None:
    urgent = await features.respond(
        engine, features.PRIORITY, stack, adapter=adapters.get(features.PRIORITY.name)
    )
    feature = features.NOTIFICATION_SUMMARY
    events = features.run(
        engine, feature, stack, options(command, 32), adapter=adapters.get(feature.name)
    )
    if command.json:
        answer = await final(events)
        print_json({"stack": stack_name(stack), "urgent": urgent.value, **answer.to_json()})
        return
    count = f"{len(stack.notifications)} notification" + "s" * (len(stack.notifications) > 1)
    mark = " · ! urgent" if urgent.value else ""
    console.print()
    answer = await show(events, f"{stack_name(stack)} ({count}){mark}")
    if not console.is_terminal:
        console.print(Line(f"  {timing(answer.metrics)}"))


async def _tool(
    command: Demo, engine: Engine, feature: Feature[Any], value: Any, adapters: Mapping[str, str]
) -> None:
    events = features.run(
        engine, feature, value, options(command, 512), adapter=adapters.get(feature.name)
    )
    if command.json:
        print_json((await final(events)).to_json())
        return
    console.print(Line(f"\n{feature.title}", style="bold"))
    console.print(Line("  " + feature.render(value).replace("\n", "\n  "), style="dim"))
    answer = await show(events)
    if not console.is_terminal:
        console.print(Line(f"  {timing(answer.metrics)}"))
