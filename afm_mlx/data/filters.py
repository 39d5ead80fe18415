"""Filters of training text, and a written report of what each removed.

Apple's pre-training data goes through filters for personal data, profanity, quality and
duplicates (arXiv 2407.21075, section 3.1). Here each is a step: a small frozen dataclass that
passes samples on one by one and notes in its :class:`StepReport` what it left out or changed.
Steps are named in recipes, ``filters = ["exact", "near", "personal"]``::

    report = FilterReport()
    kept = list(run(samples, named(["exact", "near", "personal"]), report))
    print(report.to_markdown())
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from afm_mlx.data import personal
from afm_mlx.data.heuristics import Rules
from afm_mlx.data.profanity import profane_share
from afm_mlx.data.sources import Sample
from afm_mlx.errors import InputError

import numpy as np
from rensa import RMinHash, RMinHashLSH

EXAMPLES = 5
"""How many samples a step's report names."""


@dataclass
class StepReport:
    """What one step did; complete once the last sample has passed.

    Attributes:
        reasons: number of samples removed or changed for each reason.
        examples: the first few, ``source: reason``; never any of their text.
    """

    name: str
    seen: int = 0
    removed: int = 0
    changed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def kept(self) -> int:
        """How many samples passed, changed ones included."""
        return self.seen - self.removed

    def count(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The same samples, each counted as seen."""
        for sample in samples:
            self.seen += 1
            yield sample

    def remove(self, sample: Sample, *reasons: str, detail: str = "") -> None:
        """Note that ``sample`` was left out; ``detail`` follows the reasons in the example."""
        self.removed += 1
        self._note(sample, reasons, detail)

    def change(self, sample: Sample, *reasons: str, detail: str = "") -> None:
        """Note that ``sample`` was passed on with changes."""
        self.changed += 1
        self._note(sample, reasons, detail)

    def _note(self, sample: Sample, reasons: Sequence[str], detail: str) -> None:
        self.reasons.update(reasons)
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{_source(sample)}: {', '.join(reasons)}{detail}")


def _source(sample: Sample) -> str:
    return sample.source or "an unnamed sample"


@dataclass
class FilterReport:
    """What all steps did, in the order in which samples pass them."""

    steps: list[StepReport] = field(default_factory=list)

    def to_markdown(self) -> str:
        """A table of all steps, then reasons and examples of each."""
        lines = ["| step | seen | kept | removed | changed |", "|---|--:|--:|--:|--:|"]
        for s in self.steps:
            lines.append(f"| {s.name} | {s.seen} | {s.kept} | {s.removed} | {s.changed} |")
        for s in self.steps:
            if s.reasons:
                found = ", ".join(f"{reason} ({n})" for reason, n in s.reasons.most_common())
                lines += ["", f"**{s.name}**: {found}", "", *(f"- {e}" for e in s.examples)]
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """All that the report knows, as ``{"steps": [{"name", "seen", "kept", ...}, ...]}``."""
        found = [
            {
                "name": s.name,
                "seen": s.seen,
                "kept": s.kept,
                "removed": s.removed,
                "changed": s.changed,
                "reasons": dict(s.reasons.most_common()),
                "examples": s.examples,
            }
            for s in self.steps
        ]
        return json.dumps({"steps": found}, indent=2, ensure_ascii=False) + "\n"


class Step(Protocol):
    """Passes on the samples that it keeps and notes the others in ``report``."""

    name: ClassVar[str]

    def apply(self, samples: Iterable[Sample], report: StepReport) -> Iterator[Sample]: ...


def run(samples: Iterable[Sample], steps: Iterable[Step], report: FilterReport) -> Iterator[Sample]:
    """Samples that pass all ``steps``, one by one; ``report`` gets an entry for each step."""
    for step in steps:
        report.steps.append(StepReport(step.name))
        samples = step.apply(samples, report.steps[-1])
    yield from samples


def named(names: Sequence[str]) -> list[Step]:
    """The steps of a recipe, with their defaults.

    Raises:
        InputError: a name that is not in :data:`STEPS`.
    """
    for name in names:
        if name not in STEPS:
            raise InputError(f"there is no filter {name!r}: choose among {', '.join(STEPS)}")
    return [STEPS[name]() for name in names]


@dataclass(frozen=True)
class ExactDuplicates:
    """Leaves out what was there before, white space and case aside; roles count in chats."""

    name: ClassVar[str] = "exact"

    def apply(self, samples: Iterable[Sample], report: StepReport) -> Iterator[Sample]:
        first: dict[bytes, str] = {}
        for sample in report.count(samples):
            digest = hashlib.sha256()
            turns = [(m.role, m.content) for m in sample.messages] or [("", sample.content)]
            for role, content in turns:
                digest.update(f"{role}\0{' '.join(content.casefold().split())}\0".encode())
            if digest.digest() in first:
                report.remove(sample, "duplicate", detail=f" of {first[digest.digest()]}")
                continue
            first[digest.digest()] = _source(sample)
            yield sample


@dataclass(frozen=True)
class NearDuplicates:
    """Leaves out what shares most of its five-word sequences with a sample kept before.

    MinHash and locality-sensitive hashing (rensa) propose, the exact Jaccard similarity of the
    two sets of sequences decides. Of the pairs at the threshold at most one in a thousand is
    not proposed. System messages do not count: many chats share one.

    Attributes:
        threshold: smallest Jaccard similarity of near-duplicates, above 0 and up to 1.
        num_perm: hashes in a sketch; more cost time and propose fewer pairs in vain.
    """

    threshold: float = 0.8
    num_perm: int = 128
    name: ClassVar[str] = "near"

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InputError(f"threshold must be above 0 and at most 1, not {self.threshold}")
        if self.num_perm < 1:
            raise InputError(f"num_perm must be above 0, not {self.num_perm}")

    @property
    def num_bands(self) -> int:
        """Bands of the sketch: as few as find 999 of 1,000 pairs that are just alike enough."""
        for bands in range(1, self.num_perm):
            rows, rest = divmod(self.num_perm, bands)
            if not rest and (1 - self.threshold**rows) ** bands <= 1e-3:
                return bands
        return self.num_perm

    def apply(self, samples: Iterable[Sample], report: StepReport) -> Iterator[Sample]:
        index = RMinHashLSH(self.threshold, self.num_perm, self.num_bands)
        kept: list[tuple[str, str]] = []  # source, words
        digests = np.empty((1024, self.num_perm), np.uint32)
        # Chats made from one template propose each other by the thousand: five deviations below
        # the threshold the estimate alone is sure.
        spread = math.sqrt(self.threshold * (1 - self.threshold) / self.num_perm)
        least = self.threshold - 5 * spread
        for sample in report.count(samples):
            words = " ".join(_WORD.findall(_own_words(sample).casefold()))
            found = shingles(words)
            if not found:
                yield sample
                continue
            sketch = RMinHash(self.num_perm, seed=0)
            sketch.update(found)
            digest = np.array(sketch.digest(), np.uint32)
            proposed = np.array(sorted(index.query(sketch)), np.int64)
            alike = proposed[np.mean(digests[proposed] == digest, axis=1) >= least]
            earlier = (kept[i] for i in alike)
            first = next(
                (s for s, w in earlier if jaccard(found, shingles(w)) >= self.threshold), None
            )
            if first is not None:
                report.remove(sample, "near-duplicate", detail=f" of {first}")
                continue
            if len(kept) == len(digests):
                digests = np.concatenate([digests, np.empty_like(digests)])
            digests[len(kept)] = digest
            index.insert(len(kept), sketch)
            kept.append((_source(sample), words))
            yield sample


_WORD = re.compile(r"\w+")


def _own_words(sample: Sample) -> str:
    if sample.text is not None:
        return sample.text
    return "\n".join(m.content for m in sample.messages if m.role != "system")


def shingles(text: str, size: int = 5) -> set[str]:
    """All sequences of ``size`` words of ``text``; shorter texts are one sequence."""
    words = text.split()
    return {" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1))} - {""}


def jaccard(a: set[str], b: set[str]) -> float:
    """Size of the intersection by that of the union, between 0 and 1."""
    common = len(a & b)
    return common / max(1, len(a) + len(b) - common)


@dataclass(frozen=True)
class PersonalData:
    """Masks personal data (:mod:`afm_mlx.data.personal`), or leaves samples with it out.

    Attributes:
        mode: ``mask`` or ``drop``.
    """

    mode: str = "mask"
    name: ClassVar[str] = "personal"

    def __post_init__(self) -> None:
        if self.mode not in ("mask", "drop"):
            raise InputError(f"personal data cannot be {self.mode!r}: choose mask or drop")

    def apply(self, samples: Iterable[Sample], report: StepReport) -> Iterator[Sample]:
        for sample in report.count(samples):
            kinds = dict.fromkeys(f.kind for f in personal.find(sample.content))
            if kinds and self.mode == "drop":
                report.remove(sample, *kinds)
                continue
            if kinds:
                report.change(sample, *kinds)
                sample = sample.map(personal.mask)
            yield sample


@dataclass(frozen=True)
class Profanity:
    """Leaves out samples in which too many words are profane (:mod:`afm_mlx.data.profanity`).

    Attributes:
        max_share: largest share of profane words that passes.
    """

    max_share: float = 0.01
    name: ClassVar[str] = "profanity"

    def __post_init__(self) -> None:
        if not 0 <= self.max_share <= 1:
            raise InputError(f"max_share must be between 0 and 1, not {self.max_share}")

    def apply(self, samples: Iterable[Sample], report: StepReport) -> Iterator[Sample]:
        for sample in report.count(samples):
            share = profane_share(sample.content)
            if share > self.max_share:
                report.remove(sample, "profane words", detail=f" ({share:.1%})")
                continue
            yield sample


@dataclass(frozen=True)
class QualityHeuristics(Rules):
    """Leaves out what breaks one of the :class:`~afm_mlx.data.heuristics.Rules`, its fields."""

    name: ClassVar[str] = "heuristics"

    def apply(self, samples: Iterable[Sample], report: StepReport) -> Iterator[Sample]:
        for sample in report.count(samples):
            rule = self.broken(sample.content, conversation=bool(sample.messages))
            if rule is not None:
                report.remove(sample, rule)
                continue
            yield sample


STEPS: dict[str, Callable[[], Step]] = {
    step.name: step
    for step in (ExactDuplicates, NearDuplicates, PersonalData, Profanity, QualityHeuristics)
}
"""Steps that a recipe can name, with their defaults."""
