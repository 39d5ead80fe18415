"""The data of the feature packages: how it is made, and what comes along."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afm_mlx.common_words import COMMON
from afm_mlx.facts import fold
from afm_mlx.features import FEATURES
from afm_mlx.packages import packages
from afm_mlx.packages.package import SHIPPED, Package
from afm_mlx.text import similarity, word_edits, words
from tests.bench import feature_data, feature_mistakes, feature_names
from tests.bench.feature_data import Options, fewer, held, main
from tests.bench.feature_quantities import months, numbers, times, weekdays
from tests.bench.feature_swaps import CLASS, Row, answer, source, variant

import pytest

STACK: Row = {
    "id": "t-1",
    "app": "Messages",
    "group": "Agnieszka",
    "notifications": [
        {"title": "Agnieszka", "body": "Ruben says dinner on Tuesday at 18:30?", "minutes_ago": 9},
        {"title": "Agnieszka", "body": "Booked: THURSDAY 19:15, ref KT-4471, 318.40 paid. Ruben"},
    ],
    "summary": "Agnieszka booked dinner with Ruben Thursday 19:15, 318.40 paid, KT-4471",
    "mention": [["Agnieszka"], ["Thursday"], ["19:15"], ["318.40", "318"]],
    "avoid": ["Tuesday", "18:30"],
    "urgent": False,
}
REWRITE: Row = {
    "id": "t-2",
    "text": "hi Imre, the 41 chairs for Fjordbank come on 12 March. Milica pays",
    "friendly": "Hi Imre! The 41 chairs for Fjordbank come on 12 March, and Milica pays.",
    "professional": "Dear Imre, the 41 chairs for Fjordbank arrive on 12 March; Milica pays.",
    "concise": "Imre: 41 chairs for Fjordbank on 12 March; Milica pays.",
    "keep": ["41", "12 March", "Imre", "Milica", "Fjordbank"],
}
PROOF: Row = {
    "id": "t-3",
    "text": "Tariq dont know that Olena come on friday at 8:45.",
    "corrected": "Tariq doesn't know that Olena is coming on Friday at 8:45.",
}
ROWS = [("notifications", STACK), ("rewrite", REWRITE), ("proofread", PROOF)]


def tokens(text: str) -> set[str]:
    """Words and numbers, in small letters."""
    return set(re.findall(r"\d+(?:[.:,]\d+)*|[^\W\d_]+", text.lower()))


@pytest.mark.parametrize(("kind", "row"), ROWS)
def test_what_the_answer_had_from_the_source_it_has_after_a_swap(kind: str, row: Row) -> None:
    was, said = tokens(source(kind, row)), tokens(answer(kind, row))
    named = was & {name.lower() for name in CLASS}
    seen = set()
    for seed in range(40):
        other = variant(kind, row, random.Random(seed))
        assert other is not None
        now, saying = tokens(source(kind, other)), tokens(answer(kind, other))
        # A name changed in one place only would teach to invent names.
        assert saying - now <= said - was
        assert len(words(answer(kind, other))) == len(words(answer(kind, row)))
        assert other["id"] == row["id"] and other.keys() == row.keys()
        seen.add(answer(kind, other))
        assert not named & tokens(json.dumps(other, ensure_ascii=False))
    assert len(seen) > 30
    assert variant(kind, row, random.Random(3)) == variant(kind, row, random.Random(3))


def test_swapped_names_are_of_the_same_class() -> None:
    pool = {
        c: {*names, *feature_names.FURTHER[c]}
        for c, names in (
            ("women", feature_names.WOMEN),
            ("men", feature_names.MEN),
            ("places", feature_names.PLACES),
        )
    }
    for seed in range(20):
        other = variant("rewrite", REWRITE, random.Random(seed))
        assert other is not None
        man, woman, place = (other["keep"][i] for i in (2, 3, 4))
        # "he" and "she" elsewhere in a row would be wrong otherwise.
        assert man in pool["men"] and woman in pool["women"] and place in pool["places"]


def test_what_an_answer_must_and_must_not_say_is_swapped_too() -> None:
    for seed in range(20):
        other = variant("notifications", STACK, random.Random(seed))
        assert other is not None
        said = other["summary"].lower()
        assert all(any(a.lower() in said for a in ways) for ways in other["mention"])
        assert not any(a.lower() in said for a in other["avoid"])
        assert other["avoid"][1] in other["notifications"][0]["body"]


def test_words_that_may_be_something_else_are_no_names() -> None:
    assert not {"Rose", "Mark", "Will", "May"} & CLASS.keys()
    for name in CLASS:
        assert fold(name) not in COMMON
    nickname = {**REWRITE, "text": REWRITE["text"] + ", says Mili"}  # Milica's
    other = variant("rewrite", nickname, random.Random(0))
    assert other is not None and "Milica" in other["text"]


@pytest.mark.parametrize(
    "text",
    [
        "420 and 186 make 606",  # a sum would be wrong
        "12 rows of 14 are 168 seats",
        "Twenty of the 20 came",  # the word stays
        "an 80 page book",  # "an 90 page book"
        "in 2024",
        "Half of the 46 are gone",
    ],
)
def test_numbers_that_hang_together_stay(text: str) -> None:
    assert numbers(text, "", False, random.Random(0)) is None


def test_numbers_keep_their_form_and_order() -> None:
    text = "€1,850.50 of 41,260 seats, 48 % or 61, and 3"
    found = [float(n.replace(",", "")) for n in re.findall(r"\d[\d.,]*\d|\d", text)]
    for seed in range(30):
        swap = numbers(text, "48 %", False, random.Random(seed))
        assert swap is not None
        new = [float(n.replace(",", "")) for n in re.findall(r"\d[\d.,]*\d|\d", swap(text))]
        order = sorted(range(5), key=found.__getitem__)
        assert sorted(range(5), key=new.__getitem__) == order
        assert re.sub(r"\d", "9", swap(text)) == re.sub(r"\d", "9", text)
        assert new[-1] == 3 and new != found


def minutes(text: str) -> list[int]:
    return [60 * int(h) + int(m) for h, m in re.findall(r"(\d+):(\d\d)", text)]


def test_times_move_together() -> None:
    text = "Train 08:10, was 07:55; back by 21:40"
    for seed in range(30):
        swap = times(text, "08:10", False, random.Random(seed))
        assert swap is not None
        before, after = minutes(text), minutes(swap(text))
        (step,) = {b - a for a, b in zip(before, after, strict=True)}
        assert step and max(after) < 1440
        assert re.fullmatch(r"Train \d\d:\d\d, was \d\d:\d\d; back by \d\d:\d\d", swap(text))
    swap = times("at 8pm", "8 pm", False, random.Random(0))
    assert swap is not None and swap("at 8pm, 8 pm")[3:] in (
        "7pm, 7 pm",
        "9pm, 9 pm",
        "6pm, 6 pm",
        "10pm, 10 pm",
    )


@pytest.mark.parametrize(
    "text", ["8:15, be there at 8", "8:15 or half past nine", "meet 7:30, ok 7?", "8pm, noon"]
)
def test_times_in_other_words_stay(text: str) -> None:
    assert times(text, "", False, random.Random(0)) is None


def test_weekdays_turn_together() -> None:
    text = "Mon works, MONDAY or tues, Wednesdays never"
    names = "mon tue wed thu fri sat sun".split()
    known = [names.index(w[:3].lower()) for w in re.findall(r"(?i)\w+day|Mon\b|tues", text)]
    for seed in range(20):
        swap = weekdays(f"A {text}", "Monday", False, random.Random(seed))
        if swap is None:
            continue
        new = re.findall(r"(?i)\b(?:mon|tue|wed|thu|fri|sat|sun)\w*", swap(text))
        turned = {(names.index(w[:3].lower()) - k) % 7 for w, k in zip(new, known, strict=True)}
        assert len(turned) == 1 and turned != {0}
        assert new[1].isupper() and new[2].islower() and new[3].endswith("days")
    for unclear in ("we sat down", "the sun is out", "Good Friday", "no weekend, Monday"):
        assert weekdays(unclear, "", False, random.Random(0)) is None
    # "wensday" would stay where its correction changes.
    assert weekdays("on wensday", "on Wednesday", True, random.Random(0)) is None


def test_months_stay_in_order() -> None:
    for seed in range(20):
        swap = months("from 12 March to Aug 4, may be", "", False, random.Random(seed))
        assert swap is not None
        text = swap("from 12 March to Aug 4, may be")
        short = "jan feb mar apr may jun jul aug sep oct nov dec".split()
        match = re.fullmatch(r"from 12 (\w+) to (\w{3}) 4, may be", text)
        assert match is not None
        assert short.index(match[2].lower()) - short.index(match[1][:3].lower()) == 5
    for unclear in ("in march we march", "31 March", "Easter is in April", "Jan said so"):
        assert months(unclear, "", False, random.Random(0)) is None


def test_fewer_notifications_lose_nothing_of_the_summary() -> None:
    more = [{"title": "Ruben", "body": "lovely photos, thanks"}, *STACK["notifications"]]
    less = fewer({**STACK, "notifications": more}, random.Random(0))
    assert less is not None and less["notifications"] == STACK["notifications"]
    assert fewer(STACK, random.Random(0)) is None  # both are in the summary
    news = {**STACK, "notifications": more, "summary": "Agnieszka moved dinner to Thursday 19:15"}
    assert fewer({**news, "mention": []}, random.Random(0)) is None  # moved from what?


TEXTS = [
    "However, she has received the equipment because they were late. I don't think it's right.",
    "The two boxes of apples are in the kitchen, and he wants to go there before Friday at noon.",
    "We could have taken your advice. Unfortunately, their library is quieter than the others.",
]


@pytest.mark.parametrize("text", TEXTS)
def test_mistakes_are_few_and_their_correction_gives_the_text(text: str) -> None:
    seen = set()
    for seed in range(60):
        spoilt = feature_mistakes.spoil(text, random.Random(seed), 2)
        assert spoilt == feature_mistakes.spoil(text, random.Random(seed), 2)
        assert spoilt is not None and spoilt != text
        edits = word_edits(spoilt, text)
        assert 1 <= len(edits) <= 4  # two mistakes, each of one word or two
        assert similarity(spoilt, text) > 0.6
        corrected = spoilt
        for start, end, to in reversed(edits):
            corrected = corrected[:start] + to + corrected[end:]
        assert corrected == text
        seen.add(spoilt)
    assert len(seen) > 20


def test_every_kind_of_mistake_is_made() -> None:
    text = " ".join(TEXTS) + " These are of an old kind, bought by us."
    for find in feature_mistakes._SHARES:
        found = list(find(text, random.Random(1)))
        assert found, find.__name__
        for mistake in found:
            assert text[mistake.start : mistake.end] != mistake.wrong
            if find is feature_mistakes.typos:
                assert mistake.wrong not in COMMON  # or nothing would be wrong
    assert feature_mistakes.spoil("Too short.", random.Random(0), 3) is None


# ---- the script


def write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")


@pytest.fixture
def hand_written(tmp_path: Path) -> Path:
    folder = tmp_path / "features"
    folder.mkdir()
    points = ["Imre brings 41 chairs", "Milica pays", "Fjordbank closes"]
    made = {
        "notifications-a": lambda i: {**STACK, "urgent": bool(i % 2)},
        "texts": lambda i: {
            "text": f"{REWRITE['friendly']} Box {i}.",
            "summary": f"{REWRITE['concise']} Box {i}.",
            "key_points": points,
        },
        "rewrite": lambda i: {
            k: v + f" No {i}." if isinstance(v, str) else v for k, v in REWRITE.items()
        },
        "proofread": lambda i: {k: v + f" Box {i}." for k, v in PROOF.items()},
        "replies": lambda i: {
            "messages": [{"from": "Milica", "text": f"Is it box {i}?"}],
            "replies": ["Yes, it is.", "No, sorry Milica."],
        },
        "changes": lambda i: {
            "text": f"Imre has box {i}.",
            "instruction": "give it to Milica",
            "output": f"Milica has box {i}.",
        },
    }
    for name, row in made.items():
        rows = [{**row(i), "id": f"{name}-{i}"} for i in range(12)]
        write(folder / f"{name}.train.jsonl", rows)
        kind = name.removesuffix("-a")
        # Whoever looks into it fails.
        (folder / f"{kind}.eval.jsonl").write_bytes(b"\xff no JSON, for measuring only\n")
    return folder


def test_the_same_bytes_twice_and_evaluation_rows_are_never_read(
    hand_written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_data, "PASSES", 1)
    for out in ("one", "two"):
        main(Options(hand_written, tmp_path / out))
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").glob("*/*"))
    assert len(files) == 3 * len(feature_data.KIND)
    for file in files:
        content = (tmp_path / "one" / file).read_bytes()
        assert content == (tmp_path / "two" / file).read_bytes()
        if file.name == "eval.jsonl":
            assert content == b"\xff no JSON, for measuring only\n"
        elif file.name == "train.jsonl":
            assert content


def test_nothing_is_made_of_rows_held_out(hand_written: Path, tmp_path: Path) -> None:
    main(Options(hand_written, tmp_path / "out"))
    found = 0
    for name, pattern in (("rewrite", r"No (\d+)\."), ("proofread", r"Box (\d+)\.")):
        package = "proofread" if name == "proofread" else "concise"
        numbers = {i for i in range(12) if held({"id": f"{name}-{i}"})}
        text = (tmp_path / "out" / package / "train.jsonl").read_text("utf-8")
        of_their_kind = [t for t in text.splitlines() if name == "rewrite" or "doesn't" in t]
        taught = {int(n) for line in of_their_kind for n in re.findall(pattern, line)}
        assert taught and not taught & numbers
        found += len(numbers)
    assert found


# ---- what comes along


@pytest.fixture(scope="module")
def shipped() -> dict[str, Package]:
    return packages()


def conversations(path: Path) -> Iterator[dict[str, str]]:
    """User's and assistant's words by role."""
    for line in path.read_text("utf-8").splitlines():
        yield {m["role"]: m["content"] for m in json.loads(line)["messages"]}


def normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def test_packages_are_small_and_ask_as_the_features_do(shipped: dict[str, Package]) -> None:
    assert set(shipped) == set(feature_data.KIND)
    assert {f for p in shipped.values() for f in p.features} <= FEATURES.keys()
    for package in shipped.values():
        instructions = {FEATURES[f].instructions for f in package.features}
        for file in (package.train, package.held_out):
            assert 0 < file.stat().st_size < 1_000_000
            turns = list(conversations(file))
            # Changed instructions need data made anew: the adapter would never see them.
            assert {t["system"] for t in turns} == instructions
            assert all(t["user"].strip() and t["assistant"].strip() for t in turns)
        assert package.evaluation.is_file()


def _runs(text: str, size: int = 14) -> set[tuple[str, ...]]:
    """All runs of so many words."""
    found = text.split()
    return {tuple(found[i : i + size]) for i in range(len(found) - size + 1)}


def test_no_evaluation_row_is_in_any_training_row(shipped: dict[str, Package]) -> None:
    taught = " | ".join(
        normal(t["user"])
        for package in shipped.values()
        for file in (package.train, package.held_out)
        for t in conversations(file)
    )
    runs = {run for text in taught.split(" | ") for run in _runs(text)}
    count = 0
    for package in shipped.values():
        for line in package.evaluation.read_text("utf-8").splitlines():
            for name in package.features:
                feature: Any = FEATURES[name]
                asked = feature.render(feature.input.from_json(json.loads(line)))
                assert normal(asked) not in taught
                shared = _runs(normal(asked)) & runs
                assert not shared, (line, shared)
                count += 1
    assert count > 300


def test_no_row_held_out_is_trained_on(shipped: dict[str, Package]) -> None:
    for package in shipped.values():
        taught = {(t["system"], normal(t["user"])) for t in conversations(package.train)}
        kept = {(t["system"], normal(t["user"])) for t in conversations(package.held_out)}
        assert len(kept) > 10 and not taught & kept


def test_a_third_of_all_texts_to_proofread_is_correct(shipped: dict[str, Package]) -> None:
    turns = list(conversations(shipped["proofread"].train))
    right = sum(t["user"] == t["assistant"] for t in turns)
    assert 0.28 < right / len(turns) < 0.38


def test_shipped_packages_lie_beside_the_adapters() -> None:
    assert SHIPPED.is_dir() and SHIPPED.parent.name == "adapters"
