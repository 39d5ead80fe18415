"""The screen of notifications: stacks with a summary each, and the chosen one beside them."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import aclosing
from datetime import datetime
from functools import partial
from typing import ClassVar

from afm_mlx.errors import AFMError
from afm_mlx.features import NOTIFICATION_SUMMARY, PRIORITY
from afm_mlx.tui.inbox import Inbox, Key, News, Source, Stack
from afm_mlx.tui.inbox.arrivals import local_now
from afm_mlx.tui.notifications import keys, sources
from afm_mlx.tui.notifications.compare import Comparison, compare
from afm_mlx.tui.notifications.details import Compare, Messages
from afm_mlx.tui.notifications.listing import InboxList
from afm_mlx.tui.notifications.rows import Look, legend, switched_off
from afm_mlx.tui.notifications.summaries import Summaries, Summary
from afm_mlx.tui.panes import Panes
from afm_mlx.tui.screen import AfmScreen, Command
from afm_mlx.tui.settings import AUTO, Choice

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.events import Mount, Resize, Unmount
from textual.widgets import Static
from textual.worker import Worker

MANY = 30
"""Apps that the command palette lists."""
SLICE = 1000
"""Notifications that are stacked between two looks at keys and screen."""
WORK = ("summaries", "compare")
"""Groups of workers that Escape stops."""
SHOWN = (NOTIFICATION_SUMMARY.name, PRIORITY.name)
"""Features whose adapter this screen changes."""


class NotificationsScreen(AfmScreen):
    """An inbox that summarises itself."""

    AUTO_FOCUS = "InboxList"
    KEYS = (InboxList,)
    BINDINGS: ClassVar[list[BindingType]] = keys.BINDINGS
    DEFAULT_CSS = """
    NotificationsScreen Panes.-beside .panes--first { width: 1fr; }
    NotificationsScreen Panes.-beside ContentSwitcher { width: 1fr; }
    NotificationsScreen.-narrow Compare { layout: vertical; }
    NotificationsScreen.-narrow Compare > Static { width: 100%; margin-bottom: 1; }
    NotificationsScreen #legend { height: 1; background: $panel; color: $foreground; }
    """

    clock: Callable[[], datetime] = staticmethod(local_now)
    """The time of now; a test has its own."""

    def __init__(self) -> None:
        super().__init__()
        self.box, self.source = Inbox(), sources.OFFERS["demo"].source
        self.originals = False
        self.news = News()
        self.comparison: Comparison | None = None
        self._kept: dict[str, Choice] = {}
        self._used: tuple[object, ...] = ()
        self._forget: Callable[[], None] = lambda: None

    def compose_body(self) -> ComposeResult:
        yield Panes(
            ("inbox", "Inbox", InboxList(self._shown)),
            ("messages", "Messages", Messages()),
            ("compare", "Compare", Compare()),
        )
        yield Static(id="legend", markup=False)

    def on_mount(self, event: Mount) -> None:
        self._used = self._answering()
        self._forget = self.services.on_change(self._settings_changed)
        self.follow(sources.source_of(self.services.settings))

    def on_unmount(self, event: Unmount) -> None:
        self._forget()

    def on_resize(self, event: Resize) -> None:
        self._show_legend()

    def _begin(self, work: Callable[[], Coroutine[None, None, None]], group: str) -> None:
        """Begin ``work`` in a worker, in the place of what runs in the group."""
        _: Worker[None] = self.run_worker(work, name=group, group=group, exclusive=True)

    def _cancel(self, *groups: str) -> None:
        for group in groups:
            self.workers.cancel_group(self, group)

    # ---- the source

    def follow(self, source: Source) -> None:
        """Show what comes from ``source`` from now on, and nothing of what was there."""
        self._cancel(*WORK)
        self.source, self.box, self.news, self.comparison = source, Inbox(), News(), None
        self._list.begin()
        self.summaries = Summaries(
            self.services,
            self.box,
            self._seen,
            lambda: self.services.settings.switched_off,
            self._told,
            self.report,
        )
        self._show()
        self._begin(partial(self._follow, source), "source")

    async def _follow(self, source: Source) -> None:
        try:
            async with aclosing(source.follow()) as found:
                async for news in found:
                    await self._take(news)
        except AFMError as error:
            self.report(error)
            self._list.problem = str(error)
            self._list.refresh()
            self._show_legend()

    async def _take(self, news: News) -> None:
        now, changed = self.clock().timestamp(), False
        for start in range(0, len(news.arrived), SLICE):
            changed |= self.box.add(news.arrived[start : start + SLICE], now)
            await asyncio.sleep(0)
        if news.fresh:
            changed |= self.box.keep(news.arrived)
        if news.skipped and not self.news.skipped:
            text = f"{self.source.title}: left out what cannot be read: {news.reason}"
            self.notify(text, severity="warning", markup=False)
        self.news = news
        if changed:
            self._show()
        else:
            self._show_legend()

    # ---- what is shown

    @property
    def _list(self) -> InboxList:
        return self.query_one(InboxList)

    @property
    def chosen(self) -> Stack | None:
        """The stack that the cursor is on."""
        key = self._list.chosen
        return None if key is None else self.box.get(key)

    def _shown(self, stack: Stack) -> tuple[Summary | None, Look]:
        look = Look(
            self.clock(),
            self.originals,
            stack.key in self._list.expanded,
            self._off(stack.app),
            self.summaries.waiting(stack),
            stack.key == self._list.chosen,
            self._list.accent,
        )
        return self.summaries.of(stack), look

    def _show(self) -> None:
        """Show all anew, and summarise what changed."""
        self._list.set_stacks(self.box.stacks)
        self._show_legend()
        self._show_chosen()
        self._go_on()

    def _show_legend(self) -> None:
        remarks = ["✗ nothing more arrives"] if self._list.problem else []
        remarks += ["stopped, ^r goes on"] if self.summaries.stopped else []
        if self.news.skipped:
            remarks.append(f"{self.news.skipped:,} skipped ({self.news.reason})")
        text = legend(self.source.title, len(self.box.stacks), remarks, self.size.width)
        self.query_one("#legend", Static).update(text)

    def _show_chosen(self) -> None:
        stack = self.chosen
        messages = self.query_one(Messages)
        if stack is None:
            messages.clear()
        else:
            messages.show(stack, *self._shown(stack))
        self._show_comparison()

    def _show_comparison(self) -> None:
        stack = self.chosen
        off = stack is not None and self._off(stack.app)
        self.query_one(Compare).show(self.comparison, stack, off)

    def _off(self, app: str) -> bool:
        return app in self.services.settings.switched_off

    def _seen(self) -> list[Key]:
        """The chosen stack, which may be shown in full, and those on screen."""
        chosen, keys = self._list.chosen, self._list.visible_keys()
        return keys if chosen is None else [chosen, *keys]

    def _told(self, key: Key) -> None:
        """There is more to show of a stack."""
        self._list.refresh_stack(key)
        if key == self._list.chosen:
            stack = self.chosen
            if stack is not None:
                self.query_one(Messages).show(stack, *self._shown(stack))

    def on_inbox_list_chosen(self) -> None:
        self._show_chosen()
        self._go_on()

    def on_inbox_list_scrolled(self) -> None:
        self._go_on()

    def on_inbox_list_opened(self) -> None:
        self.query_one(Panes).shown = "messages"
        self.query_one(Messages).focus()

    def action_back(self) -> None:
        """Go back to the list."""
        self.query_one(Panes).shown = "inbox"
        self._list.focus()

    # ---- summaries

    def _go_on(self) -> None:
        if not self.summaries.busy and self.summaries.next() is not None:
            self._work()

    def _work(self) -> None:
        self._begin(self.summaries.work, "summaries")

    def _answering(self) -> tuple[object, ...]:
        """What the summaries depend on beside the stacks."""
        services = self.services
        choices = [services.settings.choice(name) for name in SHOWN]
        return services.engine, *choices

    def _settings_changed(self) -> None:
        used = self._answering()
        if used != self._used:
            self._used, self.comparison = used, None
            self._cancel("compare")
            self.summaries.begin()
            self._work()
            self._show()

    def action_summarize(self) -> None:
        """Summarise the chosen stack again."""
        stack = self.chosen
        if stack is not None and self._on(stack):
            self.summaries.again(stack.key)
            self._show()

    def _on(self, stack: Stack) -> bool:
        """Whether its app is switched on; if not, a person is told."""
        if self._off(stack.app):
            self.notify(switched_off(stack.app), markup=False)
        return not self._off(stack.app)

    def action_summarize_all(self) -> None:
        """Summarise all stacks again."""
        self.summaries.again()
        self._work()
        self._show()

    def action_stop(self) -> None:
        """Stop summarising and comparing; what was written so far is forgotten."""
        self.summaries.stopped = True
        if self._runs("compare"):
            self.comparison = None
        self._cancel(*WORK)
        self._list.refresh()
        self._show_chosen()

    @property
    def working(self) -> bool:
        """Whether there is something to stop."""
        return self._runs(*WORK)

    def _runs(self, *groups: str) -> bool:
        return any(w.group in groups and w.is_running for w in self.workers if w.node is self)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Stop is there while something runs; escape leaves the messages of a stack first."""
        if action == "stop":
            return self.working and not isinstance(self.focused, Messages)
        return True

    def on_worker_state_changed(self) -> None:
        self.refresh_bindings()
        self._show_legend()

    # ---- views

    def action_expand(self) -> None:
        """Show or hide the notifications of the chosen stack in the list."""
        self._list.toggle()

    def action_originals(self) -> None:
        """Show notifications or summaries in the list."""
        self.originals = not self.originals
        self._list.refresh()

    def action_compare(self) -> None:
        """Summarise the chosen stack without and with the adapter."""
        stack = self.chosen
        if stack is not None and self._on(stack):
            self._list.following = False
            self.query_one(Panes).shown = "compare"
            self._begin(partial(self._compare, stack), "compare")

    async def _compare(self, stack: Stack) -> None:
        value = stack.value
        try:
            services, name = self.services, SHOWN[0]
            bare = services.settings.choice(name) is None
            wanted = services.package_adapter if bare else services.adapter_for
            adapter = await wanted(name)
            await compare(self.services, value, adapter, self._compared)
        except AFMError as error:
            self.report(error)

    def _compared(self, comparison: Comparison) -> bool:
        self.comparison = comparison
        self._show_comparison()
        stack = self.box.get(comparison.key)
        return stack is not None and stack.value == comparison.value and not self._off(stack.app)

    # ---- choices

    def action_adapter(self) -> None:
        """Summarise with the adapter from now on, or without."""
        settings = self.services.settings
        choices = {name: settings.choice(name) for name in SHOWN}
        if choices[SHOWN[0]] is not None:
            self._kept, choices = choices, dict.fromkeys(SHOWN, None)
        else:
            choices = {name: self._kept.get(name) or AUTO for name in SHOWN}
        self.afm.change_settings(adapters={**settings.adapters, **choices})
        by = "the adapter" if choices[SHOWN[0]] else "the model alone"
        self.notify(f"Summaries are by {by} now")

    def action_switch(self) -> None:
        """Switch summaries of the chosen stack's app off or on."""
        stack = self.chosen
        if stack is not None:
            self.switch(stack.app)

    def switch(self, app: str) -> None:
        """Switch summaries of an app off or on."""
        off = self.services.settings.switched_off
        now_off = tuple(a for a in off if a != app) if app in off else (*off, app)
        if self.comparison is not None and self.comparison.key[0] == app:
            self.comparison = None
        self.afm.change_settings(switched_off=now_off)
        self._show()

    def action_source(self) -> None:
        """Choose where notifications come from."""
        file = self.services.settings.inbox
        self.app.push_screen(sources.SourcePicker(self.source, file), self.choose)

    def choose(self, choice: str | None) -> None:
        """Use the offer of this name, or the file at this path."""
        if choice is not None:
            self._begin(partial(self._choose, choice), "choose")

    async def _choose(self, choice: str) -> None:
        settings = self.services.settings
        question = sources.OFFERS[choice].question if choice in sources.OFFERS else ""
        if question and sources.OFFERS[choice].source != sources.source_of(settings):
            if not await self.confirm(question, "Switch on"):
                return
        self.afm.change_settings(**sources.changes(settings, choice))
        self.follow(sources.source_of(self.services.settings))

    def commands(self) -> Iterable[Command]:
        yield "Summarize this stack", "Once more", self.action_summarize
        yield "Summarize all stacks", "Once more", self.action_summarize_all
        yield "Stop summarizing", "^r goes on", self.action_stop
        yield "Expand or fold this stack", "Its notifications in the list", self.action_expand
        yield "Compare base and adapter", "Side by side, on this stack", self.action_compare
        yield "Adapter for summaries on or off", "Or the model alone", self.action_adapter
        yield "Originals or summaries", "What the list shows", self.action_originals
        for name, offer in sources.offered().items():
            title = f"Notifications from: {offer.source.title}"
            yield title, offer.about.capitalize(), partial(self.choose, name)
        yield "Notifications from: a file…", "JSON or JSONL, followed", self.action_source
        for app in self.box.apps[:MANY]:
            title = f"Switch summaries {'on' if self._off(app) else 'off'}: {app}"
            yield title, "Its notifications stay", partial(self.switch, app)

    async def leave(self) -> None:
        """Stop following and summarising."""
        self.workers.cancel_node(self)
