"""Every filter on text made for it; near-duplicates against brute force; the report."""

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable

from afm_mlx.data.filters import (
    STEPS,
    ExactDuplicates,
    FilterReport,
    NearDuplicates,
    PersonalData,
    Profanity,
    QualityHeuristics,
    Step,
    StepReport,
    jaccard,
    named,
    run,
    shingles,
)
from afm_mlx.data.heuristics import duplicate_ngram_share, top_ngram_share
from afm_mlx.data.profanity import profane, profane_share
from afm_mlx.data.sources import Sample
from afm_mlx.errors import InputError
from afm_mlx.tokenizer import Message

import pytest

PROSE = (
    "The harbour of the old town has been closed since the storm of last week, and nobody can"
    " say when the ferries will sail again.\nMost of the boats were pulled ashore in time, but"
    " two of them broke loose in the night and sank beside the pier.\n\nPeople who live on the"
    " islands now have to take the road along the coast, which is long and narrow.\nThe council"
    " wants to repair the wall first, and then it will look at the lighthouse."
)


def chat(*contents: str, system: str | None = None, source: str = "") -> Sample:
    roles = itertools.cycle(("user", "assistant"))
    turns = [Message(role, content) for role, content in zip(roles, contents, strict=False)]
    first = [] if system is None else [Message("system", system)]
    return Sample(messages=(*first, *turns), source=source)


def text(content: str, source: str = "") -> Sample:
    return Sample(content, source=source)


def filtered(step: Step, samples: Iterable[Sample]) -> tuple[list[Sample], StepReport]:
    report = FilterReport()
    kept = list(run(samples, [step], report))
    assert report.steps[0].kept == len(kept)
    return kept, report.steps[0]


def test_steps_in_a_row_and_their_report() -> None:
    samples = [
        text(PROSE, "a.txt:1"),
        text(PROSE.upper(), "a.txt:2"),
        text(PROSE + " Soon.", "a.txt:3"),
        chat("My address?", "It is ana@example.org, or 415-555-2671.", source="c.jsonl:1"),
        chat("And hers?", "bo@example.org", source="c.jsonl:2"),
    ]
    report = FilterReport()
    kept = list(run(samples, named(["exact", "near", "personal"]), report))
    assert [s.source for s in kept] == ["a.txt:1", "c.jsonl:1", "c.jsonl:2"]
    assert kept[1].messages[1].content == "It is [email], or [phone]."
    counts = [(s.name, s.seen, s.kept, s.removed, s.changed) for s in report.steps]
    assert counts == [("exact", 5, 4, 1, 0), ("near", 4, 3, 1, 0), ("personal", 3, 3, 0, 2)]
    assert report.steps[0].examples == ["a.txt:2: duplicate of a.txt:1"]
    assert report.steps[1].examples == ["a.txt:3: near-duplicate of a.txt:1"]
    assert report.steps[2].examples == ["c.jsonl:1: email, phone", "c.jsonl:2: email"]
    assert report.steps[2].reasons == {"email": 2, "phone": 1}
    markdown = report.to_markdown()
    assert "| near | 4 | 3 | 1 | 0 |" in markdown and "- c.jsonl:2: email" in markdown
    read = json.loads(report.to_json())["steps"]
    assert [s["seen"] for s in read] == [5, 4, 3]
    assert read[2]["reasons"] == {"email": 2, "phone": 1}
    for written in (markdown, report.to_json()):  # a report is no place for personal data
        assert "example.org" not in written and "2671" not in written


def test_reports_name_few_examples() -> None:
    samples = [text(PROSE, f"a:{i}") for i in range(20)]
    _, report = filtered(ExactDuplicates(), samples)
    assert report.removed == 19 and report.reasons == {"duplicate": 19}
    assert report.examples == [f"a:{i}: duplicate of a:0" for i in range(1, 6)]


@pytest.mark.parametrize("name", STEPS)
def test_samples_flow(name: str) -> None:
    # A step that gathers all samples first never ends here.
    endless = (text(f"{PROSE} {i}") for i in itertools.count())
    report = FilterReport()
    next(run(endless, named([name]), report))
    assert report.steps[0].name == name and report.steps[0].seen == 1


def test_unknown_steps() -> None:
    with pytest.raises(InputError, match="'exakt': choose among exact, near, personal"):
        named(["near", "exakt"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: NearDuplicates(threshold=0),
        lambda: NearDuplicates(num_perm=0),
        lambda: PersonalData(mode="hide"),
        lambda: Profanity(max_share=2),
        lambda: QualityHeuristics(min_words=5, max_words=4),
    ],
)
def test_bad_settings(make: type[Step]) -> None:
    with pytest.raises(InputError):
        make()


def test_exact_duplicates() -> None:
    samples = [
        text("One two.", "1"),
        text(" one\n\tTWO. ", "2"),
        text("One two", "3"),
        text("Straße", "4"),
        text("STRASSE", "5"),
        chat("One two.", source="6"),
        chat("a b", "c", source="7"),
        chat("a", "b c", source="8"),
        chat("A  b", "C", source="9"),
    ]
    kept, report = filtered(ExactDuplicates(), samples)
    assert [s.source for s in kept] == ["1", "3", "4", "6", "7", "8"]
    assert report.examples[-1] == "9: duplicate of 7"
    _, report = filtered(ExactDuplicates(), [text("a"), text("a")])
    assert report.examples == ["an unnamed sample: duplicate of an unnamed sample"]


def documents(seed: int) -> list[Sample]:
    """Random texts and copies of them with some words changed, in random order."""
    rng = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(3000)]
    found = []
    for _ in range(30):
        words = rng.choices(vocabulary, k=rng.choice([3, 8, 40, 150]))
        found.append(words)
        for _ in range(rng.randrange(4)):
            copy = list(words)
            for _ in range(round(rng.random() * 0.06 * len(copy))):
                copy[rng.randrange(len(copy))] = rng.choice(vocabulary)
            found.append(copy[rng.randrange(3) :])
    rng.shuffle(found)
    return [text(" ".join(words), str(i)) for i, words in enumerate(found)]


def brute_force(samples: list[Sample], threshold: float) -> list[str]:
    """Sources of what is kept if each sample is compared with all that were kept before."""
    kept: list[tuple[str, set[tuple[str, ...]]]] = []
    for sample in samples:
        words = sample.content.split()
        grams = {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}
        if all(len(grams & g) / len(grams | g) < threshold for _, g in kept):
            kept.append((sample.source, grams))
    return [source for source, _ in kept]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_near_duplicates_as_by_brute_force(seed: int, threshold: float) -> None:
    samples = documents(seed)
    expected = brute_force(samples, threshold)
    assert 20 < len(expected) < len(samples)
    kept, _ = filtered(NearDuplicates(threshold), samples)
    assert [s.source for s in kept] == expected


def test_near_duplicates_name_what_they_repeat() -> None:
    other = " ".join(f"word{i}" for i in range(60))
    samples = [text(other, "a"), text(PROSE, "b"), text(PROSE + " So.", "c"), text("...", "d")]
    kept, report = filtered(NearDuplicates(), [*samples, text("!!!", "e")])
    assert [s.source for s in kept] == ["a", "b", "d", "e"]  # without words nothing is alike
    assert report.examples == ["c: near-duplicate of b"]


def test_near_duplicates_of_many() -> None:
    # The table of sketches starts with 1,024 rows and has to grow.
    samples = [text(f"number {i} of many", str(i)) for i in range(2100)]
    kept, report = filtered(NearDuplicates(), [*samples, text("Number 2050, of many", "x")])
    assert kept == samples and report.examples == ["x: near-duplicate of 2050"]


def test_shared_instructions_make_no_duplicates() -> None:
    # All but the first of a file of chats went, since each began with the same long prompt.
    samples = [chat(f"What is {i}?", f"It is {i}.", system=PROSE) for i in range(5)]
    assert filtered(NearDuplicates(), samples)[1].removed == 0
    assert filtered(NearDuplicates(), [chat(PROSE, "Yes."), chat(PROSE, "Yes.")])[1].removed == 1


@pytest.mark.parametrize(("threshold", "num_perm"), [(0.5, 128), (0.8, 128), (0.8, 64), (1, 128)])
def test_bands_find_nearly_all(threshold: float, num_perm: int) -> None:
    bands = NearDuplicates(threshold, num_perm).num_bands
    rows = num_perm // bands
    assert bands * rows == num_perm
    assert 1 - (1 - threshold**rows) ** bands >= 0.999
    if bands > 1:  # half as many miss too many
        assert 1 - (1 - threshold ** (2 * rows)) ** (bands // 2) < 0.999


def test_shingles() -> None:
    assert shingles("a b c", 2) == {"a b", "b c"}
    assert shingles("a b", 5) == {"a b"} and shingles("") == set()
    assert jaccard({"a", "b"}, {"b", "c"}) == pytest.approx(1 / 3)
    assert jaccard(set(), set()) == 0


def test_personal_data_is_masked_or_dropped() -> None:
    samples = [chat("Write to ana@example.org", "Done", source="1"), text(PROSE, "2")]
    kept, report = filtered(PersonalData(), samples)
    assert [m.content for m in kept[0].messages] == ["Write to [email]", "Done"]
    assert kept[1] is samples[1] and report.changed == 1
    kept, report = filtered(PersonalData("drop"), samples)
    assert kept == samples[1:] and report.examples == ["1: email"]


@pytest.mark.parametrize("word", "fucking Bullshit sh1t $h!t F*cked a$$hole wh0res".split())
def test_profanities(word: str) -> None:
    assert profane(f"What a {word}, he said") == [word]
    assert profane(f"({word}) and_{word}") == [word, word]


def test_harmless_words_are_not_profane() -> None:
    # Found inside of words and names by lists that match anywhere.
    harmless = (
        "Scunthorpe Penistone Lightwater Clitheroe Essex Sussex Matsushita shiitake shitake mishit"
        " Dickens Hancock cocktail Cockburn peacock assassin assess classic bass passion analysis"
        " therapist grape snigger niggardly Nigeria whoredom Slutsk Twatt Fuchs cumulative"
        " circumstance Dick Pussy-cat cock ass chink spic-and-span retard dyke 7175 5h17 $17"
    )
    assert profane(harmless) == []


def test_profanity_has_a_share() -> None:
    assert profane_share("shit happens") == 0.5 and profane_share("") == 0
    once, twice = "shit " + "word " * 99, "shit shit " + "word " * 98
    kept, report = filtered(Profanity(), [text(once, "1"), text(twice, "2"), text(PROSE, "3")])
    assert [s.source for s in kept] == ["1", "3"]
    assert report.examples == ["2: profane words (2.0%)"]
    assert filtered(Profanity(max_share=0), [text(once)])[1].removed == 1


WORDS = PROSE.split()
LINES = [
    f"Line {i} of the list that goes on with the thing number {i} to the end" for i in range(20)
]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("12 34 !? 56", "no letters"),
        ("Just the few words of a note.", "fewer than 50 words"),
        (" ".join(f"{w} {i}th" for i, w in enumerate(WORDS * 700)), "more than 100000 words"),
        (" ".join(["a", "to", "be", "of", "I", "at"] * 20), "words too short on average"),
        (" ".join(w + "abcdefghij" for w in WORDS), "words too long on average"),
        (" #tag ".join(WORDS), "too many hash signs"),
        ("... ".join(WORDS), "too many ellipses"),
        ("\n".join("- " + line for line in LINES), "too many bullet lines"),
        ("\n".join(line + "…" for line in LINES), "too many lines that end in an ellipsis"),
        (" 12345 | ".join(WORDS), "too few words with letters"),
        (" ".join(f"wort{i}" for i in range(60)), "too few stop words"),
        (PROSE + " Lorem ipsum dolor sit amet.", "placeholder text"),
        ("\n".join([*LINES[:10], *["Go to the top"] * 12]), "too many repeated lines"),
        ("\n".join([PROSE, PROSE.split("\n")[0]]), "too many repeated lines"),
        ("\n".join(LINES) + "\n\nThe end" * 5, "too many repeated paragraphs"),
        (PROSE + " the end" * 30, "one 2-gram too often"),
        (PROSE + " and " + " so ".join(" ".join(WORDS[5:14]) for _ in "ab"), "repeated 5-grams"),
    ],
)
def test_every_rule(content: str, rule: str) -> None:
    _, report = filtered(QualityHeuristics(), [text(content, "x")])
    assert report.removed == 1 and rule in report.examples[0]


def test_good_text_keeps_all_rules() -> None:
    apart = PROSE.replace(",", " ,").replace(".", " .")  # as in WikiText
    list_of_some = PROSE + "\n- bread and milk\n- two lamps\n- a long rope"
    samples = [text(PROSE), text(apart), text(list_of_some), chat(PROSE, "Which road is that?")]
    assert filtered(QualityHeuristics(), samples)[0] == samples


def test_short_chats_are_kept() -> None:
    samples = [chat("2 + 2?", "4"), chat("Tags?", "#sun #sea"), chat("Hm", "..."), chat("Hi", "Hi")]
    kept, report = filtered(QualityHeuristics(), [*samples, chat("??", "1 2 3", source="x")])
    assert kept == samples[1:] and report.removed == 2  # a chat has to contain a letter
    stammer = chat("Go on", "no no yes " * 30)
    assert filtered(QualityHeuristics(), [stammer])[1].removed == 1


def test_limits_are_fields() -> None:
    short = text("The few words of a short note that is to be kept.")
    assert filtered(QualityHeuristics(min_words=5), [short])[0] == [short]


@pytest.mark.parametrize("seed", range(10))
def test_ngram_shares_as_by_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    words = rng.choices(["a", "bb", "ccc", "dddd", "eeeee"], k=rng.randrange(2, 40))
    size = sum(map(len, words))
    for n in (1, 2, 3, 5):
        grams = ["\0".join(words[i : i + n]) for i in range(len(words) - n + 1)]
        again = {
            place for i, gram in enumerate(grams) if gram in grams[:i] for place in range(i, i + n)
        }
        assert duplicate_ngram_share(words, n) == sum(len(words[i]) for i in again) / size
        counts = Counter(grams)
        most = max(counts.values(), default=0)
        lengths = [len(g.replace("\0", "")) for g, c in counts.items() if c == most]
        expected = most * max(lengths) / size if most > 1 else 0
        assert top_ngram_share(words, n) == pytest.approx(expected)
