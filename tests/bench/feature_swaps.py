"""Other facts for a hand-written row, the same in input and answer, so that copying is learnt.

Small models that saw a name a thousand times write it where another one stands. Here names, codes,
numbers, times of day, weekdays and months change all over a row at once: in what the model reads,
in its answers, and in what these must and must not say. A fact is only swapped where it is known
wherever it stands, and where nothing else can depend on it. What comes out must fulfil its own
conditions, and may state nothing beyond its source that the row before did not.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from afm_mlx.facts import common, fold, unsupported
from tests.bench import feature_names
from tests.bench.feature_quantities import Swap, borne, months, new_digits, numbers, times, weekdays

Row = dict[str, Any]

SOURCE = {
    "notifications": ("app", "group", "notifications"),
    "texts": ("text",),
    "rewrite": ("text",),
    "proofread": ("text",),
    "replies": ("messages",),
    "changes": ("text", "instruction"),
}
"""What the model reads of a row of each kind."""
ANSWER = {
    "notifications": ("summary",),
    "texts": ("summary", "key_points"),
    "rewrite": ("friendly", "professional", "concise"),
    "proofread": ("corrected",),
    "replies": ("replies",),
    "changes": ("output",),
}
"""What it should write."""
_KEPT = {"id", "kind", "check", "edits"}

_CLASSES = {
    "women": feature_names.WOMEN,
    "men": feature_names.MEN,
    "families": feature_names.FAMILIES,
    "places": feature_names.PLACES,
}
CLASS = {n: c for c, names in _CLASSES.items() for n in names if not common(fold(n))}
"""Names that can be swapped, for others of the same class."""
_POOL = {c: [n for n in CLASS if CLASS[n] == c] + feature_names.FURTHER[c] for c in _CLASSES}

_LETTERS = re.compile(r"[^\W\d_]+")
_CODE = re.compile(r"(?<![\w-])(?P<head>(?!COVID|U\d)[A-Z]{1,4}-?|#)(?P<digits>\d{2,5})(?![\w-])")


def source(kind: str, row: Row) -> str:
    """What the model reads of a row, as one text."""
    return "\n".join(_strings([row[name] for name in SOURCE[kind]]))


def answer(kind: str, row: Row) -> str:
    """What it should write, as one text."""
    return "\n".join(_strings([row[name] for name in ANSWER[kind]]))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def mapped(row: Row, swap: Swap) -> Row:
    """``row`` with all its strings swapped, but for its name and kind."""

    def of(value: Any) -> Any:
        if isinstance(value, str):
            return swap(value)
        if isinstance(value, dict):
            return {k: of(v) for k, v in value.items()}
        return [of(v) for v in value] if isinstance(value, list) else value

    return {k: v if k in _KEPT else of(v) for k, v in row.items()}


def holds(kind: str, row: Row) -> bool:
    """Whether the answers of a row fulfil the conditions that it names."""
    said = row.get("summary", "").lower()
    if not all(any(a.lower() in said for a in alike) for alike in row.get("mention", ())):
        return False
    if any(a.lower() in said for a in row.get("avoid", ())):
        return False
    fields = [row[name] for name in ("text", *ANSWER[kind])] if "keep" in row else []
    return all(k in field for k in row.get("keep", ()) for field in fields)


def variant(kind: str, row: Row, draw: random.Random) -> Row | None:
    """``row`` with other facts, or nothing if none of them can be swapped."""
    found, allowed = row, _claims(kind, row)
    for make in (_names, _codes, numbers, times, weekdays, months):
        swap = make(source(kind, found), answer(kind, found), kind == "proofread", draw)
        if swap is None:
            continue
        swapped = mapped(found, swap)
        if holds(kind, swapped) and _claims(kind, swapped) <= allowed:
            found = swapped
    return found if found != row else None


def _claims(kind: str, row: Row) -> Counter[str]:
    """How much the answers state beyond the source, by kind."""
    return _counted(answer(kind, row), source(kind, row))


@lru_cache(maxsize=256)
def _counted(said: str, known: str) -> Counter[str]:
    return Counter(claim.kind for claim in unsupported(said, known))


def _names(source: str, answer: str, exact: bool, draw: random.Random) -> Swap | None:
    runs = _LETTERS.findall(f"{source}\n{answer}")
    folded = Counter(map(fold, runs))
    taken = {word[:3] for word in folded if not common(word)}
    chosen: dict[str, str] = {}
    for name in sorted(set(runs) & CLASS.keys()):
        if not _swappable(name, source, answer, exact, runs, folded):
            continue
        free = [new for new in _POOL[CLASS[name]] if fold(new)[:3] not in taken]
        if free:
            chosen[name] = draw.choice(free)
            taken.add(fold(chosen[name])[:3])
    if not chosen:
        return None
    pattern = re.compile(_whole("|".join(chosen)), re.IGNORECASE)
    by_fold = {fold(name): new for name, new in chosen.items()}
    return lambda text: pattern.sub(lambda m: _cased(m[0], by_fold[fold(m[0])]), text)


def _whole(name: str) -> str:
    return rf"(?<![\w-])(?:{name})(?![\w-])"


def _swappable(
    name: str, source: str, answer: str, exact: bool, runs: list[str], folded: Counter[str]
) -> bool:
    """Whether a name is always a word of its own, and nothing is made of it."""
    known, said = (len(re.findall(_whole(name), t, re.IGNORECASE)) for t in (source, answer))
    if not known or (exact and known != said) or known + said != folded[fold(name)]:
        return False
    if any(_related(name, word) for word in runs):
        return False
    # "an Ana", "Jonas' hat" and "Mrs N"
    unlike = rf"\b[Aa]n?\s{name}\b|\b{name}['’](?![A-Za-z])|\b{name[0]}\b(?!['’])"
    return not re.search(unlike, f"{source}\n{answer}")


def _related(name: str, word: str) -> bool:
    """Whether ``word`` may be a nickname or another form of ``name``."""
    one, other = fold(name), fold(word)
    if one == other or (word.islower() and common(other)):
        return False
    return other.startswith(one[:4]) or (len(other) > 2 and one.startswith(other))


def _cased(model: str, word: str) -> str:
    """``word`` in the case of ``model``."""
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word.lower() if model.islower() else word


def _codes(source: str, answer: str, exact: bool, draw: random.Random) -> Swap | None:
    known, said = ([m[0] for m in _CODE.finditer(t)] for t in (source, answer))
    if not known or not borne(known, said, exact):
        return None
    row = f"{source}\n{answer}"
    runs = Counter(re.findall(r"\d+", row))
    coded = Counter(m["digits"] for m in _CODE.finditer(row))
    chosen = {d: new_digits(d, draw) for d in sorted(coded) if coded[d] == runs[d]}
    if not chosen or len(set(chosen.values()) - runs.keys()) < len(chosen):
        return None
    return lambda text: _CODE.sub(lambda m: m["head"] + chosen.get(m["digits"], m["digits"]), text)
