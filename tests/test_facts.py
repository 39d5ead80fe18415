"""What an answer invents is found, and what it only writes otherwise is not."""

import random

from afm_mlx.facts import Claim, Kind, english, opens, unsupported, without_repeats
from afm_mlx.text import sentences

import pytest

SOURCE = (
    "ana: lunch with Dr. Osei in room 13, at 13:00. I can come, but Mr. Lindqvist is away until"
    " 4 May. The Volta Electro bill of $45 isn't paid; Boris's talk is at 7pm."
)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Ana moved lunch to 13:00", []),
        ("Lunch moved to 14:00", ["14:00"]),
        ("Lunch with Karlov", ["Karlov"]),
        ("Karlov comes", ["Karlov"]),
        ("- Karlov comes", ["Karlov"]),
        ("Postponed: lunch", []),  # no name, though it is not in the source
        ("ANA's lunch", []),
        ("Room 13 is free", []),
        ("3 rooms", ["3"]),
        ("Lunch at 13 or 1 pm", []),
        ("In 00 minutes", ["00"]),  # the 13:00 of the source has no 00 by itself
        ("Sorry, I can't pay and I'm not OSEI", []),
        ("Boris talks at 19:00", []),
        ("Boris talks at seven", []),
        ("Boris talks at eight", ["eight"]),
        ("It costs 45", []),
        ("It costs €45", ["€45"]),
        ("It costs 45%", ["45%"]),
        ("VoltaElectro and V. Electro", []),
        ("A VE bill", []),
        ("Mr Lindqvist is back on May 4th", []),
        ("Mr Lindqvist is back in May", []),
        ("Mr Lindqvist is back on 4 June", ["4 June"]),
        ("Mr Lindqvist is back tomorrow", ["tomorrow"]),
        ("May we pay? Two of us may", ["Two"]),
        ("One of them came second", []),
        ("Ana eats with Igor Karlov and Pia", ["Igor Karlov", "Pia"]),
        ("1. Ana\n2. Boris", []),
        ("Thanks! Éva", ["Éva"]),
        ("", []),
    ],
)
def test_unsupported(answer: str, found: list[str]) -> None:
    claims = unsupported(answer, SOURCE)
    assert [claim.text for claim in claims] == found
    assert all(answer[c.start : c.end] == c.text for c in claims)


def test_kinds_and_places() -> None:
    assert unsupported("Igor pays $5 at 9:30 on Friday, two don't", "I pay, and they pay") == (
        Claim("name", "Igor", 0, 4),
        Claim("amount", "$5", 10, 12),
        Claim("time", "9:30", 16, 20),
        Claim("date", "Friday", 24, 30),
        Claim("number", "two", 32, 35),
    )
    amounts: tuple[Kind, ...] = ("amount",)
    assert unsupported("Igor pays $5", "x", amounts) == (Claim("amount", "$5", 10, 12),)


def test_other_languages() -> None:
    # Guards: every sentence of a German answer would begin with an invented name.
    german = "Der Bus kommt heute nicht, sagt Ana, weil die Brücke gesperrt ist."
    assert not english(german) and english(SOURCE) and english("Ana 13:00")
    assert unsupported("Wegen der Brücke kommt kein Bus, sagt Ana.", german) == ()
    assert [c.text for c in unsupported("Heute sagt Igor ab.", german)] == ["Igor"]


@pytest.mark.parametrize("text", ["1" * 50_000, "1." * 30_000, "seven " * 9_000, "not so " * 9_000])
def test_long_texts_take_no_longer_a_word(text: str) -> None:
    assert unsupported(text, text) == ()


@pytest.mark.parametrize(
    ("answer", "source", "denied"),
    [
        ("Ana can't come", "Ana: I can come at 7", True),
        ("Ana can't come", "Ana: cant come, sorry", False),
        ("Ana is not coming", "Ana had to cancel. She wanted to come", False),
        ("The bill isn't paid", "The bill is unpaid", False),
        ("The parcel was never sent", "The parcel was sent on Friday", True),
        ("No snow expected", "Sun all day", True),
        ("No snow expected", "Nothing but sun", False),
    ],
)
def test_denials(answer: str, source: str, denied: bool) -> None:
    kinds = [claim.kind for claim in unsupported(answer, source)]
    assert kinds == ["negation"] * denied


def test_codes() -> None:
    for answer in ("Form C17", "Form C-17", "Form c 17", "Form 17"):
        for source in ("form C-17", "form c 17", "form C17"):
            assert unsupported(answer, source) == ()
    assert [c.text for c in unsupported("Form C-1, p9 or B-17", "form C-17, p99")] == [
        "C-1",
        "p9",
        "B-17",
    ]


@pytest.mark.parametrize(
    ("before", "opening"),
    [
        ("", True),
        ("Done. ", True),
        ("Done! 🌻 ", True),
        ("Points:\n- ", True),
        ("1. ", True),
        ("She said: “", True),
        ("She said “", False),
        ("we met ", False),
        ("we met, ", False),
        ("x" * 50 + " ", False),
        ("x" * 50 + ". ", True),
        ("| a | ", True),
    ],
)
def test_openings(before: str, opening: bool) -> None:
    assert opens(before) == opening


@pytest.mark.parametrize("seed", range(20))
def test_sentences_of_the_source_invent_nothing(seed: int) -> None:
    # Whatever it is made of: an answer that is copied can have nothing of its own.
    rng = random.Random(seed)
    some = (
        "Ana and Boris,|at 7:30 pm|on 4 May 2026|$45.50|twenty-three|25:48|Ünal's|C-17|not|99%|is"
    )
    parts = some.split("|")
    source = " ".join(
        " ".join(rng.choice(parts) for _ in range(rng.randrange(1, 9))) + rng.choice(".!?")
        for _ in range(rng.randrange(1, 6))
    )
    for sentence in sentences(source):
        assert unsupported(sentence, source) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No, no, no, no", "No"),
        ("A very very good day", "A very very good day"),
        (
            "I can't come on Friday. Sorry. I can't come on Friday",
            "I can't come on Friday. Sorry. ",
        ),
        ("One. Two. Three.", "One. Two. Three."),
        ("Room 1 is free from 9. Room 2 is free from 9.",) * 2,
        ("10.10.10.10 and 555 555 555",) * 2,
        ("", ""),
    ],
)
def test_without_repeats(text: str, expected: str) -> None:
    assert without_repeats(text) == expected
