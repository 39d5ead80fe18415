"""The keys of the screen of notifications."""

from textual.binding import Binding, BindingType

BINDINGS: list[BindingType] = [
    Binding(
        "ctrl+r",
        "summarize",
        "Summarize",
        id="notifications.summarize",
        tooltip="Summarize the chosen stack again",
    ),
    Binding(
        "escape",
        "stop",
        "Stop",
        id="notifications.stop",
        tooltip="Stop summarizing; ^r goes on",
    ),
    Binding(
        "space",
        "expand",
        "Expand",
        id="notifications.expand",
        tooltip="Show or hide the stack's notifications in the list",
    ),
    Binding(
        "o",
        "originals",
        "Originals",
        id="notifications.originals",
        tooltip="Show the newest notification in the place of the summary, or the summary",
    ),
    Binding(
        "c",
        "compare",
        "Compare",
        id="notifications.compare",
        tooltip="Summarize the stack without and with the adapter, side by side",
    ),
    Binding(
        "escape",
        "back",
        "Inbox",
        show=False,
        id="notifications.back",
        tooltip="Go back to the list",
    ),
    Binding(
        "ctrl+t",
        "summarize_all",
        "Summarize all",
        show=False,
        id="notifications.summarize_all",
        tooltip="Summarize all stacks again",
    ),
    Binding(
        "ctrl+a",
        "adapter",
        "Adapter",
        show=False,
        id="notifications.adapter",
        tooltip="Summarize with the adapter, or with the model alone",
    ),
    Binding(
        "x",
        "switch",
        "App on/off",
        show=False,
        id="notifications.switch",
        tooltip="Switch summaries of the chosen stack's app off or on",
    ),
    Binding(
        "s",
        "source",
        "Source",
        show=False,
        id="notifications.source",
        tooltip="Choose where notifications come from",
    ),
]
