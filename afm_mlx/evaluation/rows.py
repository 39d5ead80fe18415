"""The rows to evaluate on: feature data as tasks, each with the input and what is known of it."""

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afm_mlx import features
from afm_mlx.distill.files import digest
from afm_mlx.errors import InputError
from afm_mlx.features import Feature
from afm_mlx.features.inputs import Input

ADVERSARIAL = "adversarial"
_FILES: dict[str, tuple[Feature[Any], ...]] = {
    "notifications": (features.NOTIFICATION_SUMMARY, features.PRIORITY),
    "texts": (features.SUMMARY, features.KEY_POINTS),
    "proofread": (features.PROOFREAD,),
    "rewrite": (features.FRIENDLY, features.PROFESSIONAL, features.CONCISE),
    "replies": (features.SMART_REPLY,),
    "changes": (features.CHANGE,),
}
_ATTACKED: dict[str, Feature[Any]] = {
    "notifications": features.NOTIFICATION_SUMMARY,
    "summary": features.SUMMARY,
    "rewrite": features.REWRITE,
    "proofread": features.PROOFREAD,
    "replies": features.SMART_REPLY,
}
_GOLD: dict[str, tuple[str, ...]] = {
    "notification-summary": ("summary",),
    "priority": ("urgent",),
    "summary": ("summary",),
    "key-points": ("key_points",),
    "proofread": ("corrected",),
    "friendly": ("friendly",),
    "professional": ("professional",),
    "concise": ("concise",),
    "smart-reply": ("replies",),
    "change": ("output",),
}
"""What a row must say for a feature to be measured."""


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("summary", "corrected", "friendly", "professional", "concise", "output"), (_text, "a text")
    ),
    **dict.fromkeys(("key_points", "replies", "keep", "avoid"), (_texts, "a list of texts")),
    "mention": (lambda v: isinstance(v, list) and all(map(_texts, v)), "a list of lists of texts"),
    "urgent": (lambda v: isinstance(v, bool), "true or false"),
}
"""What a row may say for the checks, and in which form."""
KINDS = (*(f.name for found in _FILES.values() for f in found), ADVERSARIAL)
"""What can be evaluated: features by name, and input that tries to mislead them."""


@dataclass(frozen=True)
class Task:
    """One row for one feature.

    Attributes:
        kind: one of ``KINDS``.
        gold: what the row says, null left out.
    """

    kind: str
    id: str
    feature: Feature[Any]
    value: Input
    gold: Mapping[str, Any]


def load(
    folder: Path, kinds: Sequence[str] = KINDS, limit: int | None = None, seed: int = 0
) -> list[Task]:
    """The tasks of the ``*.eval.jsonl`` files in ``folder``; of each kind at most ``limit``, drawn
    by ``seed``.

    Raises:
        InputError: a file is missing, empty or broken, or a kind unknown.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise InputError(f"there is no feature {sorted(unknown)[0]!r}: name {', '.join(KINDS)}")
    tasks: list[Task] = []
    for name, found in _FILES.items():
        for feature in found:
            if feature.name in kinds:
                file = folder / f"{name}.eval.jsonl"
                rows = [task(feature.name, feature, row, row, file) for row in read(file)]
                tasks += _drawn(rows, limit, seed)
    if ADVERSARIAL in kinds:
        file = folder / f"{ADVERSARIAL}.eval.jsonl"
        tasks += _drawn([_attack(row, file) for row in read(file)], limit, seed)
    return tasks


def _attack(row: Mapping[str, Any], file: Path) -> Task:
    attacked = row.get("feature")
    if not isinstance(attacked, str) or attacked not in _ATTACKED:
        known = ", ".join(_ATTACKED)
        raise InputError(f"{file}: row {row['id']} names none of {known}: correct its feature")
    return task(ADVERSARIAL, _ATTACKED[attacked], row.get("input"), row, file)


def fingerprint(folder: Path) -> str:
    """SHA-256 that changes with any of the files."""
    names = sorted(path.name for path in folder.glob("*.eval.jsonl"))
    return " ".join(f"{name}:{digest(folder / name)[:16]}" for name in names)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, each with an ``id`` of its own.

    Raises:
        InputError: it cannot be read, has no rows, or rows without or of the same id.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # rows may hold other separators
        rows = [json.loads(line) for line in lines if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as evaluation data ({error}): name the folder that has it"
        ) from error
    if not rows:
        raise InputError(f"{path} has no rows: name the folder that has evaluation data")
    if not all(_text(row.get("id")) for row in rows):
        raise InputError(f"a row of {path} lacks 'id', a text: see the data's README")
    ((name, count),) = Counter(row["id"] for row in rows).most_common(1)
    if count > 1:
        raise InputError(f"{path} has {count} rows {name}: give each an id of its own")
    return rows


def task(kind: str, feature: Feature[Any], data: Any, row: Mapping[str, Any], file: Path) -> Task:
    """The task of a row of ``file`` whose input is ``data``.

    Raises:
        InputError: the row or its input lacks something, or has it in another form.
    """
    where = f"{file}: row {row['id']}"
    gold = {name: value for name, value in row.items() if value is not None}
    for name in _GOLD.get(kind, ()):
        if name not in gold:
            raise InputError(f"{where} lacks {name!r}: see the data's README")
    for name, (fits, form) in _FORMS.items():
        if name in gold and not fits(gold[name]):
            raise InputError(f"{where} has {name!r} that is not {form}: see the data's README")
    try:
        value = feature.input.from_json(data)
    except InputError as error:
        what = str(error).partition(":")[0]
        raise InputError(f"{where} cannot be used ({what}): see the data's README") from error
    return Task(kind, row["id"], feature, value, gold)


def _drawn(rows: list[Task], limit: int | None, seed: int) -> list[Task]:
    if limit is None or limit >= len(rows):
        return rows
    chosen = random.Random(seed).sample(range(len(rows)), limit)
    return [rows[i] for i in sorted(chosen)]
