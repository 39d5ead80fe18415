"""Summarize an inbox of notifications, one line a stack.

uv run python examples/summarize_inbox.py [inbox.json]

The file holds a list of {"app", "group", "notifications": [{"title", "body"}]}.
"""

import asyncio
import json
import sys
from pathlib import Path

from afm_mlx import Engine
from afm_mlx.features import NOTIFICATION_SUMMARY, PRIORITY, NotificationStack, respond

INBOX = [
    {
        "app": "Messages",
        "group": "Lena",
        "notifications": [
            {"title": "Lena", "body": "Dinner at 7?"},
            {"title": "Lena", "body": "Make it 8, my bus is late"},
        ],
    },
    {
        "app": "Home",
        "group": "Kitchen",
        "notifications": [{"title": "Smoke alarm", "body": "Smoke detected in the kitchen"}],
    },
]


async def main() -> None:
    inbox = json.loads(Path(sys.argv[1]).read_text("utf-8")) if sys.argv[1:] else INBOX
    with Engine.open() as engine:
        for item in inbox:
            stack = NotificationStack.from_json(item)
            summary = await respond(engine, NOTIFICATION_SUMMARY, stack)
            urgent = await respond(engine, PRIORITY, stack)
            print(f"{'!' if urgent.value else ' '} {stack.app}: {summary.text}")


if __name__ == "__main__":
    asyncio.run(main())
