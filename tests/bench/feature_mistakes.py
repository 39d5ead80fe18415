"""Put mistakes into correct text, as people make them, such that only one correction is right.

Spelling (letters swapped, left out, doubled; the usual misspellings), words that sound alike,
agreement, forms of verbs, articles and little words left out or written twice, apostrophes,
capitals, commas and blanks.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from afm_mlx.common_words import COMMON
from afm_mlx.facts import common
from afm_mlx.quantities import DAY_NAMES, MONTH_NAMES
from afm_mlx.text import words

WORDS_EACH = 7
"""Words that a text must have for each mistake."""


@dataclass(frozen=True)
class Mistake:
    """Characters ``start`` to ``end`` of a correct text become ``wrong``."""

    start: int
    end: int
    wrong: str


Find = Callable[[str, random.Random], Iterator[Mistake]]

_PAIRS = """
its:it's it's:its their:there they're:their your:you're you're:your than:then then:than too:to
whose:who's who's:whose were:where where:were lose:loose hear:here know:no knew:new passed:past
weather:whether quite:quiet buy:by accept:except piece:peace off:of wear:where write:right
"""
_USUAL = """
definitely:definately separate:seperate receive:recieve received:recieved believe:beleive
necessary:neccessary tomorrow:tommorow until:untill which:wich because:becuase really:realy
beginning:begining accommodation:accomodation address:adress business:buisness calendar:calender
different:diffrent environment:enviroment experience:experiance finally:finaly friend:freind
government:goverment immediately:immediatly library:libary opportunity:oppurtunity
recommend:reccomend weird:wierd unfortunately:unfortunatly interesting:intresting
restaurant:restaraunt surprise:suprise together:togather equipment:equiptment probably:probly
usually:usualy available:availible successful:succesful appointment:apointment committee:commitee
beautiful:beutiful neighbour:nieghbour neighbours:nieghbours apologise:appologise sincerely:sincerly
"""
_VERBS = """
went:goed bought:buyed took:taked came:comed brought:bringed caught:catched broke:breaked
told:telled thought:thinked taught:teached found:finded stolen:stealed written:writed chose:choosed
forgot:forgetted grew:growed paid:payed spoke:speaked
"""
_THIRD = (
    "wants needs says goes makes takes gets looks works comes knows thinks likes gives asks starts"
    " opens closes lives plays runs seems keeps helps brings calls sends leaves arrives includes"
    " shows contains allows requires"
).split()
_AGREE = {"is": "are", "was": "were", "has": "have", "does": "do", "doesn't": "don't"}
_AGREE |= {wrong: right for right, wrong in _AGREE.items()}
_AGREEING = re.compile(
    r"\b(?:(?:he|she|it|this)\s(is|was|has|does|doesn't)|(?:we|they|these|those)\s(are|were|have|do"
    r"|don't))(?![\w'’])",
    re.IGNORECASE,
)
_THIRD_PERSON = re.compile(rf"\b(?:he|she|it|this)\s({'|'.join(_THIRD)})\b", re.IGNORECASE)
_ARTICLE = re.compile(
    r"\b(?:in|on|at|of|for|from|with|by|near|after|before)( the)(?=\s[a-z])"
    r"|\b(?:have|has|had|need|is|was|got|with|for|as|buy|send|take)( an?)(?=\s[a-z])"
)
_AN = re.compile(r"\b(?:(a)(?= [b-df-gj-np-tv-z][a-z]{2})|(an)(?= [aeio][a-z]{2}))")
_LITTLE = re.compile(
    r"\b(?:want|wants|need|needs|going|able|like|have|has|used|try|decided|ready|asked)( to)"
    r"(?=\s[a-z])"
    r"|\b(?:lot|some|most|front|because|instead|part|kind|end|cup|piece)( of)(?=\s)"
    r"|\b(?:he|she|it|we|they|you)( is| are| was| were| will| can)(?=\s[a-z])"
)
_DOUBLED = re.compile(r"\b(the|to|is|of|in|and|we|for|on|with|you|are|at)(?=\s[a-z])")
_CONTRACTED = re.compile(
    r"\b((?:do|does|ca|is|are|was|did|could|should|would|have|has)n(['’])t"
    r"|I(['’])(?:m|ve)|(?:let|that|what|there|here)(['’])s|(?:we|they|you)(['’])ve)\b",
    re.IGNORECASE,
)
_PLURAL = re.compile(
    r"\b(?:the|these|those|some|many|two|three|four|few|all|our|\d+)\s([a-z]{3,})s\b"
)
_CAPITAL = re.compile(
    rf"(?:^|[.!?]\s)([A-Z])(?=[a-z])|\b(I)\b(?!['’])|\b({'|'.join([*DAY_NAMES, *MONTH_NAMES])})\b",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"\b(?:However|Unfortunately|Finally|Meanwhile|Therefore|Luckily|Afterwards|Yes|Please note"
    r"|In addition|For example|Otherwise|Instead|After that)(,)(?=\s)"
)
_BLANK = re.compile(r"(?<=[a-z])(, )(?=[a-z])|(?<=[a-z]{3})([,?!])(?=\s|$)")
_COULD_HAVE = re.compile(r"\b(?:could|should|would|must|might) (have)\b")


def spoil(text: str, draw: random.Random, count: int) -> str | None:
    """``text`` with up to ``count`` mistakes, each in a word of its own, or nothing if it has no
    room for one."""
    count = min(count, len(words(text)) // WORDS_EACH)
    made: list[Mistake] = []
    for find in draw.choices(list(_SHARES), weights=list(_SHARES.values()), k=12 * count):
        found = [m for m in find(text, draw) if not any(_near(m, other) for other in made)]
        if found and len(made) < count:
            made.append(draw.choice(found))
    for mistake in sorted(made, key=lambda m: -m.start):
        text = text[: mistake.start] + mistake.wrong + text[mistake.end :]
    return text if made else None


def _near(one: Mistake, other: Mistake, room: int = 12) -> bool:
    return one.start < other.end + room and other.start < one.end + room


def _table(pairs: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in pairs.split())


_SOUND = _table(_PAIRS)
_SPELT = _table(_USUAL)
_FORMED = _table(_VERBS)


def _from(table: dict[str, str], text: str) -> Iterator[Mistake]:
    for match in re.finditer(r"\b[a-z]+(?:['’][a-z]+)?\b", text):
        wrong = table.get(match[0].replace("’", "'"))
        if wrong is not None:
            yield Mistake(*match.span(), wrong)


def sounds(text: str, draw: random.Random) -> Iterator[Mistake]:
    """Words that sound like others."""
    yield from _from(_SOUND, text)
    for match in _COULD_HAVE.finditer(text):
        yield Mistake(*match.span(1), "of")


def misspelt(text: str, draw: random.Random) -> Iterator[Mistake]:
    """Words that many people misspell."""
    yield from _from(_SPELT, text)


def typos(text: str, draw: random.Random) -> Iterator[Mistake]:
    """Letters swapped, left out or doubled, within a common word, so that none is left."""
    for match in re.finditer(r"(?<![\w'’-])[a-z]{5,}(?![\w'’-])", text):
        word = match[0]
        if word not in COMMON:
            continue
        i = draw.randint(1, len(word) - 3)
        wrong = draw.choice(
            [
                word[:i] + word[i + 1] + word[i] + word[i + 2 :],
                word[:i] + word[i + 1 :],
                word[:i] + word[i] + word[i:],
            ]
        )
        if wrong != word and not common(wrong):
            yield Mistake(*match.span(), wrong)


def agreement(text: str, draw: random.Random) -> Iterator[Mistake]:
    """Verbs in the wrong person."""
    for match in _AGREEING.finditer(text):
        group = 1 if match[1] else 2
        yield Mistake(*match.span(group), _AGREE[match[group].lower()])
    for match in _THIRD_PERSON.finditer(text):
        verb = match[1]
        base = "go" if verb == "goes" else verb[:-1]
        yield Mistake(*match.span(1), base)


def forms(text: str, draw: random.Random) -> Iterator[Mistake]:
    """Irregular verbs as if they were regular."""
    yield from _from(_FORMED, text)


def missing(text: str, draw: random.Random) -> Iterator[Mistake]:
    """Articles and little words left out."""
    for pattern in (_ARTICLE, _LITTLE):
        for match in pattern.finditer(text):
            yield Mistake(*match.span(match.lastindex or 0), "")


def articles(text: str, draw: random.Random) -> Iterator[Mistake]:
    """``a`` for ``an`` and the other way round."""
    for match in _AN.finditer(text):
        yield Mistake(*match.span(), "an" if match[1] else "a")


def doubled(text: str, draw: random.Random) -> Iterator[Mistake]:
    """Words written twice."""
    for match in _DOUBLED.finditer(text):
        yield Mistake(*match.span(), f"{match[0]} {match[0]}")


def apostrophes(text: str, draw: random.Random) -> Iterator[Mistake]:
    """Apostrophes left out, or put into plurals."""
    for match in _CONTRACTED.finditer(text):
        yield Mistake(*match.span(), re.sub("['’]", "", match[0]))
    for match in _PLURAL.finditer(text):
        if match[1] in COMMON and not match[1].endswith("s"):
            yield Mistake(*match.span(1), f"{match[1]}'")


def capitals(text: str, draw: random.Random) -> Iterator[Mistake]:
    """Small letters in the place of capitals."""
    for match in _CAPITAL.finditer(text):
        start, end = match.span(match.lastindex or 0)
        if text[start:end] not in ("march", "may") and text[start].isupper():
            yield Mistake(start, end, text[start:end].lower())


def punctuation(text: str, draw: random.Random) -> Iterator[Mistake]:
    """Commas left out, blanks left out or put before signs."""
    for match in _OPENING.finditer(text):
        yield Mistake(*match.span(1), "")
    for match in _BLANK.finditer(text):
        group = match.lastindex or 0
        yield Mistake(*match.span(group), "," if group == 1 else f" {match[2]}")


_SHARES: dict[Find, float] = {
    typos: 5,
    misspelt: 4,
    sounds: 6,
    agreement: 4,
    forms: 2,
    missing: 3,
    articles: 1,
    doubled: 1,
    apostrophes: 4,
    capitals: 3,
    punctuation: 2,
}
"""How often each kind is tried, in parts of all."""
