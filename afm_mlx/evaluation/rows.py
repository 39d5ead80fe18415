"""The rows to evaluate on: feature data as tasks, each with the input and what is known of it."""

import json
import random
from collections.abc import Mapping, Sequence
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
KINDS = (*(f.name for found in _FILES.values() for f in found), ADVERSARIAL)
"""What can be evaluated: features by name, and input that tries to mislead them."""


@dataclass(frozen=True)
class Task:
    """One row for one feature.

    Attributes:
        kind: one of ``KINDS``.
        gold: the row as it is in the file.
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
        InputError: a file is missing or broken, or a kind unknown.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise InputError(f"there is no feature {sorted(unknown)[0]!r}: name {', '.join(KINDS)}")
    tasks: list[Task] = []
    for name, found in _FILES.items():
        for feature in found:
            if feature.name in kinds:
                rows = _drawn(read(folder / f"{name}.eval.jsonl"), limit, seed)
                tasks += [task(feature.name, feature, row, row) for row in rows]
    if ADVERSARIAL in kinds:
        for row in _drawn(read(folder / f"{ADVERSARIAL}.eval.jsonl"), limit, seed):
            attacked = _text(row, "feature")
            if attacked not in _ATTACKED:
                known = ", ".join(_ATTACKED)
                raise InputError(f"row {_text(row, 'id')} names none of {known}: correct it")
            feature = _ATTACKED[attacked]
            tasks.append(task(ADVERSARIAL, feature, row.get("input"), row))
    return tasks


def fingerprint(folder: Path) -> str:
    """SHA-256 that changes with any of the files."""
    names = sorted(path.name for path in folder.glob("*.eval.jsonl"))
    return " ".join(f"{name}:{digest(folder / name)[:16]}" for name in names)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # rows may hold other separators
        rows = [json.loads(line) for line in lines if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is no object")
        return rows
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as evaluation data ({error}): name the folder that has it"
        ) from error


def task(kind: str, feature: Feature[Any], data: Any, row: Mapping[str, Any]) -> Task:
    """The task of a row whose input is ``data``.

    Raises:
        InputError: the row or its input lacks something.
    """
    for name in _GOLD.get(kind, ()):
        if name not in row:
            raise InputError(f"row {_text(row, 'id')} lacks {name!r}: see the data's README")
    return Task(kind, _text(row, "id"), feature, feature.input.from_json(data), row)


def _text(row: Mapping[str, Any], name: str) -> str:
    if not isinstance(row.get(name), str):
        raise InputError(f"a row of the evaluation data lacks {name!r}: see the data's README")
    return str(row[name])


def _drawn(rows: list[dict[str, Any]], limit: int | None, seed: int) -> list[dict[str, Any]]:
    if limit is None or limit >= len(rows):
        return rows
    chosen = random.Random(seed).sample(range(len(rows)), limit)
    return [rows[i] for i in sorted(chosen)]
