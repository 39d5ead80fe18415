"""Training as a job for the engine's thread, with samples on the way, and what is seen of it.

    run = engine.stream(training(order))
    async for event in run:
        watched.see(event)

``run.cancel()`` ends it after the step at work: the best save becomes the adapter. That is the
same run told to end at its last save (:func:`afm_mlx.adapters.train.train_adapter`).
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace

from afm_mlx.adapters import formats
from afm_mlx.adapters.train import AdapterTraining, Event, Finished, Planned, train_adapter
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.data.sources import Source, read
from afm_mlx.errors import AFMError
from afm_mlx.events import Evaluated, Resumed, Saved, Step, Stopped
from afm_mlx.generation import GenerationOptions, Request, generate
from afm_mlx.tokenizer import Message

import mlx.core as mx

SAMPLE_TOKENS = 48
"""Most tokens of a sample on the way."""
LOOKS = 8
"""Evaluations of a run at least, so that a short one has a curve, and can be stopped."""
NOTHING_KEPT = "nothing is saved yet, so there is no adapter: the same settings begin again"

Cancelled = Callable[[], bool]


@dataclass(frozen=True)
class Sampled:
    """What the model answers to the prompt after ``step`` steps."""

    step: int
    text: str


@dataclass(frozen=True)
class Peak:
    """Most bytes that the run took so far."""

    nbytes: int


@dataclass(frozen=True)
class Order:
    """What is to be trained; ``prompt`` is answered at every evaluation."""

    data: tuple[str, ...]
    options: AdapterTraining
    prompt: tuple[Message, ...] = ()


Seen = Event | Sampled | Peak
Job = Callable[[Checkpoint, Cancelled], Iterator[Seen]]


def checking(order: Order) -> Job:
    """A job that gives the plan and trains nothing."""

    def job(base: Checkpoint, cancelled: Cancelled) -> Iterator[Seen]:
        return train_adapter(base, order.data, begun(base, order.options), plan_only=True)

    return job


def training(order: Order) -> Job:
    """A job that trains; cancelled, it ends with the best adapter so far."""

    def job(base: Checkpoint, cancelled: Cancelled) -> Iterator[Seen]:
        options = begun(base, order.options)
        step = saved = peak = 0
        mx.reset_peak_memory()
        events = train_adapter(base, order.data, options)
        assert isinstance(events, Generator)
        with contextlib.closing(events):
            for event in events:
                yield event
                if isinstance(event, Evaluated) and order.prompt:
                    yield Sampled(event.step, _sample(base, order.prompt, cancelled))
                if isinstance(event, Step):
                    step = event.step
                    peak = max(peak, mx.get_peak_memory())  # a sample begins to count anew
                    yield Peak(peak)
                if isinstance(event, Saved | Resumed):
                    saved = event.step
                if cancelled():
                    break
            else:
                return
        if not saved:
            yield Stopped(step, NOTHING_KEPT)
            return
        yield Stopped(step, f"step {saved} is saved")
        ended = replace(options, training=replace(options.training, steps=saved))
        for event in train_adapter(base, order.data, ended):
            if isinstance(event, Finished):
                yield event

    return job


def begun(base: Checkpoint, options: AdapterTraining) -> AdapterTraining:
    """``options`` that begin as the recovery adapter of a model that has one, if they name none."""
    recovery = base.path / formats.RECOVERY
    if options.start or not formats.is_adapter(recovery):
        return options
    return replace(options, start=str(recovery))


def often(options: AdapterTraining, planned: Planned) -> AdapterTraining:
    """``options`` that look and save at least :data:`LOOKS` times in the run that is planned."""
    given = options.training
    most = max(planned.steps // LOOKS, 1)
    return replace(
        options,
        training=replace(
            given,
            evaluate_every=min(given.evaluate_every, most),
            save_every=min(given.save_every, most),
        ),
    )


def first_prompt(data: tuple[str, ...]) -> tuple[Message, ...]:
    """What stands before the first answer of the data; empty where there are no conversations.

    Raises:
        InputError: nothing in the first file can be used.
    """
    sample = next(read(Source(data[0]), skip_bad=True))
    roles = [m.role for m in sample.messages]
    return sample.messages[: roles.index("assistant")] if roles else ()


def _sample(base: Checkpoint, prompt: tuple[Message, ...], cancelled: Cancelled) -> str:
    """An answer, or why there is none: that is no reason to end a run."""
    try:
        return say(base, prompt, cancelled)
    except AFMError as error:
        return f"no sample: {error}"


def say(base: Checkpoint, prompt: tuple[Message, ...], cancelled: Cancelled) -> str:
    """The likeliest answer of the model as it stands, in the midst of training too."""
    request = Request(
        base.tokenizer.chat(prompt), GenerationOptions(maximum_response_tokens=SAMPLE_TOKENS)
    )
    learns = base.model.training
    base.model.eval()  # or dropout would work here too
    try:
        text = ""
        for snapshot in generate(base.model, base.tokenizer, request, cancelled=cancelled):
            text = snapshot.text
        return text
    finally:
        base.model.train(learns)


@dataclass
class Watched:
    """A run as far as it has come.

    Attributes:
        losses, held_out: of each step, and of each evaluation.
        best: loss of the best evaluation.
        peak: most bytes that it took so far.
        ended: why it stopped before its last step.
    """

    steps: int = 0
    step: int = 0
    saved: int = 0
    losses: list[tuple[float, float]] = field(default_factory=list)
    held_out: list[tuple[float, float]] = field(default_factory=list)
    samples: list[Sampled] = field(default_factory=list)
    best: tuple[float, float] | None = None
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    peak: int = 0
    ended: str = ""
    finished: Finished | None = None

    def see(self, event: Seen) -> None:
        """Take notice of what happened."""
        match event:
            case Planned():
                self.steps = event.steps
            case Step():
                self.step, self.seconds = event.step, event.seconds
                self.tokens_per_second = event.tokens / max(event.seconds, 1e-9)
                self.losses.append((event.step, event.loss))
            case Evaluated():
                self.seconds = event.seconds
                looked = event.step, event.metrics["loss"]
                self.held_out.append(looked)
                self.best = looked if event.better else self.best
            case Saved():
                self.saved = event.step
            case Resumed():
                self.step = self.saved = event.step
            case Stopped():
                self.ended = event.reason
            case Sampled():
                self.samples.append(event)
            case Peak():
                self.peak = event.nbytes
            case Finished():
                self.finished = event

    @property
    def left(self) -> float | None:
        """Seconds that the rest may take; ``None`` before the first step."""
        if not self.seconds or not self.step or not self.steps:
            return None
        return (self.steps - self.step) * self.seconds / self.step
