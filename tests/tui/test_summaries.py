"""What is summarised when, and what is shown of it, without an app."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from afm_mlx.errors import AFMError, InputError, ModelError
from afm_mlx.facts import Claim
from afm_mlx.features import (
    NOTIFICATION_SUMMARY,
    PRIORITY,
    Answer,
    Feature,
    Notification,
    NotificationStack,
    Progress,
)
from afm_mlx.generation import GenerationOptions, Metrics
from afm_mlx.tui.inbox import Arrived, Inbox, Key
from afm_mlx.tui.notifications.compare import Comparison, compare
from afm_mlx.tui.notifications.summaries import AHEAD, Summaries
from afm_mlx.tui.settings import AUTO, Choice
from tests.tui.support import HANGS

Say = Callable[[NotificationStack], str]


class Door:
    """Answers with what ``say`` makes of a stack; what it raises ends the answer.

    Attributes:
        asked: names of features and newest bodies, in order.
        seeds: of the answers about stacks; none for the likeliest one.
        closed: how many answers were broken off.
        at_word: called before each word but the first.
    """

    def __init__(self, say: Say = lambda value: f"about {value.notifications[-1].body}") -> None:
        self.say = say
        self.asked: list[tuple[str, str]] = []
        self.seeds: list[int | None] = []
        self.closed = 0
        self.at_word: Callable[[], Any] = lambda: None
        self.notes: tuple[str, ...] = ()
        self.claims: tuple[Claim, ...] = ()

    async def run(
        self,
        feature: Feature[Any],
        value: Any,
        adapter: Choice = AUTO,
        *,
        options: GenerationOptions | None = None,
    ) -> AsyncIterator[Progress | Answer]:
        if feature is NOTIFICATION_SUMMARY:
            self.seeds.append(None if options is None else options.sampling.seed)
        self.asked.append((feature.name, value.notifications[-1].body))
        whole = False
        try:
            if feature is PRIORITY:
                urgent = "urgent" in value.source
                yield Answer(feature.name, urgent, str(urgent), (), 1, Metrics())
                return
            words = self.say(value).split()
            for count in range(1, len(words) + 1):
                yield Progress(" ".join(words[:count]))
                await asyncio.sleep(0)
                self.at_word()
            text = value.notifications[-1].body if self.notes else " ".join(words)
            whole = True
            yield Answer(feature.name, text, text, self.notes, 1, Metrics(), self.claims)
        finally:
            self.closed += feature is NOTIFICATION_SUMMARY and not whole


class Desk:
    """An inbox, its summaries and what they told."""

    def __init__(self, door: Door, visible: list[Key] | None = None) -> None:
        self.door, self.box = door, Inbox()
        self.visible: list[Key] = visible or []
        self.off: set[str] = set()
        self.told: list[tuple[Key, str]] = []
        self.reports: list[AFMError] = []
        self.summaries = Summaries(
            door,
            self.box,
            lambda: self.visible,
            lambda: self.off,
            self.tell,
            self.reports.append,
        )

    def tell(self, key: Key) -> None:
        stack = self.box.get(key)
        found = None if stack is None else self.summaries.of(stack)
        self.told.append((key, "" if found is None else found.text))

    def add(self, body: str, app: str = "A", now: float = 0) -> None:
        self.box.add([Arrived(app, None, Notification("", body), body)], now)

    def text(self, app: str = "A") -> str:
        """What is shown of an app's stack."""
        stack = self.box.get((app, None))
        assert stack is not None
        found = self.summaries.of(stack)
        return "" if found is None else found.text

    def asked(self, feature: Feature[Any] = NOTIFICATION_SUMMARY) -> list[str]:
        return [body for name, body in self.door.asked if name == feature.name]

    def work(self) -> None:
        asyncio.run(asyncio.wait_for(self.summaries.work(), HANGS))


def test_a_stack_is_summarised_and_judged() -> None:
    desk = Desk(Door())
    desk.add("an urgent thing")
    desk.add("lunch", app="B")
    desk.work()
    urgent, calm = (desk.summaries.of(stack) for stack in reversed(desk.box.stacks))
    assert urgent is not None and calm is not None
    assert (urgent.state, urgent.text, urgent.urgent) == ("done", "about an urgent thing", True)
    assert calm.urgent is False
    assert [text for key, text in desk.told if key == ("A", None)][:2] == ["about", "about an"]
    assert not desk.summaries.busy and desk.summaries.next() is None
    desk.work()
    assert len(desk.asked()) == 2


def test_what_is_on_screen_goes_first_then_the_newest() -> None:
    desk = Desk(Door(), visible=[("B", None), ("D", None), ("gone", None)])
    for n, app in enumerate("ABCDE"):
        desk.add(app, app, now=n)
    desk.work()
    assert desk.asked() == ["B", "D", "E", "C", "A"]


def test_a_stack_that_changes_meanwhile_is_done_again() -> None:
    # the line of the older state stood beside the newer notifications
    desk = Desk(Door())
    desk.add("old")

    def arrive() -> None:
        if len(desk.box) == 1:
            desk.add("new", now=1)
            assert desk.text() == ""  # at once, before anything else is written

    desk.door.at_word = arrive
    desk.work()
    assert desk.asked() == ["old", "new"] and desk.door.closed == 1
    assert desk.text() == "about new"
    after = [text for _, text in desk.told][1:]
    assert "about old" not in after


def test_a_stack_that_never_rests_does_not_keep_others_waiting() -> None:
    # one chat with a message a second kept every other stack without a summary
    desk = Desk(Door(), visible=[("A", None)])
    desk.add("first")
    for app in ("B", "C"):
        desk.add(app, app)
    desk.visible += [("B", None), ("C", None)]

    def arrive() -> None:
        if desk.summaries.current == ("A", None) and len(desk.box) < 40:
            desk.add(f"message {len(desk.box)}", now=len(desk.box))

    desk.door.at_word = arrive
    desk.work()
    assert {desk.asked().index(app) for app in "BC"} <= {1, 2, 3}
    assert desk.text() == "about message 39"


def test_an_app_that_is_switched_off() -> None:
    desk = Desk(Door())
    desk.off.add("A")
    desk.add("secret")
    desk.add("b", app="B")
    desk.work()
    assert desk.asked() == ["b"] and desk.text() == ""
    (off,) = (stack for stack in desk.box.stacks if stack.app == "A")
    assert not desk.summaries.waiting(off)
    desk.off.clear()
    desk.work()
    assert desk.text() == "about secret"
    # while it is being summarised, before another one is
    desk.summaries.again()
    desk.visible = [("A", None), ("B", None)]
    desk.door.at_word = lambda: desk.off.add("A")
    desk.work()
    assert desk.text() == "" and desk.door.closed == 1 and desk.text("B") == "about b"
    desk.off.clear()
    assert desk.text() == ""


def test_a_stack_that_goes_meanwhile() -> None:
    desk = Desk(Door())
    desk.add("gone")
    desk.door.at_word = lambda: desk.box.keep([])
    desk.work()
    assert not desk.reports and desk.box.stacks == []


def test_what_cannot_be_summarised() -> None:
    def say(value: NotificationStack) -> str:
        if value.app == "A":
            raise InputError("too long: split it")
        return "fine"

    desk = Desk(Door(say))
    desk.add("a")
    desk.add("b", app="B")
    desk.work()
    failed = desk.summaries.of(desk.box.stacks[-1])
    assert failed is not None and (failed.state, failed.problem) == ("failed", "too long: split it")
    assert desk.text("B") == "fine" and len(desk.reports) == 1
    desk.work()
    assert desk.asked() == ["b", "a"]  # not tried again until it changes
    desk.add("a2", now=1)
    desk.work()
    assert desk.asked() == ["b", "a", "a2"] and len(desk.reports) == 1  # said once


def test_a_model_that_fails_stops_it_all() -> None:
    def say(value: NotificationStack) -> str:
        raise ModelError("there is no model: choose one")

    desk = Desk(Door(say))
    desk.add("a")
    desk.add("b", app="B")
    desk.work()
    assert len(desk.asked()) == 1 and desk.summaries.stopped and len(desk.reports) == 1
    desk.door.say = lambda value: "better"
    assert desk.summaries.next() is None
    desk.summaries.again()
    desk.work()
    assert desk.text("A") == desk.text("B") == "better"


def test_again() -> None:
    desk = Desk(Door())
    desk.add("a")
    desk.add("b", app="B")
    desk.work()
    desk.summaries.again(("A", None))
    assert desk.text() == "" and desk.text("B") == "about b"
    desk.work()
    assert desk.asked() == ["b", "a", "a"]
    assert desk.door.seeds == [None, None, 1]  # the likeliest one would be the same again
    desk.summaries.again()
    desk.work()
    assert len(desk.asked()) == 5 and desk.door.seeds[3:] == [1, 2]
    desk.add("a2", now=1)  # another state
    desk.summaries.begin()
    assert desk.text("B") == ""
    desk.work()
    assert desk.door.seeds[5:] == [None, None]


def test_a_large_inbox_is_summarised_where_it_is_seen() -> None:
    # ten thousand stacks kept the machine busy for hours
    desk = Desk(Door(), visible=[("3", None), ("4", None)])
    for n in range(AHEAD + 70):
        desk.add(str(n), str(n), now=n)
    desk.work()
    newest = [str(n) for n in reversed(range(70, AHEAD + 70))]
    assert desk.asked() == ["3", "4", *newest]
    desk.visible = [("5", None)]
    desk.work()
    assert desk.asked()[-1] == "5" and desk.summaries.next() is None


def test_cancelled_in_the_middle() -> None:
    desk = Desk(Door())
    desk.add("a")

    async def cancelled() -> None:
        work = asyncio.create_task(desk.summaries.work())
        desk.door.at_word = lambda: work.cancel()
        with suppress(asyncio.CancelledError):
            await work

    asyncio.run(cancelled())
    assert desk.text() == "" and desk.door.closed == 1 and not desk.summaries.busy
    assert desk.told[-1] == (("A", None), "")
    desk.door.at_word = lambda: None
    desk.work()
    assert desk.text() == "about a"


def test_begun_anew_while_it_runs() -> None:
    # the end of the first one ended the second one too
    desk = Desk(Door(lambda value: "one two three four five six"))
    for app in "ABC":
        desk.add(app, app)

    async def twice() -> None:
        first = asyncio.create_task(desk.summaries.work())
        await asyncio.sleep(0)
        second = asyncio.create_task(desk.summaries.work())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first, second], timeout=HANGS)
        assert first.cancelled() and second.exception() is None

    asyncio.run(twice())
    assert {desk.text(app) for app in "ABC"} == {"one two three four five six"}
    assert not desk.summaries.busy


def test_a_comparison_that_nobody_wants_any_more() -> None:
    door = Door()
    value = NotificationStack("A", (Notification("", "a"),))
    shown: list[Comparison] = []

    def tell(comparison: Comparison) -> bool:
        shown.append(comparison)
        return wanted or comparison.by_base is None or comparison.by_base.state == "writing"

    wanted = False
    asyncio.run(compare(door, value, "adapter", tell))
    assert len(door.asked) == 1 and shown[-1].by_adapter is None
    wanted = True
    asyncio.run(compare(door, value, "adapter", tell))
    assert len(door.asked) == 3 and shown[-1].by_adapter is not None


def test_who_was_served_comes_first_again() -> None:
    desk = Desk(Door(), visible=[("A", None), ("B", None)])
    desk.add("b", app="B")
    for n in range(3):
        desk.add(f"a{n}", now=n)
        desk.work()
    desk.add("b2", app="B", now=5)
    desk.add("a3", now=5)
    desk.work()
    assert desk.asked()[-2:] == ["a3", "b2"]


def test_words_that_were_not_taken() -> None:
    desk = Desk(Door(lambda value: "Zelda pays 99 euros"))
    desk.door.notes = ("Zelda is not in the notifications: newest one shown",)
    desk.add("lunch is at one")
    desk.work()
    summary = desk.summaries.of(desk.box.stacks[0])
    assert summary is not None
    assert (summary.text, summary.refused) == ("lunch is at one", "Zelda pays 99 euros")
    assert [(c.kind, c.text) for c in summary.claims] == [("name", "Zelda"), ("amount", "99 euros")]


def test_what_acts_on_a_terminal_is_taken_out() -> None:
    desk = Desk(Door(lambda value: "see\x1b[2J it"))
    desk.add("a")
    desk.work()
    assert desk.text() == "see [2J it"
    desk.door.notes = ("\x1b[2J is not in the notifications",)
    desk.add("a2", now=1)
    desk.work()
    found = desk.summaries.of(desk.box.stacks[0])
    assert found is not None and found.notes == (" [2J is not in the notifications",)
    assert not any("\x1b" in text for _, text in desk.told)


def test_words_that_were_only_cut_are_the_models() -> None:
    desk = Desk(Door(lambda value: "lunch is late"))
    desk.door.claims = (Claim("time", "late", 9, 13),)
    desk.add("lunch")
    desk.work()
    summary = desk.summaries.of(desk.box.stacks[0])
    assert summary is not None and summary.refused is None
    assert summary.claims == desk.door.claims
