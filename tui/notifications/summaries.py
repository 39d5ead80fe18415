"""What the model says of each stack, and of which state of it.

One stack after the other is summarised: those on screen first, then the newest few; the others when
a person comes to see them, so that a large inbox does not keep the machine busy. Before an answer
is shown its stack is compared with what the model read, so none is ever shown for a newer state. A
stack that changes while it is worked on is put off behind those that were tried less often.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from afm_mlx.errors import AFMError, InputError
from afm_mlx.facts import Claim, unsupported
from afm_mlx.features import (
    NOTIFICATION_SUMMARY,
    PRIORITY,
    Answer,
    Feature,
    NotificationStack,
    Progress,
)
from afm_mlx.features.run import WARMTH
from afm_mlx.generation import GenerationOptions, Metrics, SamplingMode
from afm_mlx.tui.inbox import Inbox, Key, Stack
from afm_mlx.tui.inbox.arrivals import harmless
from afm_mlx.tui.settings import AUTO, Choice

AHEAD = 30
"""Newest stacks that are summarised before anybody sees them."""


class Door(Protocol):
    """What summaries need of :class:`afm_mlx.tui.services.Services`."""

    def run(
        self,
        feature: Feature[Any],
        value: Any,
        adapter: Choice = AUTO,
        *,
        options: GenerationOptions | None = None,
    ) -> Any:
        """Progress, then an answer."""
        ...


@dataclass(frozen=True)
class Summary:
    """What the model said of a stack.

    Attributes:
        value: the state of the stack that it read.
        urgent: ``None`` until it is known.
        claims: what the model's words say and the notifications do not.
        notes: what was done to the model's words.
        refused: the model's words, if they were not taken and the text is the newest notification.
        problem: why there is no summary.
        attempt: how many there were of the same state before.
    """

    value: NotificationStack
    text: str = ""
    state: Literal["writing", "done", "failed"] = "writing"
    urgent: bool | None = None
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()
    refused: str | None = None
    metrics: Metrics = Metrics()
    problem: str = ""
    attempt: int = 0


async def summarize(
    door: Door,
    value: NotificationStack,
    adapter: Choice,
    tell: Callable[[Summary], bool],
    attempt: int = 0,
) -> None:
    """Have a stack summarised; ``tell`` gets the summary as it grows, and says whether to go on.

    The first attempt is the model's likeliest answer; further ones are sampled, to be others.

    Raises:
        AFMError: whatever keeps the model from answering.
    """
    summary, options = Summary(value, attempt=attempt), None
    if attempt:
        limit = NOTIFICATION_SUMMARY.answer_tokens(0)
        options = GenerationOptions(SamplingMode.random(seed=attempt), WARMTH, limit)
    run = door.run(NOTIFICATION_SUMMARY, value, adapter=adapter, options=options)
    async with aclosing(run) as events:
        async for event in events:
            if isinstance(event, Progress):
                summary = replace(summary, text=harmless(event.text).strip())
            elif isinstance(event, Answer):
                summary = await asyncio.to_thread(_done, summary, event)
            if not tell(summary):
                return


def _done(summary: Summary, answer: Answer) -> Summary:
    written, claims = None, answer.claims
    if answer.notes and _is_newest(answer.text, summary.value):
        written = next(iter(summary.text.splitlines()), "")
        claims = unsupported(written, summary.value.source, NOTIFICATION_SUMMARY.facts)
    return replace(
        summary,
        text=harmless(answer.text),
        state="done",
        claims=claims,
        notes=tuple(harmless(note) for note in answer.notes),
        refused=written,
        metrics=answer.metrics,
    )


def _is_newest(text: str, value: NotificationStack) -> bool:
    newest = value.notifications[-1]
    body = " ".join(newest.body.split())
    return body.startswith(text) or f"{newest.title}: {body}".startswith(text)


class Summaries:
    """The summaries of an inbox.

    Args:
        visible: the stacks that a person sees, by key; they go first.
        off: apps whose notifications are not summarised.
        tell: called with the key of a stack of which there is more to show.
        report: called with what keeps the model from answering at all, once.

    Attributes:
        current: the stack being summarised.
        stopped: whether a person stopped it; :meth:`again` goes on.
    """

    def __init__(
        self,
        door: Door,
        box: Inbox,
        visible: Callable[[], Iterable[Key]],
        off: Callable[[], Collection[str]],
        tell: Callable[[Key], None],
        report: Callable[[AFMError], None],
    ) -> None:
        self._door, self._box, self._tell, self._report = door, box, tell, report
        self._visible, self._off = visible, off
        self._answers: dict[Key, Summary] = {}
        self._tries: Counter[Key] = Counter()
        self._reported: set[str] = set()
        self._runner: object | None = None
        self.stopped = False
        self.current: Key | None = None

    @property
    def busy(self) -> bool:
        """Whether :meth:`work` runs."""
        return self._runner is not None

    def of(self, stack: Stack) -> Summary | None:
        """The summary of a stack as it is now; none if it was of another state."""
        found = self._answers.get(stack.key)
        return found if found is not None and found.value == stack.value else None

    def begin(self) -> None:
        """Forget all answers, and go on if it was stopped: there is another model or adapter."""
        self.go_on()
        self._answers.clear()

    def again(self, key: Key | None = None) -> None:
        """Have other words for a stack, or for all of them, and go on if it was stopped."""
        self.go_on()
        for asked in list(self._answers) if key is None else [key]:
            found = self._answers.pop(asked, None)
            if found is not None and found.state == "done":
                self._answers[asked] = Summary(found.value, attempt=found.attempt + 1)

    def go_on(self) -> None:
        """Go on if it was stopped."""
        self.stopped = False
        self._reported.clear()

    def next(self) -> Stack | None:
        """The stack to be summarised now."""
        if self.stopped:
            return None
        off = self._off()
        on_screen = (stack for key in self._visible() if (stack := self._box.get(key)))
        for stacks in (on_screen, self._box.stacks[:AHEAD]):
            wanted = [stack for stack in stacks if self._wants(stack, off)]
            if wanted:
                return min(wanted, key=lambda stack: self._tries[stack.key])
        return None

    def waiting(self, stack: Stack) -> bool:
        """Whether a stack will be summarised once it is seen."""
        return not self.stopped and self._wants(stack, self._off())

    async def work(self) -> None:
        """Summarise until nothing is left to do; cancel it, or begin another, to stop it.

        What is half done when it is cancelled is forgotten.
        """
        me = self._runner = object()
        try:
            while self._runner is me and (stack := self.next()) is not None:
                self.current = stack.key
                await self._summarize(stack.key, stack.value)
        except Exception:
            self.stopped = True
            raise
        finally:
            if self._runner is me:
                self._runner, key, self.current = None, self.current, None
                if key is not None:
                    self._forget_unfinished(key)
                    self._tell(key)

    def _wants(self, stack: Stack, off: Collection[str]) -> bool:
        found = self.of(stack)
        return (found is None or found.state == "writing") and stack.app not in off

    async def _summarize(self, key: Key, value: NotificationStack) -> None:
        self._tries[key] += 1
        before = self._answers.get(key)
        attempt = before.attempt if before is not None and before.value == value else 0
        try:
            await summarize(self._door, value, AUTO, lambda found: self._take(key, found), attempt)
            found = self._answers.get(key)
            if found is not None and found.value == value and found.state == "done":
                try:
                    urgent = await self._urgent(value)
                except InputError as error:  # the line stays
                    urgent = None
                    self._report_once(error)
                if self._answers.get(key) is found:
                    self._answers[key] = replace(found, urgent=urgent)
                self._tries.pop(key, None)
        except InputError as error:
            self._answers[key] = Summary(value, state="failed", problem=str(error))
            self._report_once(error)
        except AFMError as error:
            self.stopped = True
            self._report_once(error)
        self._forget_unfinished(key)
        self._tell(key)

    async def _urgent(self, value: NotificationStack) -> bool | None:
        async with aclosing(self._door.run(PRIORITY, value, adapter=AUTO)) as events:
            async for event in events:
                if isinstance(event, Answer):
                    return bool(event.value)
        return None

    def _take(self, key: Key, found: Summary) -> bool:
        if not self._current(key, found.value) or key[0] in self._off():
            return False
        self._answers[key] = found
        self._tell(key)
        return True

    def _current(self, key: Key, value: NotificationStack) -> bool:
        stack = self._box.get(key)
        return stack is not None and stack.value == value

    def _forget_unfinished(self, key: Key) -> None:
        found = self._answers.get(key)
        if found is not None and found.state == "writing":
            if found.attempt:  # other words are still wanted
                self._answers[key] = Summary(found.value, attempt=found.attempt)
            else:
                del self._answers[key]

    def _report_once(self, error: AFMError) -> None:
        if str(error) not in self._reported:
            self._reported.add(str(error))
            self._report(error)
