"""Answer the evaluation rows through the features themselves, and go on where a run stopped.

Each answer goes to a log at once (``*.answers.jsonl`` beside the saved report), since hundreds of
rows take an hour; the checks are made on the log, so that they can be changed without the model.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from afm_mlx.distill.files import Log
from afm_mlx.engine import Engine
from afm_mlx.errors import InputError, first_line
from afm_mlx.evaluation.checks import Given, Key
from afm_mlx.evaluation.rows import Task, fingerprint
from afm_mlx.features import Feature, respond_together

BASE = ""
"""The variant without an adapter of its own: instructions and examples alone."""
ROWS = 8
"""Answers that are written side by side."""


@dataclass(frozen=True)
class EvaluationOptions:
    """What is evaluated, and how."""

    feature: tuple[str, ...] = ()
    """Only these, such as notification-summary or adversarial; all if none is named."""
    limit: int | None = None
    """At most so many rows of each feature."""
    best_of: int | None = None
    """Where an answer has faults, sample others up to that many and take the best; as each feature
    does with its adapter if left out."""
    grounded: bool = True
    """Hold names and numbers to the input while summaries and rewrites are written."""
    seed: int = 0
    """Draws the rows of a limit, and the rows of the bootstrap."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError("limit counts rows: give at least 1")
        if self.best_of is not None and self.best_of < 1:
            raise InputError("best_of counts answers: give at least 1")
        if self.seed < 0:
            raise InputError("seed counts draws: give at least 0")


@dataclass(frozen=True)
class Answered:
    """``done`` of ``total`` answers are there."""

    given: Given
    done: int
    total: int


@dataclass
class Answers:
    """What is known so far, in memory and in ``path`` if there is one.

    Raises:
        InputError: the file is of another model, data or settings.
    """

    settings: dict[str, Any]
    path: Path | None = None
    known: dict[Key, Given] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lines = _lines(self.path) if self.path else []
        try:
            before = lines[0]["settings"] if lines else self.settings
            changed = [k for k, v in self.settings.items() if before.get(k) != v]
            for line in lines[1:] if not changed else []:
                self._take(Given.from_json(line))
        except (TypeError, KeyError, AttributeError):
            changed = ["their form"]
        if changed:
            raise InputError(
                f"{self.path} holds answers of another evaluation ({', '.join(changed)} changed):"
                " save to another file, or delete it"
            )

    @contextlib.contextmanager
    def log(self) -> Iterator[Callable[[Given], None]]:
        """A function that takes each new answer."""
        if self.path is None:
            yield self._take
            return
        new = not _lines(self.path)  # an earlier run may have been killed in its first line
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with Log(self.path) as file:
                if new:
                    file.write({"settings": self.settings})

                def take(given: Given) -> None:
                    self._take(given)
                    file.write(given.to_json())

                yield take
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({first_line(error)}): save to another folder"
            ) from error

    def _take(self, given: Given) -> None:
        self.known[given.key] = given


class _Row(NamedTuple):
    """A task to be answered, and the name of the adapter for it, empty for none."""

    variant: str
    task: Task
    adapter: str

    @property
    def key(self) -> Key:
        return self.variant, self.task.kind, self.task.id


async def evaluate(
    engine: Engine,
    tasks: Sequence[Task],
    variants: Mapping[str, Mapping[str, str]],
    answers: Answers,
    options: EvaluationOptions,
) -> AsyncIterator[Answered]:
    """Answer every task with every variant, as far as it is not known; the rest is in ``answers``.

    One variant after the other, so that adapters are not swapped between rows.

    Args:
        variants: for each, names of loaded adapters by feature, an empty one for the model alone;
            with an empty feature it is for all others. Rows of other features are left out.
    """
    rows = [
        _Row(variant, task, adapter)
        for variant, adapters in variants.items()
        for task in tasks
        if (adapter := adapters.get(task.feature.name, adapters.get(""))) is not None
    ]
    with answers.log() as take:
        for done, row in enumerate(rows, 1):
            if row.key not in answers.known:
                unknown = (r for r in rows[done - 1 :] if r.key not in answers.known)
                same = (r for r in unknown if r.variant == row.variant)
                several = list(itertools.islice(same, ROWS))
                wanted = [
                    (_as(r.task.feature, options), r.task.value, r.adapter or None) for r in several
                ]
                found = await respond_together(engine, wanted, options.best_of)
                for one, answer in zip(several, found, strict=True):
                    take(Given.of(one.variant, one.task, answer))
            yield Answered(answers.known[row.key], done, len(rows))


def _as(feature: Feature[Any], options: EvaluationOptions) -> Feature[Any]:
    """A feature as the options would have it."""
    return replace(feature, grounded=feature.grounded and options.grounded)


def asked(features: Iterable[Feature[Any]]) -> str:
    """Digest of how features ask the model."""
    known = {
        f.name: (f.instructions, f.examples, f.best_of, f.keeps, f.favours, f.lines)
        for f in features
    }
    return hashlib.sha256(json.dumps(sorted(known.items())).encode()).hexdigest()[:16]


def settings(
    options: EvaluationOptions,
    data: Path,
    tasks: Iterable[Task],
    signature: str,
    adapters: Mapping[str, str],
    kv: str,
) -> dict[str, Any]:
    """What answers depend on, as a line of JSON.

    Args:
        data: folder of the evaluation rows.
        signature: of the model.
        adapters: names, and something that changes with their weights.
        kv: form of the KV cache.
    """
    return {
        "model": signature,
        "kv": kv,
        "data": fingerprint(data),
        "asked": asked(task.feature for task in tasks),
        "adapters": dict(adapters),
        "best_of": options.best_of,
        "grounded": options.grounded,
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    """What a log holds; half a line at its end, left by a killed process, does not count."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}): save elsewhere") from error
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found
