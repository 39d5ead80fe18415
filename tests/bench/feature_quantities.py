"""Swap numbers, times of day, weekdays and months of a text and what is made of it.

Numbers keep their order, and stay where one may be reckoned from others. Times move by as much, so
that they stay as far apart; weekdays turn together; months move without passing the year's end.
Where one stands in a form that cannot be moved, none of its sort is.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

from afm_mlx.facts import opens
from afm_mlx.quantities import DAY_NAMES, MONTH_NAMES, NUMBER_WORDS, quantities

Swap = Callable[[str], str]

_MONTHS = {f: i for i, m in enumerate(MONTH_NAMES) for f in (m, m[:3])} | {"sept": 8}
_DAYS = {f: i for i, d in enumerate(DAY_NAMES) for f in (d, d[:3])}
_DAYS |= {"tues": 1, "weds": 2, "thur": 3, "thurs": 3}


def _any(words: Sequence[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_MONTH = re.compile(rf"\b(?:{_any(list(_MONTHS))})\b", re.IGNORECASE)
_DATED = re.compile(
    rf"(?<![\w.,:/])\d\d?\s(?:{_MONTH.pattern})|(?:{_MONTH.pattern})\.?\s\d\d?\b(?![:.]\d)",
    re.IGNORECASE,
)
_DAY = re.compile(rf"\b(?P<day>{_any(list(_DAYS))})(?P<more>s?)\b", re.IGNORECASE)
_CLOCK = re.compile(
    r"(?<![\w:.,/])(?P<hour>\d\d?)(?::(?P<minute>[0-5]\d))?"
    r"(?P<half>\s?[ap]\.?m\b\.?)?(?![\w:])(?(minute)|(?(half)|(?!)))",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.,:/#-])\d+(?:[.,]\d+)*(?![\w:/]|[.,]\d|-\d)")

_HOUR = re.compile(
    r"\b(?:at|by|till?|until|from|after|before|around|since)\s\d\d?\b(?![:.]\d|\s?[ap]\.?m)",
    re.IGNORECASE,
)
_BOUND = re.compile(r"\bweeks?\s\d+(?:\s?(?:to|and|or|-|–)\s?\d+)?\b|\b\d+(?=\s?°)", re.IGNORECASE)
"""Numbers that cannot be any: weeks of a year, degrees."""
_SEASONS = re.compile(
    r"spring|summer|autumn|winter|christmas|easter|new year|halloween|diwali|quarter", re.IGNORECASE
)
_FIXED = re.compile(r"\b(?:29|3[01])(?:\b|st|th)|\d[/.]\d+[/.]|\d-\d\d-\d")
"""Days that not every month has, and dates in numbers."""
_FEASTS = re.compile(
    r"weekend|weekday|\b(?:good|black|ash|shrove|cyber|palm|easter) (?:mon|tues|wednes|fri|sun)day",
    re.IGNORECASE,
)
_PARTS = re.compile(
    r"\b(?:half|halve[sd]|twice|doubled?|thirds?|quarters?|each|total|split|more|less|fewer"
    r"|left|off|between)\b",
    re.IGNORECASE,
)
_USUAL = frozenset({10.0, 12.0, 24.0, 60.0, 100.0, 1000.0})
"""Numbers that often say something of themselves."""


def borne(known: Sequence[object], said: Sequence[object], exact: bool) -> bool:
    """Whether all that is said is known, and with ``exact`` as often."""
    return Counter(known) == Counter(said) if exact else set(said) <= set(known)


def new_digits(digits: str, draw: random.Random) -> str:
    """As many others; zeros at the end and a five before them stay, so does a zero in front."""
    body = digits.rstrip("0")
    if body.endswith("5") and len(body) > 1:
        body = body[:-1]
    new = [
        "0" if c == "0" and i == 0 else str(draw.randint(0 if 0 < i < len(body) - 1 else 1, 9))
        for i, c in enumerate(body)
    ]
    return "".join(new) + digits[len(body) :]


# ---- numbers


def _literals(text: str) -> Iterator[re.Match[str]]:
    """Numbers of a text that are no time and no day of a month."""
    taken = [m.span() for p in (_DATED, _CLOCK) for m in p.finditer(text)]
    for match in _NUMBER.finditer(text):
        if not any(a <= match.start() < b for a, b in taken):
            yield match


def _value(literal: str) -> float:
    whole = re.sub(r",(?=\d{3}\b)", "", literal)
    return float(whole.replace(",", ".")) if whole.count(".") + whole.count(",") < 2 else 0.0


def _spelt(text: str) -> set[float]:
    """Numbers written as words."""
    found = re.findall(r"[a-z]+", text.lower())
    return {float(NUMBER_WORDS[word]) for word in found if word in NUMBER_WORDS}


def numbers(source: str, answer: str, exact: bool, draw: random.Random) -> Swap | None:
    """Other numbers of two and more digits."""
    row = f"{source}\n{answer}"
    known, said = ([m[0] for m in _literals(t)] for t in (source, answer))
    large = {n for n in _spelt(answer) if n > 9}
    if not borne(known, said, exact) or large or _PARTS.search(row):
        return None
    values = {n: _value(n) for n in known}
    if _reckoned(sorted({*values.values(), *_spelt(row)} - {0.0, 1.0})):
        return None
    rest = row
    for match in reversed(list(_literals(row))):
        rest = rest[: match.start()] + " " + rest[match.end() :]
    elsewhere = set(re.findall(r"\d+", rest))
    bound = {n for p in (_HOUR, _BOUND) for m in p.finditer(row) for n in re.findall(r"\d+", m[0])}
    moved = [n for n in values if n not in bound and _moves(n, row, elsewhere)]
    for _ in range(40 if moved else 0):
        chosen = {n: _like(n, draw) for n in moved}
        after = {n: _value(chosen.get(n, n)) for n in values}
        known_runs = set(re.findall(r"\d+", row))
        if _same_order(values, after, _spelt(row)) and not known_runs & set(chosen.values()):
            return lambda text: _replaced(text, chosen)
    return None


def _moves(literal: str, row: str, elsewhere: set[str]) -> bool:
    value = _value(literal)
    if sum(c.isdigit() for c in literal) < 2 or literal[0] == "0" or not value:
        return False
    year = len(literal) == 4 and literal.isdigit() and 1900 <= value < 2100
    if year or value in _USUAL | _spelt(row) or set(re.findall(r"\d+", literal)) & elsewhere:
        return False
    if re.fullmatch(r"\d\d?\.[0-5]\d", literal) and not re.search(rf"[$€£]{literal}", row):
        return False  # it may be a time
    return not re.search(rf"\b[Aa]n?\s{re.escape(literal)}(?!\d)", row)  # "an 80", but "a 90"


def _like(literal: str, draw: random.Random) -> str:
    """Another number written like ``literal``."""
    new = iter(new_digits(re.sub(r"\D", "", literal), draw))
    return re.sub(r"\d", lambda _: next(new), literal)


def _reckoned(values: Sequence[float]) -> bool:
    """Whether one of the values is a sum or product of two others."""
    found = {round(v, 4) for v in values}
    return any(
        round(x, 4) in found - {a, b} for a, b in combinations(values, 2) for x in (a + b, a * b)
    )


def _same_order(before: dict[str, float], after: dict[str, float], fixed: set[float]) -> bool:
    one = [*before.values(), *sorted(fixed)]
    two = [*after.values(), *sorted(fixed)]
    pairs = combinations(range(len(one)), 2)
    return all(
        (one[i] > one[j]) - (one[i] < one[j]) == (two[i] > two[j]) - (two[i] < two[j])
        for i, j in pairs
    )


def _replaced(text: str, chosen: dict[str, str]) -> str:
    for match in reversed(list(_literals(text))):
        text = text[: match.start()] + chosen.get(match[0], match[0]) + text[match.end() :]
    return text


# ---- times of day


def times(source: str, answer: str, exact: bool, draw: random.Random) -> Swap | None:
    """All times of day, earlier or later by as much."""
    row = f"{source}\n{answer}"
    clocks = [m for m in _CLOCK.finditer(row) if int(m["hour"]) < 24]
    spans = [m.span() for m in clocks]
    told = [q for q in quantities(row) if q.kind == "time"]
    if not clocks or any(not any(a <= q.start < b for a, b in spans) for q in told):
        return None
    hours = {int(m["hour"]) for m in clocks}
    hours |= {h % 12 for h in hours} | {h + 12 for h in hours}
    bare = {_value(m[0]) for m in _literals(row)} | _spelt(row)
    said = [_minutes(m) for m in _CLOCK.finditer(answer)]
    if _HOUR.search(row) or bare & hours:
        return None
    if not borne([_minutes(m) for m in _CLOCK.finditer(source)], said, exact):
        return None
    halves = any(m["half"] for m in clocks)
    coarse = any(m["minute"] is None for m in clocks)
    steps = [60 * n for n in (-2, -1, 1, 2)] if coarse else [5 * n for n in range(-23, 24) if n]
    steps = [s for s in steps if all(_fits(m, s, halves) for m in clocks)]
    if not steps:
        return None
    step, padded = draw.choice(steps), any(m["hour"][0] == "0" for m in clocks)
    return lambda text: _CLOCK.sub(lambda m: _shifted(m, step, padded), text)


def _minutes(match: re.Match[str]) -> int:
    """Minutes since midnight."""
    hour = int(match["hour"])
    if match["half"]:
        hour = hour % 12 + 12 * (match["half"].strip()[0].lower() == "p")
    return 60 * hour + int(match["minute"] or 0)


def _fits(match: re.Match[str], step: int, halves: bool) -> bool:
    """Whether a time moved by ``step`` is on the same day, and in its half if halves are told."""
    before, after = _minutes(match), _minutes(match) + step
    if match["half"]:
        return before // 720 == after // 720
    return 60 <= after < (780 if halves else 1440)


def _shifted(match: re.Match[str], step: int, padded: bool) -> str:
    if int(match["hour"]) > 23:
        return match[0]
    hour, minute = divmod(_minutes(match) + step, 60)
    if match["half"]:
        hour = hour % 12 or 12
    written = f"{hour:02}" if padded else str(hour)
    minutes = f":{minute:02}" if match["minute"] else ""
    return f"{written}{minutes}{match['half'] or ''}"


# ---- weekdays and months


def weekdays(source: str, answer: str, exact: bool, draw: random.Random) -> Swap | None:
    """All weekdays, so many days on."""
    row = f"{source}\n{answer}"
    for match in _DAY.finditer(row):
        short = match["day"].lower() in ("sat", "sun", "wed", "mon")  # words of their own, too
        if short and (not match[0].istitle() or opens(row[: match.start()]) or match["more"]):
            return None
    known, said = ([_DAYS[m["day"].lower()] for m in _DAY.finditer(t)] for t in (source, answer))
    if not known or not borne(known, said, exact) or _FEASTS.search(row):
        return None
    turn = draw.randint(1, 6)

    def turned(match: re.Match[str]) -> str:
        name = DAY_NAMES[(_DAYS[match["day"].lower()] + turn) % 7]
        name = name if len(match["day"]) > 5 else name[:3]
        return _cased(match["day"], name) + match["more"]

    return lambda text: _DAY.sub(turned, text)


def months(source: str, answer: str, exact: bool, draw: random.Random) -> Swap | None:
    """All months, so many later or earlier in the year."""
    row = f"{source}\n{answer}"
    if _SEASONS.search(row) or _FIXED.search(row):
        return None
    dated = [m.span() for m in _DATED.finditer(row)]
    for match in _MONTH.finditer(row):
        if any(a <= match.start() < b for a, b in dated) or match[0] == "may":
            continue
        doubtful = len(match[0]) < 5 or match[0].lower() == "march"  # may be a name or a verb
        if doubtful and (match[0] not in ("May", "March") or opens(row[: match.start()])):
            return None
    known, said = ([_MONTHS[m] for m in _named(t)] for t in (source, answer))
    if not known or not borne(known, said, exact):
        return None
    steps = [s for s in range(-min(known), 12 - max(known)) if s]
    if not steps:
        return None
    step = draw.choice(steps)

    def moved(match: re.Match[str]) -> str:
        if match[0] == "may" and not _in_date(match):
            return match[0]
        name = MONTH_NAMES[(_MONTHS[match[0].lower()] + step) % 12]
        return _cased(match[0], name if match[0].lower() in MONTH_NAMES else name[:3])

    return lambda text: _MONTH.sub(moved, text)


def _named(text: str) -> Iterator[str]:
    for match in _MONTH.finditer(text):
        if match[0] != "may" or _in_date(match):
            yield match[0].lower()


def _in_date(match: re.Match[str]) -> bool:
    dates = _DATED.finditer(match.string)
    return any(m.start() <= match.start() < m.end() for m in dates)


def _cased(model: str, word: str) -> str:
    """``word`` in the case of ``model``."""
    if model.isupper():
        return word.upper()
    return word.lower() if model.islower() else word.title()
