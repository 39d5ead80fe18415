"""Features for the tiny model."""

from dataclasses import replace
from typing import Any

from afm_mlx.features import (
    Feature,
    Notification,
    NotificationStack,
)

STACK = NotificationStack("Mail", (Notification("Ana", "Call me"),), "Ana")


def small(feature: Feature[Any], **changes: Any) -> Feature[Any]:
    """``feature`` with prompts that fit the tiny model's window of 1,024 bytes."""
    return replace(
        feature,
        instructions="Do it.",
        examples=(),
        answer_tokens=lambda _: 8,
        **changes,
    )
