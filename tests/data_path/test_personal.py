"""Personal data is found in all its usual forms, and dates, prices and the like are not."""

import random

from afm_mlx.data.personal import KINDS, Finding, find, mask

import pytest

FORMS = {
    "email": """
        ana@example.org
        ana.b+news@mail.example.co.uk
        müller_x@bücher.example
        ANA-B@EXAMPLE.COM
    """,
    "phone": """
        +49 30 1234567
        +49-(0)30-1234567
        +44 (0)20 7946 0958
        +442079460958
        +33 1 23 45 67 89
        +358 9 12345678
        +1 (415) 555-2671
        +1 415 555 2671 ext. 12
        +14155552671
        0049 30 1234567
        (415) 555-2671
        (415)555-2671 x123
        415-555-2671
        415.555.2671
        415 555 2671
        415‑555‑2671
        1-800-555-0199
        020 7946 0958
        (01234) 567890
        07700 900123
        030/12345678
        01 23 45 67 89
    """,
    "card": """
        4111111111111111
        4111 1111 1111 1111
        4111-1111-1111-1111
        4111 1111 1111 1111
        4222222222222
        5555 5555 5555 4444
        2223 0031 2200 3222
        3782 822463 10005
        6011 1111 1111 1117
        3056 9309 0259 04
        3530 1113 3330 0000
        6304 0000 0000 0000
    """,
    "ssn": """
        123-45-6789
        899-99-9999
        123‑45‑6789
    """,
    "iban": """
        DE89 3704 0044 0532 0130 00
        DE89370400440532013000
        gb82west12345698765432
        NO93 8601 1117 947
        FR14 2004 1010 0505 0001 3M02 606
        MT84 MALT 0110 0001 2345 MTLC AST0 01S
    """,
}
CASES = [(k, line.strip()) for k, lines in FORMS.items() for line in lines.strip().split("\n")]

HARMLESS = """
    On 2024-01-15, 15.01.2024, 01/15/2024 and 15 January 2024 at 10:30-11:45.
    2024-01-15T10:00:00.123456+01:00 and 20240115103000 and 1700000000
    It cost $1,234,567.89, 1.234.567,89 EUR or 1 234 567 yen, up from 100 200 3000 €.
    The wars of 1914-1918 and 1939–1945; seasons 1999 2000 2001 2002.
    phone: 2007 2010, mobile 2024-01-15, call 15.01.2024, text 1914–1918
    Version 10.15.7.2024 and 1.2.3-4567, then v415.555.2671
    ISBN 978-3-16-148410-0, 0-306-40615-2, 9780306406157
    Hosts 192.168.100.200, 255.255.255.255:8080 and fe80::1234:5678:9abc
    550e8400-e29b-41d4-a716-446655440000 and 0x4155552671
    It is at 52.5200066, 13.4049540 and grew to 3.141592653589793.
    https://example.org/items/415-555-2671 and /4111111111111111
    Scores 21-15, 345-678-12345, part ABC-415-555-2671-7, room 123-456
    415-155-2671 and 115-555-2671 and 911-555-2671 are no numbers of North America.
    000-45-6789, 666-45-6789, 912-45-6789, 123-00-6789, 123-45-0000, 123-45-67890
    4111 1111 1111 1112 and 1234 5678 9012 3452 and 9111111111111111
    4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 and 41 11 11 11 11 11 11 11
    DE89 3704 0044 0532 0130 01, DE8937040044053201300, XX89370400440532013000
    ana@host, @ana, a@b.c, react@18.0.2, 5 @ 3.50, user at example.org
    1 + 10000000 = 10000001; f(x)+1234567890123456789; a+123456789
"""
HARMLESS_CASES = [line.strip() for line in HARMLESS.strip().split("\n")]


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_forms_are_masked_whole(kind: str, form: str) -> None:
    # Each in a sentence, in brackets, with a number behind and at both ends of the text.
    for text in ("It is {}.", "({})", "{}, 3 times", "{}", "Ana: {}\n2024", "“{}”"):
        assert mask(text.format(form)) == text.format(f"[{kind}]")


@pytest.mark.parametrize("text", HARMLESS_CASES)
def test_harmless_numbers_stay(text: str) -> None:
    assert find(text) == []


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Tel.: 555 0123", "Tel.: [phone]"),
        ("call me on 0171234567", "call me on [phone]"),
        ("Call 4155552671 now", "Call [phone] now"),
        ("phone number is 0800 1111", "phone number is [phone]"),
        ("SSN: 123456789", "SSN: [ssn]"),
        ("my social security number is 123 45 6789.", "my social security number is [ssn]."),
    ],
)
def test_named_numbers(text: str, masked: str) -> None:
    assert mask(text) == masked
    unnamed = text[masked.index("[") :]
    assert mask(unnamed) == unnamed  # the words before it are what gives it away


def test_several_in_order() -> None:
    text = "ana@example.org, 415-555-2671 or bo@example.org\n4111 1111 1111 1111 123"
    found = find(text)
    assert [text[f.start : f.stop] for f in found] == [
        "ana@example.org",
        "415-555-2671",
        "bo@example.org",
        "4111 1111 1111 1111",  # without the security code behind it
    ]
    assert found[0] == Finding("email", 0, 15)
    assert mask(text) == "[email], [phone] or [email]\n[card] 123"


def test_a_number_behind_a_phone_number_hides_nothing() -> None:
    # The pattern took "14" along, met ":30" and gave the whole number up.
    assert mask("+49 30 1234567 14:30") == "[phone] 14:30"


def test_masked_text_holds_nothing_more() -> None:
    text = "\n".join(form for _, form in CASES)
    assert find(mask(text)) == []
    assert set(f.kind for f in find(text)) == set(KINDS)


def luhn_digit(digits: str) -> str:
    """The digit that makes ``digits`` a card number, by trying all ten."""
    for last in "0123456789":
        total = 0
        for i, digit in enumerate(reversed(digits + last)):
            total += int(digit) if i % 2 == 0 else sum(map(int, str(2 * int(digit))))
        if total % 10 == 0:
            return last
    raise AssertionError


@pytest.mark.parametrize("seed", range(20))
def test_check_digits_decide(seed: int) -> None:
    rng = random.Random(seed)
    stem = "4" + "".join(rng.choices("0123456789", k=14))
    for last in "0123456789":
        expected = ["card"] if last == luhn_digit(stem) else []
        assert [f.kind for f in find(stem + last)] == expected
    account = "".join(rng.choices("0123456789", k=18))
    valid = 98 - int(account + "131400") % 97  # D is 13, E is 14
    for check in range(2, 99):
        expected = ["iban"] if check == valid else []
        assert [f.kind for f in find(f"DE{check:02}{account}") if f.kind == "iban"] == expected


PIECES = (
    "a|a.|a@a.|a@a-|x@é.|1|1 |1a |+1|+49 1 |+4911111111111111111a|(0|DE89 |DE89A|4111 |4111-|"
    "call |phone 1.|01 23 45 67 8|é1-|1.1(|ssn |00 1"
).split("|")


@pytest.mark.parametrize("piece", PIECES)
def test_no_pattern_explodes(piece: str) -> None:
    # Would not end in the life of the universe if a pattern backtracked exponentially, nor in
    # a minute if it did so quadratically.
    text = piece * (30_000 // len(piece))
    assert find(mask(text)) == []
