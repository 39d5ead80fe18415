"""What is known of a distillation run: by its events, and by the files in its folder."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afm_mlx.distill.files import read_json
from afm_mlx.distill.markdown import amount, duration, number, percent
from afm_mlx.distill.results import Metrics, read_metrics
from afm_mlx.errors import InputError

METRICS, RECIPE, START = "metrics.jsonl", "recipe.json", "start.json"
POLL = 0.5
"""Seconds between two looks at a file that grows."""
REST = 10
"""A file is read again after so many times as long as reading it took."""
STAGES = ("plan", "answers", "importance", "fit", "masks", "logits", "training", "report")
"""Of a run in their order; most runs skip some."""

Point = tuple[float, float]


@dataclass
class Watched:
    """A run by its events.

    Attributes:
        stage: what it is at, and how much of that is done.
        saved: step of the last save.
        steps: in all, if that is known.
    """

    stage: str = ""
    done: int = 0
    total: int = 0
    step: int = 0
    saved: int = 0
    steps: int = 0
    plan: Mapping[str, Any] = field(default_factory=dict)
    scores: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    finished: Mapping[str, Any] = field(default_factory=dict)
    ended: str = ""

    def see(self, event: Mapping[str, Any]) -> None:
        """Take notice of a line that the run said; what it lacks is as it was."""
        match event.get("event"):
            case "plan":
                self.stage, self.plan = "plan", event
            case "progress":
                self.stage = str(event.get("stage"))
                self.done, self.total = int(event.get("done", 0)), int(event.get("total", 0))
            case "measured":
                self.scores[str(event.get("who"))] = event.get("scores") or {}
            case "step":
                self.stage, self.step = "training", int(event.get("step", self.step))
                self.done, self.total = self.step, self.steps
            case "saved":
                self.saved = int(event.get("step", self.saved))
            case "resumed":
                self.stage, self.saved = "training", int(event.get("step", self.saved))
                self.step = self.saved
            case "stopped":
                self.ended = str(event.get("reason", ""))
            case "finished":
                self.stage, self.finished, self.total = "report", event, 0


@dataclass(frozen=True)
class Folder:
    """A run by the files in its folder.

    Attributes:
        steps: in all; 0 if its recipe does not say.
        teacher: the first that its recipe names; ``None`` is the embedded default.
        named: the student that its recipe names, if it is not cut out of the teacher.
        of_teacher, of_start: figures of the teacher, and of the student before training.
    """

    path: Path
    steps: int = 0
    teacher: str | None = None
    named: str = ""
    of_teacher: Mapping[str, Any] = field(default_factory=dict)
    of_start: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> Path:
        """The file with a line for each event."""
        return self.path / METRICS

    @property
    def student(self) -> tuple[str, str] | None:
        """What the student is, and the model to load for it, as far as it is written."""
        if (self.path / "student").is_dir():
            return "student as last written", str(self.path / "student")
        if (self.path / "start").is_dir():
            return "student as pruned, untrained", str(self.path / "start")
        return ("student as it began", self.named) if self.named else None


def look_into(path: Path) -> Folder:
    """What the folder of a run says of it.

    Raises:
        InputError: it is no folder of a run, or what is there is damaged.
    """
    if not any((path / name).is_file() for name in (METRICS, RECIPE)):
        raise InputError(f"{path} is no folder of a run: name the one after --out")
    recipe, start = read_json(path / RECIPE), read_json(path / START)
    training = recipe.get("training") or {}
    teachers = recipe.get("teacher") or [None]
    return Folder(
        path,
        int(training.get("steps") or 0),
        teachers[0],
        str(recipe.get("student") or ""),
        start.get("teacher") or {},
        start.get("pruned") or {},
    )


async def follow(file: Path, pause: float = POLL) -> AsyncIterator[Metrics]:
    """The metrics in a file, again whenever it has changed; lines that are cut are left out.

    A file that is not there yet is waited for.
    """
    seen: tuple[int, int] | None = None
    while True:
        rest, found = pause, await asyncio.to_thread(_stamp, file)
        if found is not None and found != seen:
            seen, began = found, time.monotonic()
            yield await asyncio.to_thread(read_metrics, file)
            rest = max(pause, REST * (time.monotonic() - began))
        await asyncio.sleep(rest)


def _stamp(file: Path) -> tuple[int, int] | None:
    """Size and time of a file; they tell whether it has changed."""
    try:
        found = file.stat()
    except OSError:  # not begun yet, or taken away
        return None
    return found.st_size, found.st_mtime_ns


def curves(found: Metrics) -> dict[str, dict[str, list[Point]]]:
    """Points of all that is plotted, by plot and name."""
    looks = found.evaluations
    agreed = [
        (float(s.step), 100 * s.parts["agreement"]) for s in found.steps if "agreement" in s.parts
    ]
    return {
        "loss": {"train": [(float(s.step), s.loss) for s in found.steps]},
        "KL": {"held-out": [(float(e.step), e.kl) for e in looks if e.kl is not None]},
        "agreement %": {
            "train": agreed,
            "held-out": [
                (float(e.step), 100 * e.agreement) for e in looks if e.agreement is not None
            ],
        },
    }


def figures(found: Metrics, steps: int) -> list[str]:
    """How far a run is, by its metrics."""
    if not found.steps:
        return ["no step is taken yet"]
    last, speed = found.steps[-1], found.tokens_per_second
    done = f"step {last.step}" + (f" of {steps}" if steps else "")
    spent = found.seconds or 0.0
    left = (steps - last.step) * spent / last.step if steps > last.step else 0.0
    lines = [
        f"{done}, {amount(last.tokens)} tokens in {duration(spent)}"
        + (f", {duration(left)} left" if left else ""),
        f"loss {number(last.loss)}" + (f" · {speed:.0f} tok/s" if speed else ""),
    ]
    if found.evaluations:
        look = found.evaluations[-1]
        lines.append(
            f"held out at {look.step}: {_scores(look.perplexity, look.kl, look.agreement)}"
        )
    if found.best is not None:
        lines.append(f"best save: step {found.best}")
    if found.stopped:
        lines.append(f"! {found.stopped}")
    if found.unreadable:
        lines.append(f"! lines that cannot be read: {found.unreadable}")
    return lines


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """A plan in words."""
    after = plan.get("after") or {}
    lines = [
        f"teacher  {plan.get('teacher')}, {amount(plan.get('teacher_parameters'))} parameters",
        f"student  {after.get('num_hidden_layers')} layers, FFN {_width(after)}",
        f"tokens   {amount(plan.get('tokens'))}, {plan.get('epochs', 0):.2f} times through"
        f" {plan.get('train_windows')} windows",
        f"memory   {plan.get('needed', 0) / 1e9:.2f} of {plan.get('available', 0) / 1e9:.2f} GB:"
        f" {plan.get('verdict')}",
    ]
    if plan.get("disk"):
        lines.append(f"disk     {plan['disk'] / 1e6:.0f} MB of the teacher's answers")
    return lines + [f"! {note}" for note in plan.get("notes") or ()]


def _width(args: Mapping[str, Any]) -> str:
    widths = args.get("intermediate_size")
    return f"{min(widths)} to {max(widths)}" if isinstance(widths, list) else str(widths)


def _scores(perplexity: float | None, kl: float | None, agreement: float | None) -> str:
    known = [f"perplexity {number(perplexity)}"] if perplexity is not None else []
    known += [f"KL {number(kl)}"] if kl else []  # of the teacher itself it is 0
    known += [f"agrees {percent(agreement)}"] if agreement is not None and kl else []
    return " · ".join(known) or "not measured"


def score_lines(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Figures of models by their names."""
    return [
        f"{who}: {_scores(s.get('perplexity'), s.get('kl'), s.get('agreement'))}"
        for who, s in scores.items()
    ]
