"""Make the data of the feature packages from the hand-written rows.

uv run python -m tests.bench.feature_data FEATURES

Training rows come from ``FEATURES/*.train.jsonl`` alone, as the features ask for them: the rows
themselves, the same with other facts (:mod:`tests.bench.feature_swaps`), correct text with mistakes
put in (:mod:`tests.bench.feature_mistakes`), stacks without what their summary says nothing of, and
other tones as what a tone is made of. One row in ten is held out with all that could be made of it.
Evaluation rows are copied as they are; nothing here looks into them.
"""

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afm_mlx.facts import fold, unsupported
from afm_mlx.features import FEATURES, Proofread
from afm_mlx.files import write_bytes
from afm_mlx.packages import SHIPPED
from afm_mlx.packages.package import EVALUATION, HELD_OUT, TRAIN
from afm_mlx.text import sentences, words
from tests.bench.feature_mistakes import spoil
from tests.bench.feature_swaps import ANSWER, Row, answer, holds, source, variant

import tyro
from tyro.conf import Positional

LIMIT = 950_000
"""Bytes of a training file."""
PASSES = 3
"""How often other facts are put into a row, if there is room."""
SPOILT = 430
"""Correct texts that mistakes are put into."""

KIND = {
    "notifications": "notifications",
    "priority": "notifications",
    "summary": "texts",
    "key-points": "texts",
    "proofread": "proofread",
    "friendly": "rewrite",
    "professional": "rewrite",
    "concise": "rewrite",
    "smart-reply": "replies",
    "change": "changes",
}
"""Rows that a package is made of."""
VERSIONS = {
    "friendly": ("text", "professional"),
    "professional": ("text", "friendly"),
    "concise": ("text", "friendly", "professional"),
}
"""What a tone is made of: the text, and versions of it, as far as they lack nothing."""
ASKED = {
    "friendly": ("make it friendlier", "sound warmer please", "make it friendly"),
    "professional": ("make it more professional", "more formal please", "polite and professional"),
    "concise": ("make it shorter", "shorten it", "say it in fewer words"),
    "corrected": ("fix the mistakes", "correct the spelling and grammar"),
}
"""Changes whose answers stand in other rows."""
ALIKE = (
    {"Messages", "WhatsApp", "Loopchat", "Signal", "Telegram"},
    {"Mail", "Outlook", "Gmail"},
    {"Slack", "Teams"},
    {"Jira", "Asana", "Linear"},
)
"""Apps that could have shown the same."""

_DEPENDS = re.compile(  # on the letters or the sum of what would be swapped
    r"alphabet|order|sort|rhym|poem|haiku|initial|translat|character|convert|total|add up|round"
    r"|24|12-hour|spell|digits|number|acronym|hashtag|emoji",
    re.IGNORECASE,
)
_OF_EARLIER = re.compile(
    r"\b(?:mov\w+|now|again|still|back|instead|after all|chang\w+|no longer|another|both|all|twice"
    r"|more|also|too|new|earlier|later|two|three|four|five|six|seven|eight|nine|ten|\w+teen|everyone"
    r"|others?|correct\w*|resched\w*|reopen\w*|postpon\w*|cancel\w*)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Sample:
    """An input of a feature and what to answer."""

    feature: str
    item: Row
    answer: str

    def line(self) -> str:
        """The conversation, as the feature asks an adapter."""
        feature: Any = FEATURES[self.feature]
        asked = feature.messages(feature.input.from_json(self.item), examples=False)
        turns = [{"role": m.role, "content": m.content} for m in asked]
        turns.append({"role": "assistant", "content": self.answer})
        return json.dumps({"messages": turns}, ensure_ascii=False) + "\n"

    @property
    def understood(self) -> bool:
        """Whether the feature reads the answer as it stands."""
        feature: Any = FEATURES[self.feature]
        reading = feature.read(self.answer, feature.input.from_json(self.item))
        value = reading.value
        if isinstance(value, Proofread):
            return value.corrected.strip() == self.answer.strip()
        if isinstance(value, bool):
            return True
        said = "\n".join(value) if isinstance(value, list) else value
        return reading.note is None and _spoken(said) == _spoken(self.answer)


def _spoken(text: str) -> list[str]:
    return [word for word in words(text) if word != "-"]


def rows(folder: Path, kind: str) -> list[Row]:
    """The hand-written training rows of a kind."""
    found: list[Row] = []
    for file in sorted(folder.glob(f"{kind}*.train.jsonl")):
        found += [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return found


def held(row: Row) -> bool:
    """Whether a row is held out, for good."""
    return hashlib.sha256(row["id"].encode()).digest()[0] % 10 == 0


def samples(package: str, row: Row, draw: random.Random | None = None) -> Iterator[Sample]:
    """What a package learns of a row; with ``draw`` of one with other facts."""
    match package:
        case "notifications":
            yield Sample("notification-summary", row, row["summary"])
            yield from samples("priority", row)
        case "priority":
            yield Sample(package, row, "yes" if row["urgent"] else "no")
        case "summary":
            yield Sample(package, row, row["summary"])
        case "key-points":
            yield Sample(package, row, "\n".join(f"- {p}" for p in row["key_points"]))
        case "proofread":
            yield Sample(package, row, row["corrected"])
        case "smart-reply":
            yield Sample(package, row, "\n".join(row["replies"]))
        case "change":
            yield Sample(package, row, row["output"])
        case tone:
            versions = VERSIONS[tone] if draw is None else (draw.choice(VERSIONS[tone]),)
            for version in versions:
                shorter = tone != "concise" or _shorter(row[version], row[tone])
                if shorter and not _lost(row, version, row[tone]):
                    yield Sample(tone, {"text": row[version]}, row[tone])


def _lost(row: Row, version: str, answer: str) -> bool:
    """Whether an answer has something of the text that a version of it leaves out."""
    lost = (_stems(row["text"]) - _stems(row[version])) & _stems(answer)
    return len(lost) > 1 or bool(lost and unsupported(answer, row[version]))


def _shorter(text: str, concise: str) -> bool:
    return len(words(concise)) <= 0.7 * len(words(text)) + 1


# ---- made of the rows


def varied(package: str, row: Row, draw: random.Random) -> Row | None:
    """``row`` with other facts, under another app, or nothing."""
    kind = KIND[package]
    if package == "change" and _DEPENDS.search(row["instruction"]):
        return None
    found = variant(kind, row, draw)
    if found is not None and kind == "notifications":
        return _elsewhere(found, draw)
    return found


def _elsewhere(row: Row, draw: random.Random) -> Row:
    """``row`` under another app of the same sort, where nobody speaks of it."""
    said = f"{answer('notifications', row)} {json.dumps(row['notifications'])} {row['group']}"
    for apps in ALIKE:
        if row["app"] in apps and row["app"].lower() not in said.lower():
            return {**row, "app": draw.choice(sorted(apps))}
    return row


def fewer(row: Row, draw: random.Random) -> Row | None:
    """A stack without some earlier notifications that its summary has nothing of, not a word and
    no news of them, or nothing."""
    stack, summary = row["notifications"], row["summary"]
    said = _stems(summary)
    idle = [i for i, n in enumerate(stack[:-1]) if not _stems(n["body"]) & said]
    if not idle or _OF_EARLIER.search(summary):
        return None
    left_out = set(draw.sample(idle, draw.randint(1, len(idle))))
    kept = [n for i, n in enumerate(stack) if i not in left_out]
    less = {**row, "notifications": kept}
    known = _stems(source("notifications", row)) & said
    if not known <= _stems(source("notifications", less)) or not holds("notifications", less):
        return None
    return less


def _stems(text: str) -> set[str]:
    """What a text is about: its longer words by their beginnings, and all numbers."""
    found = re.findall(r"\d+|[^\W\d_]{3,}", text)
    return {fold(w)[:5] for w in found} - set("the and for you are has not but its was".split())


def correct_texts(folder: Path) -> list[str]:
    """Correct texts of a sentence or some, of rows that are not held out."""
    found = []
    for kind, *fields in (("proofread", "corrected"), ("rewrite", "professional", "friendly")):
        for row in rows(folder, kind):
            found += [row[f].strip() for f in fields if not held(row)]
    for row in rows(folder, "texts"):
        found += [s.strip() for s in sentences(row["summary"]) if not held(row)]
    return [t for t in dict.fromkeys(found) if 6 <= len(words(t)) <= 70]


def corrections(folder: Path) -> Iterator[Sample]:
    """Correct texts with mistakes, then correct ones as they are: a third of all, with the rows."""
    draw = random.Random("corrections")
    texts = correct_texts(folder)
    draw.shuffle(texts)
    wrong = 0
    for text in texts:
        spoilt = spoil(text, draw, draw.choice([1, 1, 2, 2, 3, 4]))
        if spoilt is not None and wrong < SPOILT:
            wrong += 1
            yield Sample("proofread", {"text": spoilt}, text)
    given = [row for row in rows(folder, "proofread") if not held(row)]
    right = sum(row["text"] == row["corrected"] for row in given)
    draw.shuffle(texts)
    for text in texts[: (len(given) + wrong - 3 * right) // 2]:
        yield Sample("proofread", {"text": text}, text)


def changes(folder: Path) -> Iterator[Sample]:
    """Changes of tone, and corrections."""
    draw = random.Random("changes")
    for kind, count in (("rewrite", 180), ("proofread", 60)):
        given = [r for r in rows(folder, kind) if not held(r)]
        for row in draw.sample(given, min(count, len(given))):
            field = draw.choice([f for f in ANSWER[kind] if row[f] != row["text"]] or [""])
            if field:
                item = {"text": row["text"], "instruction": draw.choice(ASKED[field])}
                yield Sample("change", item, row[field])


def made(package: str, folder: Path) -> Iterator[tuple[str, Sample]]:
    """All that a package learns, and how each was made, the best first."""
    taught = [row for row in rows(folder, KIND[package]) if not held(row)]
    for row in taught:
        yield from (("by hand", s) for s in samples(package, row))
    if package == "proofread":
        yield from (("mistakes put in or correct", s) for s in corrections(folder))
    if package == "change":
        yield from (("other rows", s) for s in changes(folder))
    if package == "notifications":
        for row in taught:
            less = fewer(row, random.Random(f"fewer {row['id']}"))
            if less is not None:
                yield "fewer notifications", Sample("notification-summary", less, row["summary"])
    for turn in range(PASSES):
        for row in taught:
            draw = random.Random(f"{package} {row['id']} {turn}")
            other = varied(package, row, draw)
            for sample in samples(package, other, draw) if other is not None else ():
                turns = 2 if package == "priority" else 1
                if sample.feature != "priority" or (row["urgent"] and turn < turns):
                    yield "other facts", sample  # few are urgent: more of them, but not most


@dataclass(frozen=True)
class Options:
    features: Positional[Path]
    """Folder of the hand-written rows."""
    out: Path = SHIPPED


def main(options: Options) -> None:
    for package, kind in KIND.items():
        lines: dict[str, str] = {}
        size = 0
        for how, sample in made(package, options.features):
            line = sample.line()
            if line in lines or (how != "by hand" and not sample.understood):
                continue
            size += len(line.encode())
            if size > LIMIT:
                break
            lines[line] = how
        kept = [
            s.line()
            for row in rows(options.features, kind)
            if held(row)
            for s in samples(package, row)
            if kind != "rewrite" or s.item["text"] == row["text"]
        ]
        folder = options.out / package
        evaluation = (options.features / f"{kind}.eval.jsonl").read_bytes()
        write_bytes(folder / TRAIN, "".join(lines).encode(), new_folder=True)
        write_bytes(folder / HELD_OUT, "".join(kept).encode())
        write_bytes(folder / EVALUATION, evaluation)
        print(
            f"{package}: {len(lines)} rows, {dict(Counter(lines.values()))}, {len(kept)} held out"
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
