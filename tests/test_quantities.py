"""Quantities mean the same however they are written."""

from afm_mlx.quantities import borne_out, quantities

import pytest


def agree(one: str, other: str) -> bool:
    """Whether the first quantity of ``one`` is one of ``other``."""
    return bool(next(quantities(one)).readings & borne_out(other))


@pytest.mark.parametrize(
    "ways",
    [
        ("7pm", "19:00", "7 p.m.", "7:00 pm", "19h00", "7.00 pm"),
        ("noon", "12:00", "12 pm", "midday"),
        ("midnight", "0:00", "12 am"),
        ("half past seven", "7:30", "seven thirty", "half seven"),
        ("quarter to eight", "7:45", "seven forty-five"),
        ("quarter past 9", "9:15", "nine fifteen"),
        ("seven o'clock", "7:00", "7 o’clock"),
        ("20%", "twenty percent", "20 per cent", "20 pct"),
        ("$1,200.50", "1200.50 dollars", "US$1200.5"),
        ("€20k", "20,000 euros", "€20.000", "20 thousand euros"),
        ("£5", "five pounds", "5 quid", "5 GBP"),
        ("14 June", "June 14th", "14th of June", "Jun 14", "2026-06-14", "14/6"),
        ("Saturday", "sat", "SATURDAYS", "Sat"),
        ("tomorrow", "tmrw"),
        ("two hundred and fifty", "250"),
        ("three thousand two hundred", "3,200", "3.200"),
        ("twenty-third", "23rd", "23"),
        ("a dozen", "12", "twelve"),
        ("1/2", "½", "0.5"),
        ("C-17", "c17"),
        ("2 million", "2m", "2,000,000"),
    ],
)
def test_ways_to_write(ways: tuple[str, ...]) -> None:
    for one in ways:
        for other in ways:
            assert agree(one, other), (one, other)


@pytest.mark.parametrize(
    ("said", "source"),
    [
        ("7am", "7pm"),
        ("8:00 am", "20:00 sharp, 7 people"),
        ("30", "14:30"),
        ("14", "14:30"),
        ("20%", "20 days"),
        ("$20", "€20"),
        ("14 June", "14 May and 3 June"),
        ("250", "two hundred and fifteen"),
        ("C-17", "C-170"),
        ("p9", "p99"),
        ("Sunday", "Saturday"),
        ("15:00", "3 apples"),
        ("1", "a car, and an apple"),
    ],
)
def test_what_is_not_the_same(said: str, source: str) -> None:
    assert not agree(said, source)


@pytest.mark.parametrize(
    ("said", "source"),
    [
        ("8", "at 8:00"),
        ("13", "13:00"),
        ("7pm", "come at 7"),
        ("19:00", "7, ok?"),
        ("€318", "€318.40"),
        ("45", "$45"),
        ("June", "14 June"),
        ("the 14th", "14 June"),
        ("14 June", "June 12 to 14"),
        ("12 June", "12-14 June"),
        ("20%", "20 to 25%"),
        ("1 hour", "an hour"),
        ("2", "both of them"),
        ("47", "Ana and 46 others liked it"),
        ("482", "#482"),
        ("99", "p99"),
    ],
)
def test_what_follows(said: str, source: str) -> None:
    assert agree(said, source)


def test_places_and_kinds() -> None:
    text = "On 3 May at 7 p.m. Ana paid €45 for 2 tickets (C-17)."
    found = [(q.kind, text[q.start : q.end]) for q in quantities(text)]
    assert found == [
        ("date", "3 May"),
        ("time", "7 p.m."),
        ("amount", "€45"),
        ("number", "2"),
        ("number", "C-17"),
    ]


def test_every_quantity_bears_itself_out() -> None:
    # Guards: "25:48", the time a run took, is no time of the day and had no reading at all.
    for text in ("25:48", "3.11.2", "1:2.5", "0142", "99/99/99", "10.10.10.10", "24/7"):
        assert agree(text, text)
