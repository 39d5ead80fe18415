"""Score answers: checks of the text, and how likely the teachers find it.

A check gives a score from 0 to 1, or ``None`` to reject the answer. The reward is the weighted
mean of all scores, so it lies from 0 to 1, too; each score is kept beside it. The likelihood is
exp of the mean log-probability of an answer's tokens (their inverse perplexity), which takes
the length out. It is blind to what the teachers themselves get wrong, and likes the obvious.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from numbers import Real

from afm_mlx import facts, text
from afm_mlx.data.packing import Batch
from afm_mlx.distill.answers import Answer
from afm_mlx.distill.teachers import Committee
from afm_mlx.errors import InputError, first_line
from afm_mlx.losses import CHUNK
from afm_mlx.tokenizer import Message

import mlx.core as mx
import numpy as np

Check = Callable[[Sequence[Message], Answer], float | None]
"""(the conversation, an answer to it) to a score from 0 to 1, or ``None`` to reject it."""

REPEAT = 4
"""Words in a row that count as a repetition if they come again."""
COPY = 8
"""Words in a row that count as copied if they stand in the conversation."""
STRIDE = 64
"""Answers are padded to a multiple of it, since each new length is compiled anew."""


@dataclass(frozen=True)
class RewardOptions:
    """What makes a good answer. A weight of 0 leaves a score out."""

    least_words: int = 1
    """Reject shorter answers."""
    most_words: int = 0
    """Reject longer answers; 0 sets no limit."""
    cut_short: bool = False
    """Accept answers that a limit cut short."""
    json_only: bool = False
    """Reject answers that are no JSON."""
    no_repeats: float = 1.0
    """Weight of: no phrase or sentence comes twice."""
    no_echo: float = 1.0
    """Weight of: nothing is copied from the prompt at length; 0 for proofreading."""
    supported: float = 0.0
    """Weight of: numbers and names stand in the prompt, as in summaries and rewriting."""
    likelihood: float = 1.0
    """Weight of: the teachers that run here find the answer likely."""
    own_check: str = ""
    """A Python function of yours, module:function, from messages and answer to a score."""
    own_weight: float = 1.0
    """Weight of that score."""

    def __post_init__(self) -> None:
        for name in ("least_words", "most_words"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be below 0: {getattr(self, name)}")
        if 0 < self.most_words < self.least_words:
            raise InputError(
                f"no answer has at least {self.least_words} and at most {self.most_words} words:"
                " lower least_words"
            )
        for name in ("no_repeats", "no_echo", "supported", "likelihood", "own_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"the weight {name} must not be below 0: {getattr(self, name)}")


@dataclass(frozen=True)
class Score:
    """What an answer is worth.

    Attributes:
        reward: from 0 to 1; ``None`` if a check rejected the answer.
        parts: the scores that it is made of, by name.
        reason: name of the check that rejected it.
    """

    reward: float | None
    parts: dict[str, float] = field(default_factory=dict)
    reason: str = ""


def has_words(least: int, most: int) -> Check:
    """Rejects answers with fewer or more words; ``most`` 0 sets no limit."""

    def check(messages: Sequence[Message], answer: Answer) -> float | None:
        count = len(text.words(answer.text))
        return 1.0 if count >= least and (not most or count <= most) else None

    return check


def ended(messages: Sequence[Message], answer: Answer) -> float | None:
    """Rejects answers that a limit cut short."""
    return 1.0 if answer.complete else None


def not_empty(messages: Sequence[Message], answer: Answer) -> float | None:
    """Rejects answers without a word or a sign."""
    return 1.0 if answer.text.strip() else None


def is_json(messages: Sequence[Message], answer: Answer) -> float | None:
    """Rejects what is no JSON, or JSON with something around it."""
    try:
        json.loads(answer.text)
    except (ValueError, RecursionError):
        return None
    return 1.0


def no_repeats(messages: Sequence[Message], answer: Answer) -> float:
    """Share of phrases that are new, or of the text that is no repeated sentence, if less."""
    phrases = _phrases(answer.text, REPEAT)
    new = len(set(phrases)) / len(phrases) if phrases else 1.0
    return min(new, len(facts.without_repeats(answer.text)) / max(len(answer.text), 1))


def no_echo(messages: Sequence[Message], answer: Answer) -> float:
    """Share of the answer's words that are in no long phrase of the conversation."""
    words = text.words(answer.text.casefold())
    if len(words) < COPY:
        return float(all(words != text.words(m.content.casefold()) for m in messages))
    known = {p for m in messages for p in _phrases(m.content, COPY)}
    copied = np.zeros(len(words), np.bool_)
    for start, phrase in enumerate(_phrases(answer.text, COPY)):
        if phrase in known:
            copied[start : start + COPY] = True
    return float(1 - copied.mean())


def supported(messages: Sequence[Message], answer: Answer) -> float:
    """1 if all numbers and names stand in the conversation, 1/2 if one does not, 1/3..."""
    source = "\n".join(m.content for m in messages)
    claims = facts.unsupported(answer.text, source)
    return 1 / (1 + len({claim.text for claim in claims if claim.kind != "negation"}))


def _phrases(content: str, size: int) -> list[tuple[str, ...]]:
    words = text.words(content.casefold())
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def own(name: str) -> Check:
    """The function that ``module:function`` names.

    Raises:
        InputError: there is none.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, ValueError, AttributeError) as error:
        raise InputError(
            f"there is no check {name} ({first_line(error)}): name it as module:function, with the"
            " module's folder in PYTHONPATH"
        ) from error
    if not callable(found):
        raise InputError(f"{name} is no function: name one that takes messages and answer")
    check: Check = found
    return check


@dataclass(frozen=True)
class Criterion:
    """A check under its name; with a ``weight`` of 0 it only rejects."""

    name: str
    check: Check
    weight: float = 0.0


def criteria(options: RewardOptions) -> list[Criterion]:
    """The checks that ``options`` ask for, in order: the first that rejects an answer counts."""
    found = [Criterion("empty", not_empty)]
    if not options.cut_short:
        found.append(Criterion("cut short", ended))
    found.append(Criterion("length", has_words(options.least_words, options.most_words)))
    if options.json_only:
        found.append(Criterion("no JSON", is_json))
    weighted: list[tuple[str, Check, float]] = [
        ("no_repeats", no_repeats, options.no_repeats),
        ("no_echo", no_echo, options.no_echo),
        ("supported", supported, options.supported),
    ]
    found += [Criterion(name, check, weight) for name, check, weight in weighted if weight]
    if options.own_check:
        found.append(Criterion(options.own_check, own(options.own_check), options.own_weight))
    return found


class Reward:
    """Scores answers by some criteria, and by a committee's likelihood if there is one."""

    def __init__(self, options: RewardOptions, committee: Committee | None = None) -> None:
        self.criteria = criteria(options)
        self.committee = committee if options.likelihood else None
        self.likelihood = options.likelihood if committee is not None else 0.0
        self.total = self.likelihood + sum(c.weight for c in self.criteria)
        if not self.total:
            raise InputError(
                "nothing tells good answers from better ones: give one of no_repeats, no_echo,"
                " supported or own_check a weight, or likelihood a teacher that runs here"
            )

    def scores(self, messages: Sequence[Message], answers: Sequence[Answer]) -> list[Score]:
        """A score for each answer to the same conversation."""
        found = [self._checked(messages, answer) for answer in answers]
        left = [i for i, score in enumerate(found) if not score.reason]
        likely: list[float] = []
        if self.committee is not None and left:
            chosen = [answers[i] for i in left]
            likely = np.exp(log_likelihoods(self.committee, messages, chosen)).tolist()
        weights = {c.name: c.weight for c in self.criteria} | {"likelihood": self.likelihood}
        for n, i in enumerate(left):
            parts = found[i].parts | ({"likelihood": likely[n]} if likely else {})
            reward = sum(weights[name] * value for name, value in parts.items()) / self.total
            found[i] = Score(reward, parts)
        return found

    def _checked(self, messages: Sequence[Message], answer: Answer) -> Score:
        parts: dict[str, float] = {}
        for criterion in self.criteria:
            value = criterion.check(messages, answer)
            if value is None:
                return Score(None, parts, criterion.name)
            if not isinstance(value, Real) or not 0 <= value <= 1:
                raise InputError(
                    f"{criterion.name} gave the score {value!r}: return 0 to 1, or None to reject"
                )
            if criterion.weight:
                parts[criterion.name] = float(value)
        return Score(None, parts)


def log_likelihoods(
    committee: Committee, messages: Sequence[Message], answers: Sequence[Answer]
) -> list[float]:
    """Mean log-probability of the tokens of each answer, its end included if it has one."""
    tokenizer = committee.teachers[0].tokenizer
    prompt = tokenizer.chat(messages)
    end = [t for t in (tokenizer.wrapper.eos_token_id,) if t is not None]
    tails = [tokenizer.encode(a.content) + (end if a.complete else []) for a in answers]
    longest = len(prompt) + max(map(len, tails), default=0)
    shape = len(answers), -(-longest // STRIDE) * STRIDE
    tokens, used = np.zeros(shape, np.int32), np.zeros(shape, np.bool_)
    learn = np.zeros(shape, np.bool_)
    for row, tail in enumerate(tails):
        stop = len(prompt) + len(tail)
        tokens[row, :stop], used[row, :stop] = [*prompt, *tail], True
        learn[row, len(prompt) - 1 : stop - 1] = True
    batch = Batch(tokens, used.astype(np.int32), learn, np.full(len(answers), -1))
    states = committee.states(batch)
    places = np.flatnonzero(learn)
    labels = batch.labels.reshape(-1)
    logs = np.zeros(learn.size)
    for start in range(0, len(places), CHUNK):  # logits of all would fill the memory
        some = places[start : start + CHUNK]
        said = committee.log_probabilities([s[mx.array(some)] for s in states])
        logs[some] = np.array(mx.take_along_axis(said, mx.array(labels[some])[:, None], 1))[:, 0]
    counts = np.maximum(learn.sum(1), 1)
    return [float(x) for x in logs.reshape(shape).sum(1) / counts]
