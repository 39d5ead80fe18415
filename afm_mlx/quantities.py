"""Numbers, times, dates and amounts in a text, in whatever way they are written.

A :class:`Quantity` has readings, the values that its words may stand for: "7.30" is a decimal
and two times of the day, "7pm" is one time. Two texts agree on a quantity if both have one of
its readings, so "7pm", "19:00" and "7 p.m." agree, and so do "20%" and "twenty percent".
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["number", "time", "date", "amount"]
Reading = tuple[str | float, ...]
"""What is meant, and its value: ``("time", 1140)`` in minutes, ``("amount", "€", 45)``..."""

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    " fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ORDINALS = (
    "fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth"
    " fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_MAGNITUDES = {"k": 1000, "m": 10**6, "mn": 10**6, "bn": 10**9, **_SCALES}
NUMBER_WORDS = (
    {word: n for n, word in enumerate(_ONES)}
    | {word: 20 + 10 * n for n, word in enumerate(_TENS)}
    | {word: 4 + n for n, word in enumerate(_ORDINALS)}
    | _SCALES
    | {"dozen": 12}
)
"""Words that claim a number; first, second and third say other things as often."""
_ALSO = {
    **dict.fromkeys(("one", "once", "single", "first"), 1),
    **dict.fromkeys(("second", "both", "couple", "pair", "twice", "double"), 2),
    "third": 3,
    "half": 0.5,
    "quarter": 0.25,
}
"""Words that bear a number out where a source has them, and claim none themselves."""
MONTH_NAMES = (
    "january february march april may june july august september october november december"
).split()
DAY_NAMES = "monday tuesday wednesday thursday friday saturday sunday".split()
_MONTHS = {n: i for i, m in enumerate(MONTH_NAMES, 1) for n in (m, m[:3])} | {"sept": 9}
_DAYS = {n: i for i, d in enumerate(DAY_NAMES) for n in (d, d[:3])}
_DAYS |= {"tues": 1, "weds": 2, "thur": 3, "thurs": 3}
_RELATIVE = {
    **dict.fromkeys("tomorrow tmrw tmr tmw tomoz 2morrow 2moro".split(), "tomorrow"),
    **dict.fromkeys(("tonight", "tonite", "2nite"), "tonight"),
    "yesterday": "yesterday",
}
_UNITS = {
    **dict.fromkeys(("%", "percent", "per cent", "pct"), "%"),
    **dict.fromkeys(("$", "us$", "dollar", "dollars", "usd", "bucks"), "$"),
    **dict.fromkeys(("€", "euro", "euros", "eur"), "€"),
    **dict.fromkeys(("£", "pound", "pounds", "gbp", "quid"), "£"),
    **dict.fromkeys(("¥", "yen", "jpy"), "¥"),
    **dict.fromkeys(("₹", "rupee", "rupees", "inr"), "₹"),
}


def _any(names: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, names), key=len, reverse=True))


_WORD = rf"(?:{_any(NUMBER_WORDS)})"
_HOUR = _any(_ONES[1:13])
_MONTH = rf"(?:{_any(_MONTHS)})"
_UNIT_WORDS = _any(u for u in _UNITS if u[0].isalpha() and u != "us$")
_QUANTITY = re.compile(
    rf"""(?<![^\W_])(?:
      (?P<date>\d{{4}}-\d\d?-\d\d?(?!\d)
        | \d\d?(?:st|nd|rd|th)?(?:\sof)?[ -]{_MONTH}\b
        | {_MONTH}\.?\s\d\d?(?:st|nd|rd|th)?\b(?![:.,]?\d|\s?[ap]\.?m\b))
    | (?P<clock>\d\d?(?:[:.h][0-5]\d)?\s?(?:[ap]m\b|[ap]\.\s?m\b\.?)
        | \d\d?[:h][0-5]\d(?::[0-5]\d)?(?![\d/:])
        | (?:\d\d?|{_HOUR})\s?o['’]?\s?clock\b
        | (?:half|(?:a\s)?quarter|five|ten|twenty)\spast\s(?:\d\d?|{_HOUR})\b
        | (?:a\s)?quarter\sto\s(?:\d\d?|{_HOUR})\b
        | half\s(?:{_HOUR})\b
        | (?:{_HOUR})\s(?:fifteen|(?:twenty|thirty|forty|fifty)(?:[ -]five)?)\b
        | (?:noon|midday|midnight)\b)
    | (?P<day>(?:{_any(_DAYS)})s?\b)
    | (?P<relative>(?:{_any(_RELATIVE)})\b)
    | (?P<month>{_MONTH}\b)
    | (?P<code>[^\W\d_]+\d\w* | (?-i:[A-Z]){{1,5}}-\d\w* | \d+[^\W\d_]+\d\w*
        | \d+(?-i:[A-JLN-Z])\b)
    | (?P<number>(?:(?P<sign>(?:us)?\$|[€£¥₹])\s?)?
        (?P<value>\d+(?:[.,:/]\d+)*(?:(?:st|nd|rd|th)\b)?|[½¼¾]
            |{_WORD}(?:(?:[ -]|\sand\s){_WORD})*(?:(?<=ty)[ -](?:first|second|third))?\b)
        (?:\s?(?P<magnitude>k|mn|m|bn|thousand|million|billion)\b)?
        (?:\s?(?P<unit>%|[$€£¥₹](?!\s?\d))|[\s-](?P<units>{_UNIT_WORDS})\b)?)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_CLOCK_WORD = re.compile(rf"\d+|\b(?:{_any(_ONES + _TENS)})\b")
_BEFORE_HOUR = re.compile(r"(?:\b(?:at|by|until|till?|from|before|after|around|since)\s|@\s?)$")
_COUNTED = re.compile(r"\s?[a-z]", re.IGNORECASE)
_OTHERS = re.compile(r"\band (\d+) (?:more|others?)\b", re.IGNORECASE)
_ONE = re.compile(r"\ban?\s(?:minute|hour|day|night|week|month|year)\b", re.IGNORECASE)
_LONGEST = 15  # digits of a number that counts something
_FRACTIONS = {"½": 0.5, "¼": 0.25, "¾": 0.75}
_RANGE = re.compile(r"\s?(?:-|–|to|or|and)\s?")


@dataclass(frozen=True)
class Quantity:
    """A quantity at characters ``start`` to ``end``, and what it may mean."""

    kind: Kind
    start: int
    end: int
    readings: frozenset[Reading]


def quantities(text: str) -> Iterator[Quantity]:
    """The quantities of ``text``, in order; a word like "may" counts as a month here."""
    for match in _QUANTITY.finditer(text):
        kind: Kind = "number"
        found: Iterable[Reading]
        if match["date"]:
            kind, found = "date", _date(match[0])
        elif match["clock"]:
            kind, found = "time", (("time", t) for t in _clock(match[0]))
        elif match["day"]:
            name = match[0].lower()
            kind, found = "date", [("day", _DAYS.get(name, _DAYS.get(name[:-1], -1)))]
        elif match["relative"]:
            kind, found = "date", [("relative", _RELATIVE[match[0].lower()])]
        elif match["month"]:
            kind, found = "date", [("month", _MONTHS[match[0].lower()])]
        elif match["code"]:
            found = [("code", " ".join(runs(match[0])))]
        else:
            values = _values(match["value"], match["magnitude"])
            unit = _UNITS.get((match["sign"] or match["unit"] or match["units"] or "").lower())
            found = (
                [("amount", unit, v) for v in values] if unit else _plain(match["value"], values)
            )
            kind = "amount" if unit else "number"
        found = {*found, ("literal", match[0].lower())}
        yield Quantity(kind, match.start(), match.end(), frozenset(found))


def runs(text: str) -> list[str]:
    """Runs of letters and runs of digits, in small letters: ``c 17`` for C17, C-17 and c 17."""
    return re.findall(r"\d+|[^\W\d_]+", text.lower())


def borne_out(text: str) -> set[Reading]:
    """All readings that ``text`` bears out, more than it states: 19:00 bears out "at 7"."""
    known: set[Reading] = set()
    earlier: Quantity | None = None
    for quantity in quantities(text):
        readings = set(quantity.readings)
        if earlier and _RANGE.fullmatch(text, earlier.end, quantity.start):
            readings |= _shared(earlier.readings, quantity.readings)  # 20 to 25 %
        hour = bool(_BEFORE_HOUR.search(text, max(0, quantity.start - 10), quantity.start))
        hour = hour or not _COUNTED.match(text, quantity.end)
        for reading in readings:
            known |= {reading, *_implied(reading)}
            if hour and reading[0] == "number":
                known |= {("time", t) for t in _hours(float(reading[1]))}
        earlier = quantity
    words = re.findall(r"[a-z]+", text.lower())
    known |= {("number", float(_ALSO[w])) for w in words if w in _ALSO}
    known |= {("number", 1.0 + int(n)) for n in _OTHERS.findall(text)}
    if _ONE.search(text):
        known.add(("number", 1.0))
    return known


def _date(text: str) -> Iterator[Reading]:
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    if len(numbers) == 3:
        yield ("date", numbers[1], numbers[2])
        return
    month = next(_MONTHS[w] for w in re.findall(r"[a-z]+", text.lower()) if w in _MONTHS)
    yield ("date", month, numbers[0])


def _clock(text: str) -> set[int]:
    """Minutes of the day; without a.m. or p.m. an hour up to 12 has two."""
    lower = text.lower()
    if lower in ("noon", "midday", "midnight"):
        return {0 if lower == "midnight" else 720}
    numbers = [int(n) if n.isdigit() else NUMBER_WORDS[n] for n in _CLOCK_WORD.findall(lower)]
    hour, minute = numbers[0], numbers[1] if len(numbers) > 1 else 0
    if numbers[1:] and (" past " in lower or " to " in lower):
        hour, minute = numbers[1], numbers[0]
    elif len(numbers) == 3:  # ten forty-five, and 10:45:30
        minute = numbers[1] + (numbers[2] if lower[0].isalpha() else 0)
    if "quarter" in lower or lower.startswith("half"):
        minute = 30 if lower.startswith("half") else 15
    if " to " in lower:
        hour, minute = hour - 1, 60 - minute
    if hour > 24:
        return set()
    half = re.search(r"([ap])\.?\s?m\b", lower)
    if half:
        return {(hour % 12 + 12 * (half[1] == "p")) * 60 + minute}
    return {h % 24 * 60 + minute for h in ((hour, hour + 12) if hour <= 12 else (hour,))}


def _values(text: str, magnitude: str | None) -> set[float]:
    """What ``text`` may be worth: "1.204" is a decimal, or a thousand and more."""
    scale = _MAGNITUDES.get((magnitude or "").lower(), 1)
    if text in _FRACTIONS:
        plain = {_FRACTIONS[text]}
    elif not text[0].isdigit():
        plain = {_spoken(text)}
    else:
        digits = re.sub(r"[a-z]+$", "", text.lower())
        plain = set()
        if len(digits) > _LONGEST:
            return plain  # a serial number
        if re.fullmatch(r"\d+[.,]?\d*", digits):
            plain.add(float(digits.replace(",", ".")))
        if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", digits):
            plain = {float(digits.replace(",", ""))}
        elif re.fullmatch(r"\d{1,3}(\.\d{3})+(,\d+)?", digits):
            plain.add(float(digits.replace(".", "").replace(",", ".")))
        if re.fullmatch(r"\d+/[1-9]\d*", digits):
            over, under = digits.split("/")
            plain.add(int(over) / int(under))
    return {v * s for v in plain for s in {scale, 1 if len(magnitude or "") == 1 else scale}}


def _spoken(text: str) -> float:
    """Two hundred and fifty; hundreds multiply what stands before them."""
    total, last = 0.0, 0.0
    for word in re.findall(r"[a-z]+", text.lower()):
        value = NUMBER_WORDS.get(word, _ALSO.get(word, 0))
        if word in _SCALES or word == "dozen":
            last = max(last, 1) * value
            if last >= 1000:
                total, last = total + last, 0.0
        else:
            last += value
    return total + last


def _plain(text: str, values: Iterable[float]) -> set[Reading]:
    found: set[Reading] = {("number", v) for v in values}
    if not text[0].isdigit():
        return found
    if re.fullmatch(r"\d\d?\.[0-5]\d", text):
        found |= {("time", t) for t in _clock(text)}
    if re.fullmatch(r"\d\d?/\d\d?(/\d+)?", text):
        first, second = (int(n) for n in text.split("/")[:2])
        days = ((first, second), (second, first))
        found |= {("date", m, d) for m, d in days if 1 <= m <= 12 and 1 <= d <= 31}
    return found


def _implied(reading: Reading) -> Iterator[Reading]:
    """What a source bears out that has ``reading``."""
    match reading:
        case ("time", int(minutes)) if minutes % 60 == 0:
            hour = minutes // 60
            yield from (("number", float(h)) for h in (hour, hour % 12 or 12))
        case ("amount", unit, float(value)):
            yield from (("amount", unit, float(int(value))), ("number", value))
            yield ("number", float(int(value)))
        case ("date", int(month), int(day)):
            yield from (("month", month), ("number", float(day)))
        case ("number", float(value)) if value <= 31:
            yield ("loose", value)
        case ("literal", str(text)) if re.fullmatch(r"\d+[.,]\d\d", text):
            yield ("number", float(re.split("[.,]", text)[0]))  # 318 for 318.40
        case ("code", str(text)):
            yield from (("number", float(n)) for n in re.findall(r"\d+", text))


def _hours(value: float) -> set[int]:
    """Minutes of the day that a plain number may stand for: 7, or 1900."""
    if value <= 24 and value % 1 == 0:
        return _clock(f"{value:.0f}:00")
    if 100 <= value < 2400 and value % 1 == 0 and value % 100 < 60:
        return _clock(f"{value // 100:.0f}:{value % 100:02.0f}")
    return set()


def _shared(earlier: Iterable[Reading], later: Iterable[Reading]) -> set[Reading]:
    """What the first number of a range means with the unit of the second, and the other way."""
    found: set[Reading] = set()
    for one, other in ((earlier, later), (later, earlier)):
        units = [r[1] for r in one if r[0] == "amount"]
        months = [r[1] for r in one if r[0] == "date"]
        numbers = [r[1] for r in other if r[0] == "number"]
        found |= {("amount", u, n) for u in units for n in numbers}
        found |= {("date", m, int(n)) for m in months for n in numbers if float(n) <= 31}
    return found
