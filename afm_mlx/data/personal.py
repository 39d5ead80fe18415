"""Find and mask personal data: e-mail, phone and card numbers, US social security numbers, IBANs.

Patterns propose, check sums decide: Luhn's sum and the issuer's prefix for cards (ISO/IEC 7812),
the remainder by 97 and the country's length for IBANs (ISO 13616), the ranges ever issued for
social security numbers. Phone numbers have no check sum, so only unmistakable forms count:
international ones after + or 00, North American ones in three groups, national ones in groups
after a 0, and other numbers right after words like "phone" or "call me at".

Every pattern runs in linear time: quantifiers are bounded or cannot give back, and no two of
them can share the same characters.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("email", "iban", "card", "ssn", "phone")
"""What is looked for; where two kinds overlap the earlier one counts."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Finding:
    """Personal data at ``text[start:stop]``; ``kind`` is one of :data:`KINDS`."""

    kind: str
    start: int
    stop: int


def find(text: str) -> list[Finding]:
    """Personal data in ``text``, in order and without overlaps."""
    found: list[Finding] = []
    taken = bytearray(len(text))
    for kind, finder in zip(KINDS, (_emails, _ibans, _cards, _ssns, _phones), strict=True):
        for start, stop in finder(text):
            if not any(taken[start:stop]):
                taken[start:stop] = b"\1" * (stop - start)
                found.append(Finding(kind, start, stop))
    return sorted(found, key=lambda finding: finding.start)


def mask(text: str) -> str:
    """``text`` with ``[email]``, ``[phone]`` and so on in the place of personal data."""
    pieces, last = [], 0
    for finding in find(text):
        pieces += [text[last : finding.start], f"[{finding.kind}]"]
        last = finding.stop
    return "".join(pieces) + text[last:]


_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_EMAIL = re.compile(
    rf"(?<![\w.%+-])[\w%+-][\w.%+-]{{0,63}}@(?:{_LABEL}\.){{1,8}}[^\W\d_]{{2,24}}\b"
)


def _emails(text: str) -> Iterator[Span]:
    return (m.span() for m in _EMAIL.finditer(text))


_IBAN_LENGTHS = {  # SWIFT's registry of IBAN formats
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
_IBAN = re.compile(
    r"(?<![^\W_])(?=[A-Z]{2}\d)(?:"
    + "|".join(
        rf"(?:{countries.replace(' ', '|')})\d\d(?:[ \u00a0]?[A-Z\d]){{{length - 4}}}"
        for length, countries in _IBAN_LENGTHS.items()
    )
    + r")(?![^\W_])",
    re.IGNORECASE | re.ASCII,
)


def _ibans(text: str) -> Iterator[Span]:
    for match in _IBAN.finditer(text):
        code = "".join(match[0].split())
        if int("".join(str(int(c, 36)) for c in code[4:] + code[:4])) % 97 == 1:
            yield match.span()


_WHOLE = r"[0-9]++(?!\w|[.,/][0-9])"
_GROUPED = re.compile(rf"(?<![\w.,/+-]){_WHOLE}(?:[ \u00a0-]{_WHOLE})*+")
_GROUP = re.compile(r"[0-9]+")
_ISSUERS = re.compile(  # prefix and number of digits
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-59]\d{11}|[689]\d{12})"  # Diners Club
    r"|(?:6011|64[4-9]\d|65\d\d|35(?:2[89]|[3-8]\d)|62\d\d|220[0-4])\d{12,15}"
    # Discover, JCB, UnionPay, Mir
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{9,15}"  # Maestro
)


def _cards(text: str) -> Iterator[Span]:
    for run in _GROUPED.finditer(text):
        groups = list(_GROUP.finditer(text, *run.span()))
        first = 0
        while first < len(groups):
            last = _card(groups[first : first + 6])
            if last is not None:
                yield groups[first].start(), groups[first + last].end()
                first += last
            first += 1


def _card(groups: list[re.Match[str]]) -> int | None:
    """Which group ends the card number that starts with the first one, if any does.

    Only the last group of a card has fewer than three digits; columns of small numbers are none.
    """
    digits, found = "", None
    for i, group in enumerate(groups):
        digits += group[0][:20]
        if len(digits) >= 13 and _ISSUERS.fullmatch(digits) and _luhn(digits):
            found = i
        if len(group[0]) < 3 or len(digits) > 19:
            break
    return found


def _luhn(digits: str) -> bool:
    doubled = (sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return (sum(int(d) for d in digits[::-2]) + sum(doubled)) % 10 == 0


_DASH = r"[\u2010-\u2013-]"
_SSN = r"(?!000|666|9)[0-9]{3}%s(?!00)[0-9]{2}%s(?!0000)[0-9]{4}(?![\w]|-\w|[.,][0-9])"
_SSNS = re.compile(
    rf"(?<![\w.,/+-]){_SSN % (_DASH, _DASH)}"
    r"|\b(?i:ssn|social security(?: number| no\.?)?)(?i: is)?[:#]?[ ]{0,2}"
    rf"(?P<named>{_SSN % ('[ -]?', '[ -]?')})"
)


def _ssns(text: str) -> Iterator[Span]:
    return (m.span("named") if m["named"] else m.span() for m in _SSNS.finditer(text))


_YEAR = r"(?:1[5-9]|20)[0-9]{2}"
_DATE = rf"{_YEAR}[./-][0-9]{{1,2}}[./-]|[0-9]{{1,2}}[./-][0-9]{{1,2}}[./-]{_YEAR}"
_SPACE = r"[ \u00a0\u2010-\u2013-]"  # and dashes
_BETWEEN = rf"\)?(?:{_SPACE}|[./])?\(?"  # two digits of an international number
_END = (
    r"(?:[ ]?(?i:extension|ext\.?|x)[ ]?[0-9]{1,6})?"
    r"(?!\w|[.,/:\u2010-\u2013-]?[0-9]|[ ]?[%€]|[$£])"
)
_PHONE = re.compile(
    r"(?<![\w+$€£#])(?<!\w[.,/-])(?:"
    # +1 (415) 555-2671, 415.555.2671
    rf"(?:\+?1(?:{_SPACE}|\.)?)?"
    rf"(?:\((?!.11)[2-9][0-9]{{2}}\){_SPACE}?|(?!.11)[2-9][0-9]{{2}}(?:{_SPACE}|\.))"
    rf"[2-9][0-9]{{2}}(?:{_SPACE}|\.)[0-9]{{4}}"
    # +49 30 1234567, +44 (0)20 7946 0958, 0049 30 1234567
    rf"|\+[1-9](?:{_BETWEEN}[0-9]){{8,14}}"
    rf"|(?<![0-9][ ])00[1-9][0-9]{{0,2}}[ ][0-9](?:{_BETWEEN}[0-9]){{6,11}}"
    # 020 7946 0958, (01234) 567890, 01 23 45 67 89
    r"|(?<![0-9][ ])(?:\(0[1-9][0-9]{1,3}\)[ ]?|0[1-9][0-9]{1,3}[ /-])"
    r"(?:[0-9]{6,8}|[0-9]{3,4}[ -][0-9]{3,4})"
    r"|(?<![0-9][ ])0[1-9](?:[ .-][0-9]{2}){4}"
    rf"){_END}"
)
_NAMED_PHONE = re.compile(
    r"\b(?i:(?:(?:tele|cell)?phone|tel|mobile|fax|whatsapp)(?:[ ](?:number|no\.?|nr\.?))?"
    r"|(?:call|text|ring|dial|reach)(?:[ ](?:me|us|him|her|them))?)"
    r"(?i:[ ](?:is|at|on))?[.:]{0,2}[ ]{0,2}"
    rf"(?P<number>(?!(?:{_YEAR}.)?{_YEAR}\b|{_DATE})\(?[0-9](?:{_BETWEEN}[0-9]){{6,14}}{_END})"
)


def _phones(text: str) -> Iterator[Span]:
    yield from (m.span() for m in _PHONE.finditer(text))
    yield from (m.span("number") for m in _NAMED_PHONE.finditer(text))
