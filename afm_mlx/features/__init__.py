"""The features: notification summaries, priority, writing tools and smart replies."""

from afm_mlx.features.declaration import Feature
from afm_mlx.features.inputs import (
    Change,
    ChatMessage,
    Notification,
    NotificationStack,
    Text,
    Thread,
)
from afm_mlx.features.notifications import (
    NOTIFICATION_SUMMARY,
    PRIORITY,
    SMART_REPLY,
    render_thread,
)
from afm_mlx.features.reading import Edit, Proofread
from afm_mlx.features.run import Answer, Progress, respond, respond_together, run
from afm_mlx.features.writing import (
    CHANGE,
    CONCISE,
    FRIENDLY,
    KEY_POINTS,
    LIST,
    PROFESSIONAL,
    PROOFREAD,
    REWRITE,
    SUMMARY,
    TABLE,
)

FEATURES = {
    feature.name: feature
    for feature in (
        NOTIFICATION_SUMMARY,
        PRIORITY,
        SUMMARY,
        KEY_POINTS,
        LIST,
        TABLE,
        PROOFREAD,
        REWRITE,
        FRIENDLY,
        PROFESSIONAL,
        CONCISE,
        CHANGE,
        SMART_REPLY,
    )
}

__all__ = [
    "CHANGE",
    "CONCISE",
    "FEATURES",
    "FRIENDLY",
    "KEY_POINTS",
    "LIST",
    "NOTIFICATION_SUMMARY",
    "PRIORITY",
    "PROFESSIONAL",
    "PROOFREAD",
    "REWRITE",
    "SMART_REPLY",
    "SUMMARY",
    "TABLE",
    "Answer",
    "Change",
    "ChatMessage",
    "Edit",
    "Feature",
    "Notification",
    "NotificationStack",
    "Progress",
    "Proofread",
    "Text",
    "Thread",
    "render_thread",
    "respond",
    "respond_together",
    "run",
]
