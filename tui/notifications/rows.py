"""The lines of a stack in the inbox, and of its details, as text for a width.

Notifications are data: they only ever become parts of a ``Text``, and no markup is read in them.
What a model made has a mark and is in italics; the state of a stack has a sign or a word.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from unicodedata import bidirectional

from afm_mlx.facts import Claim
from afm_mlx.features import Notification
from afm_mlx.tui.inbox import Stack
from afm_mlx.tui.inbox.arrivals import shown_time
from afm_mlx.tui.inbox.box import Item
from afm_mlx.tui.notifications.summaries import Summary

from rich.style import Style
from rich.text import Text

BY_MODEL, ORIGINAL = "✦", "›"
LEFT_TO_RIGHT = "\u200e"
"""Ends a right-to-left name, or a terminal that reorders would swap it with the time."""
ERRORS = "by a model, may contain errors"
EXPANDED = 12
"""Originals of an expanded stack in the list; the details have more."""
DETAILED = 300
"""Originals in the details."""
LONG, LONGEST = 500, 4000
"""Characters of a body that are drawn in a row, and in the details: a log may come as one."""
ROOM = 20_000
"""Characters in the details: no key is taken while they are wrapped."""
CHECKS: Mapping[str, tuple[str, ...]] = {
    "names": ("name",),
    "times": ("time", "date"),
    "numbers": ("number", "amount"),
    "negations": ("negation",),
}
NOTHING = "No notifications yet: s chooses another source."


@dataclass(frozen=True)
class Look:
    """How a stack is shown.

    Attributes:
        originals: the newest notification stands in the place of the summary.
        expanded: originals follow.
        off: the app is switched off.
        waiting: a summary will come.
        chosen: the cursor is on it.
        accent: of what is urgent, beside the word.
    """

    now: datetime
    originals: bool = False
    expanded: bool = False
    off: bool = False
    waiting: bool = False
    chosen: bool = False
    accent: Style = Style(bold=True)


def height(stack: Stack, expanded: bool) -> int:
    """Lines of a stack in the list."""
    if not expanded:
        return 2
    return 2 + min(len(stack), EXPANDED) + (len(stack) > EXPANDED)


def line(stack: Stack, summary: Summary | None, look: Look, number: int, width: int) -> Text:
    """Line ``number`` of a stack in the list, ``width`` cells wide."""
    if number == 0:
        return _head(stack, summary, look, width)
    if number == 1:
        return fitted(_second(stack, summary, look), width)
    shown = stack.last(EXPANDED)
    older = len(stack) - len(shown)
    if older and number == 2:
        return fitted(Text(f"      {older:,} older"), width)
    item = shown[number - 2 - bool(older)]
    return fitted(Text(f"      {one_line(item.notification)}"), width)


def _head(stack: Stack, summary: Summary | None, look: Look, width: int) -> Text:
    cursor = "▾" if look.expanded else "▸" if look.chosen else " "
    name = Text(f"{cursor} {stack.name}", style="bold")
    end = Text(f" ({len(stack):,})")
    if look.off:
        end.append("  off")
    elif summary is not None and summary.urgent:
        end.append("  ! urgent", style=look.accent)
    if summary is not None and summary.claims and summary.refused is None and not look.off:
        end.append("  ⚑ check")
    when = shown_time(stack.newest.time, look.now)
    room = width - end.cell_len - len(when) - 1
    name.truncate(max(room, 4), overflow="ellipsis")
    if any(bidirectional(character) in ("R", "AL") for character in name.plain):
        name.append(LEFT_TO_RIGHT)
    name.append_text(end)
    name.append(" " * max(width - name.cell_len - len(when), 1))
    name.append(when)
    return fitted(name, width)


def _second(stack: Stack, summary: Summary | None, look: Look) -> Text:
    if summary is not None and not look.off and not look.originals:
        if summary.state == "failed":
            return Text(f"  ✗ no summary: {summary.problem}")
        if summary.text and summary.refused is None:
            end = "▌" if summary.state == "writing" else ""
            return Text.assemble(f"  {BY_MODEL} ", (" ".join(summary.text.split()) + end, "italic"))
    mark = "…" if look.waiting and not look.originals else ORIGINAL
    return Text(f"  {mark} {one_line(stack.newest.notification)}")


def fitted(text: Text, width: int) -> Text:
    """``text`` in exactly ``width`` cells."""
    text.truncate(width, overflow="ellipsis", pad=True)
    return text


def one_line(notification: Notification) -> str:
    """A notification in one line: who says what."""
    body = " ".join(notification.body[:LONG].split())
    return ": ".join(text for text in (notification.title, body) if text)


# ---- details


def heading(stack: Stack, summary: Summary | None, look: Look, flag: Style) -> Text:
    """The stack's name, its summary, and what was checked in it."""
    text = Text(stack.name, style="bold")
    urgent = summary is not None and summary.urgent and not look.off
    text.append("  ! urgent" if urgent else "", style=look.accent)
    lines = [text, *_said(stack, summary, look, flag)]
    return Text("\n").join(lines)


def _said(stack: Stack, summary: Summary | None, look: Look, flag: Style) -> Iterator[Text]:
    if look.off:
        yield Text(switched_off(stack.app))
    elif summary is None or (summary.state == "writing" and not summary.text):
        yield Text("… to be summarised" if look.waiting else "No summary: ^r makes one.")
    elif summary.state == "failed":
        yield Text(f"✗ no summary: {summary.problem}")
    else:
        yield from verdict(summary, flag)
    if stack.left_out and not look.off:
        read = len(stack.value.notifications)
        yield Text(f"The summary is of the newest {read:,} of {len(stack):,}.")


def switched_off(app: str) -> str:
    """What to say in the place of a summary."""
    return f"Summaries of {app} are off: x switches them on."


def verdict(summary: Summary, flag: Style) -> Iterator[Text]:
    """What the model wrote, what was checked in it, and what was done to it."""
    if summary.refused is None:
        yield Text.assemble(f"{BY_MODEL} ", flagged(summary.text, summary.claims, flag))
    else:
        yield Text(f"{ORIGINAL} {summary.text}")
        refused = flagged(summary.refused, summary.claims, flag) if summary.refused else "nothing"
        yield Text.assemble(f"{BY_MODEL} not taken: ", refused)
    if summary.state == "done":
        yield checks(summary.claims)
        yield from (Text(f"⚑ {note}") for note in summary.notes)
        if summary.refused is None:
            yield from (Text(f"⚑ “{c.text}” is not in the messages") for c in summary.claims)


def flagged(text: str, claims: Sequence[Claim], flag: Style) -> Text:
    """A model's words, with what its source does not bear out between ⟦ and ⟧."""
    shown, at = Text(style="italic"), 0
    for claim in sorted(claims, key=lambda c: c.start):
        if claim.start < at or text[claim.start : claim.end] != claim.text:
            continue
        shown.append(text[at : claim.start])
        shown.append(f"⟦{claim.text}⟧", style=flag)
        at = claim.end
    shown.append(text[at:])
    return shown


def checks(claims: Sequence[Claim]) -> Text:
    """Which kinds of facts of a summary are all in its source, and which are not."""
    wrong = {claim.kind for claim in claims}
    parts = (f"{'✗' if wrong & set(kinds) else '✓'} {name}" for name, kinds in CHECKS.items())
    return Text("  ".join(parts))


def detailed(stack: Stack) -> list[Item]:
    """The newest notifications of a stack that there is room for, oldest first; at least one."""
    found = stack.last(DETAILED)
    sizes = accumulate(_drawn(item.notification) for item in reversed(found))
    count = sum(1 for size in sizes if size <= ROOM)
    return found[-max(count, 1) :]


def _drawn(notification: Notification) -> int:
    """Characters of a notification in the details, about."""
    return min(len(notification.title), LONGEST) + min(len(notification.body), LONGEST)


def originals(stack: Stack, now: datetime) -> Text:
    """The notifications themselves, oldest first."""
    shown = detailed(stack)
    text = Text()
    if len(stack) > len(shown):
        text.append(f"{len(stack) - len(shown):,} older ones are not shown.\n", style="dim")
    for number, item in enumerate(shown):
        text.append("\n" if number else "")
        text.append(f"{shown_time(item.time, now):>5}  ", style="dim")
        title, body = item.notification.title, item.notification.body
        if title and title not in (stack.app, stack.group):
            text.append(title[:LONGEST], style="bold")
            text.append("  " if body else "")
        text.append(body[:LONGEST])
        if len(body) > LONGEST:
            text.append(f" … {len(body) - LONGEST:,} more characters", style="dim")
    return text


def legend(source: str, stacks: int, remarks: Sequence[str], width: int) -> Text:
    """The line below: what the marks mean, what to know, where the notifications come from."""
    text = Text(f" {BY_MODEL} ", no_wrap=True)
    text.append(ERRORS, style="italic")
    count = f"{source}: {stacks:,} stacks" if stacks != 1 else f"{source}: 1 stack"
    end = " · ".join([*remarks, count])
    room = width - text.cell_len - 4
    if room > 8:
        text.append("  │ ")
        text.append_text(fitted(Text(end), room))
    return fitted(text, width)
