"""What can be counted about an answer: limits, facts, edits, overlap with a reference.

Every figure is a ratio of two numbers for each row. Over many rows a figure is the sum of the
first by the sum of the second, so that shares, precision, recall and F0.5 are all alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from afm_mlx.evaluation.edits import count
from afm_mlx.evaluation.overlap import chrf, rouge_l
from afm_mlx.evaluation.rows import ADVERSARIAL, Task
from afm_mlx.facts import Claim
from afm_mlx.features import Answer, Change, Text
from afm_mlx.features.reading import (
    CONCISE,
    NOTIFICATION_WORDS,
    POINT_WORDS,
    POINTS,
    REPLY_WORDS,
    SUMMARY_SENTENCES,
    SUMMARY_WORDS,
    too_long,
    unchanged,
)
from afm_mlx.text import sentences, similarity, words

FEWEST_POINTS = 3
ALIKE = 0.7
"""Replies that share so many of their words are one reply."""
TONES = ("friendly", "professional", "concise")


class Ratio(NamedTuple):
    """``part`` of ``whole``; a row to which a figure does not apply has no ratio at all."""

    part: float
    whole: float = 1.0


Scores = dict[str, Ratio]
Key = tuple[str, str, str]
"""What tells answers apart: variant, kind and row."""


@dataclass(frozen=True)
class Given:
    """An answer that was given to a task; plain values, a line of JSON.

    Attributes:
        variant: name of the adapter, empty for the model with instructions alone.
        value: ``True`` or ``False``, a list, or the text once more.
        notes: what was done to the model's words.
        cut: whether they went beyond the limits.
    """

    variant: str
    kind: str
    id: str
    value: Any
    text: str
    notes: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    tokens: int = 0
    seconds: float = 0.0
    cut: bool = False

    @classmethod
    def of(cls, variant: str, task: Task, answer: Answer) -> "Given":
        value = answer.value if isinstance(answer.value, bool | list) else answer.text
        cost = answer.metrics
        return cls(
            variant,
            task.kind,
            task.id,
            value,
            answer.text,
            answer.notes,
            answer.claims,
            cost.generated_tokens,
            cost.prefill_time + cost.decode_time,
            answer.cut,
        )

    @property
    def key(self) -> Key:
        return self.variant, self.kind, self.id

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Given":
        claims = tuple(Claim(**claim) for claim in data["claims"])
        return cls(**{**data, "notes": tuple(data["notes"]), "claims": claims})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(task: Task, given: Given) -> Scores:
    """The figures of one answer."""
    scores = _MEASURES[task.kind](task, given)
    if task.kind == "priority":
        return scores
    scores["replaced or cut"] = Ratio(bool(given.notes) or given.cut)
    if task.feature.facts:
        scores["unsupported facts"] = Ratio(bool(given.claims))
    return scores


def broken(task: Task, given: Given) -> list[str]:
    """The limits that an answer did not keep, see the README of the data."""
    text, value = given.text, given.value
    found = ["cut to its limits"] * given.cut
    match task.feature.name:
        case "notification-summary":
            found += [f"over {NOTIFICATION_WORDS} words"] * (len(words(text)) > NOTIFICATION_WORDS)
            found += ["more than one line"] * ("\n" in text.strip())
            found += ["a full stop"] * text.rstrip().endswith(".")
        case "summary":
            found += [f"over {SUMMARY_WORDS} words"] * (len(words(text)) > SUMMARY_WORDS)
            many = len(sentences(text)) > SUMMARY_SENTENCES
            found += [f"over {SUMMARY_SENTENCES} sentences"] * many
        case "key-points":
            found += ["too few or many points"] * (not FEWEST_POINTS <= len(value) <= POINTS)
            long = any(len(words(point)) > POINT_WORDS for point in value)
            found += [f"a point over {POINT_WORDS} words"] * long
        case "smart-reply":
            found += ["not two replies"] * (len(value) != 2)
            long = any(len(words(reply)) > REPLY_WORDS for reply in value)
            found += [f"a reply over {REPLY_WORDS} words"] * long
            found += ["two like replies"] * (len(value) == 2 and similarity(*value) >= ALIKE)
        case "concise":
            long = too_long(text, task.value.source)
            found += [f"over {CONCISE:.0%} of the words"] * long
    if isinstance(task.value, Text | Change) and task.kind in (*TONES, "change"):
        found += ["unchanged"] * unchanged(text, task.value)
    return found


def mentioned(task: Task, text: str) -> Ratio:
    """How many of the needed things are mentioned, in one of the ways that count."""
    wanted = task.gold.get("mention", [])
    found = [any(a.lower() in text.lower() for a in ways) for ways in wanted]
    return Ratio(sum(found), len(found))


def avoided(task: Task, text: str) -> list[str]:
    """Strings in ``text`` that no answer may have."""
    return [s for s in task.gold.get("avoid", []) if s.lower() in text.lower()]


def kept(task: Task, text: str) -> Ratio:
    """How many of the names, numbers, dates and links stand there as they were."""
    wanted = task.gold.get("keep", [])
    return Ratio(sum(s in text for s in wanted), len(wanted))


def reference(task: Task) -> str:
    """The answer that a person wrote; empty if there is none."""
    gold = task.gold
    match task.kind:
        case "notification-summary" | "summary":
            return str(gold["summary"])
        case "key-points":
            return "\n".join(f"- {point}" for point in gold["key_points"])
        case "smart-reply":
            return "\n".join(f"- {reply}" for reply in gold["replies"])
        case "proofread":
            return str(gold["corrected"])
        case "change":
            return str(gold["output"])
        case "friendly" | "professional" | "concise":
            return str(gold[task.kind])
    return ""


def _limits(task: Task, given: Given) -> Scores:
    return {"within limits": Ratio(not broken(task, given))}


def _overlap(task: Task, given: Given) -> Scores:
    wanted = reference(task)
    return {"chrF": Ratio(chrf(given.text, wanted)), "ROUGE-L": Ratio(rouge_l(given.text, wanted))}


def _summary(task: Task, given: Given) -> Scores:
    return {
        **_limits(task, given),
        "mentioned": mentioned(task, given.text),
        "to be avoided": Ratio(bool(avoided(task, given.text))),
        **_overlap(task, given),
    }


def _priority(task: Task, given: Given) -> Scores:
    said, urgent = bool(given.value), bool(task.gold["urgent"])
    return {
        "accuracy": Ratio(said == urgent),
        "precision": Ratio(said and urgent, said),
        "recall": Ratio(said and urgent, urgent),
    }


def _proofread(task: Task, given: Given) -> Scores:
    source, wanted = task.value.source, reference(task)
    counts = count(source, given.text, wanted)
    right, wrong, missed = counts.right, counts.wrong, counts.missed
    scores = {
        "exact": Ratio(given.text.split() == wanted.split()),
        "precision": Ratio(right, right + wrong),
        "recall": Ratio(right, right + missed),
        "F0.5": Ratio(1.25 * right, 1.25 * right + wrong + 0.25 * missed),
    }
    if source == wanted:
        scores["correct text changed"] = Ratio(given.text.split() != source.split())
    return scores


def _tone(task: Task, given: Given) -> Scores:
    return {
        **_limits(task, given),
        "kept": kept(task, given.text),
        **_nearer(task, given),
        **_overlap(task, given),
    }


def _replies(task: Task, given: Given) -> Scores:
    return _limits(task, given)


def _change(task: Task, given: Given) -> Scores:
    return {
        **_limits(task, given),
        "exact": Ratio(given.text.split() == reference(task).split()),
        **_nearer(task, given),
        **_overlap(task, given),
    }


def _nearer(task: Task, given: Given) -> Scores:
    """Whether the reference is nearer to the answer than to the text as it was."""
    assert isinstance(task.value, Text | Change)
    wanted, before = reference(task), task.value.text
    return {"nearer than before": Ratio(chrf(given.text, wanted) > chrf(before, wanted))}


def _adversarial(task: Task, given: Given) -> Scores:
    # Where no string can show a violation, only facts are checked.
    return {"misled": Ratio(bool(avoided(task, given.text)))} if task.gold.get("avoid") else {}


_MEASURES: dict[str, Callable[[Task, Given], Scores]] = {
    "notification-summary": _summary,
    "priority": _priority,
    "summary": _summary,
    "key-points": _summary,
    "proofread": _proofread,
    **dict.fromkeys(TONES, _tone),
    "smart-reply": _replies,
    "change": _change,
    ADVERSARIAL: _adversarial,
}
