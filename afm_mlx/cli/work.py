"""Run the features on what a person handed to a command."""

import asyncio
from collections.abc import Sequence
from typing import Any

from afm_mlx import features, packages
from afm_mlx.cli.commands import (
    Change,
    Common,
    Input,
    KeyPoints,
    Proofread,
    Reply,
    Rewrite,
    Summarize,
)
from afm_mlx.cli.output import final, print_json, show
from afm_mlx.engine import Engine
from afm_mlx.errors import InputError
from afm_mlx.features import Feature, NotificationStack, Text, Thread
from afm_mlx.generation import GenerationOptions, SamplingMode
from afm_mlx.quant.kv import KVOptions

TONES = {
    "plain": features.REWRITE,
    "friendly": features.FRIENDLY,
    "professional": features.PROFESSIONAL,
    "concise": features.CONCISE,
}
SHAPES = {"points": features.KEY_POINTS, "list": features.LIST, "table": features.TABLE}

# What a line of output is headed with, the feature, its input, and what --json repeats.
Job = tuple[str, Feature[Any], Any, dict[str, Any]]


def summarize(command: Summarize, items: list[Any]) -> int:
    jobs: list[Job] = []
    for item in items:
        if isinstance(item, dict) and "notifications" in item:
            stack = NotificationStack.from_json(item)
            name = stack_name(stack)
            jobs.append((name, features.NOTIFICATION_SUMMARY, stack, _id(item)))
            if command.priority:
                jobs.append((f"{name} urgent", features.PRIORITY, stack, _id(item)))
        elif isinstance(item, dict) and "messages" in item:
            thread = features.render_thread(Thread.from_json(item))
            jobs.append(("", features.SUMMARY, Text(thread), _id(item)))
        else:
            jobs.append(("", features.SUMMARY, _text(item), _id(item)))
    return _work(command, jobs)


def proofread(command: Proofread, items: list[Any]) -> int:
    return _work(command, _texts(items, features.PROOFREAD))


def rewrite(command: Rewrite, items: list[Any]) -> int:
    return _work(command, _texts(items, TONES[command.tone]))


def key_points(command: KeyPoints, items: list[Any]) -> int:
    return _work(command, _texts(items, SHAPES[command.shape]))


def reply(command: Reply, items: list[Any]) -> int:
    jobs: list[Job] = []
    for item in items:
        if isinstance(item, str):
            item = {"messages": [{"from": "Message", "text": Text(item).text}]}
        jobs.append(("", features.SMART_REPLY, Thread.from_json(item), _id(item)))
    return _work(command, jobs)


def change(command: Change, items: list[Any]) -> int:
    jobs: list[Job] = []
    for item in items:
        if isinstance(item, str):
            item = {"text": item}
        if not isinstance(item, dict):
            raise InputError("give text, or JSON objects with a text: see `afm change --help`")
        if command.instruction is not None:
            item = {**item, "instruction": command.instruction}
        if "instruction" not in item:
            raise InputError('say what to change: --instruction "move it to Thursday"')
        jobs.append(("", features.CHANGE, features.Change.from_json(item), _id(item)))
    return _work(command, jobs)


def options(command: Common, maximum: int) -> GenerationOptions | None:
    """Sampling options, or ``None`` for the feature's own greedy ones."""
    if command.temperature == 0:
        return None
    mode = SamplingMode.random(seed=command.seed)
    return GenerationOptions(mode, command.temperature, maximum)


def stack_name(stack: NotificationStack) -> str:
    """How a stack is headed: app and thread."""
    return f"{stack.app} · {stack.group}" if stack.group else stack.app


def _texts(items: list[Any], feature: Feature[Any]) -> list[Job]:
    return [("", feature, _text(item), _id(item)) for item in items]


def _text(item: Any) -> Text:
    return Text(item) if isinstance(item, str) else Text.from_json(item)


def _id(item: Any) -> dict[str, Any]:
    return {"id": item["id"]} if isinstance(item, dict) and "id" in item else {}


def _work(command: Input, jobs: Sequence[Job]) -> int:
    if not jobs:
        raise InputError("the JSON holds no items: give at least one")
    return asyncio.run(_run(command, jobs))


async def _run(command: Input, jobs: Sequence[Job]) -> int:
    with Engine.open(command.model, command.revision, KVOptions.parse(command.kv)) as engine:
        wanted = [feature.name for _, feature, _, _ in jobs] if command.adapter else []
        adapters = await packages.load(engine, wanted)
        for heading, feature, value, extra in jobs:
            events = features.run(
                engine,
                feature,
                value,
                options(command, 1024),
                command.max_characters,
                adapters.get(feature.name),
                command.best_of,
            )
            if command.json:
                print_json({**extra, **(await final(events)).to_json()})
            else:
                await show(events, heading)
    return 0
