"""Sequence-level distillation (arXiv 1606.07947) with rejection sampling, by a committee.

Every member answers every prompt several times; the best answer is kept if its reward reaches a
threshold, as the teacher committee of arXiv 2407.21075, section 4, does it. The file that this
makes is an ordinary source of conversations to train on.

    for event in answer_prompts(read_prompts(path), members, Reward(RewardOptions()), folder):
        ...

Each prompt ends as one line in one of two files, on disk before the next prompt is asked:
``answers.jsonl``, or ``rejected.log`` if no answer was good enough. A killed run loses the
prompt that it was at; run again, it goes on with that one. Without ``rejected.log`` the
prompts in it are asked again.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from afm_mlx.distill.answers import Answer, Respondent
from afm_mlx.distill.prompts import Prompt, key_of
from afm_mlx.distill.rewards import Reward, Score
from afm_mlx.errors import (
    ExceededContextWindowSizeError,
    GenerationError,
    InputError,
    first_line,
)
from afm_mlx.generation import GenerationOptions, SamplingMode
from afm_mlx.tokenizer import Message

ANSWERS, REJECTED = "answers.jsonl", "rejected.log"
TOO_POOR = "below least_reward"
REFUSED = "not answered"


@dataclass(frozen=True)
class SequenceOptions:
    """How many answers are asked for, and which are kept."""

    candidates: int = 4
    """Answers of each teacher to each prompt."""
    least_reward: float = 0.5
    """Reward from 0 to 1 that the best answer must reach."""
    answer_temperature: float = 0.8
    """Flattens or sharpens the teachers' sampling; 0 gives the likeliest answer alone."""
    answer_top_p: float = 0.95
    """Sample from the likeliest tokens that hold this share of the mass."""
    answer_tokens: int = 512
    """Longest answer, thoughts included."""
    answer_seed: int = 0
    """Which answers are drawn."""

    def __post_init__(self) -> None:
        for name in ("candidates", "answer_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.least_reward <= 1:
            raise InputError(f"least_reward lies from 0 to 1, not at {self.least_reward}")
        if not 0 <= self.answer_temperature < math.inf:
            raise InputError(f"answer_temperature must be 0 or above: {self.answer_temperature}")
        if not 0 < self.answer_top_p <= 1:
            raise InputError(f"answer_top_p lies above 0 and at most at 1: {self.answer_top_p}")
        if self.answer_seed < 0:
            raise InputError(f"answer_seed must not be below 0: {self.answer_seed}")

    def generation(self, key: str, member: str) -> GenerationOptions:
        """Options of one request; each prompt and member has a seed of its own."""
        mark = f"{self.answer_seed} {key} {member}".encode()
        seed = int.from_bytes(hashlib.sha256(mark).digest()[:8], "big")
        sampling = SamplingMode.random(probability_threshold=self.answer_top_p, seed=seed)
        if not self.answer_temperature:
            sampling = SamplingMode.greedy()
        return GenerationOptions(sampling, self.answer_temperature, self.answer_tokens)


@dataclass(frozen=True)
class Answered:
    """A prompt is done: ``done`` of ``total`` are, ``kept`` of them with an answer.

    Attributes:
        score: reward of its best answer, ``None`` if all were rejected.
        teacher: who gave the answer that is kept, if one is.
    """

    done: int
    total: int
    kept: int
    score: float | None
    teacher: str = ""


@dataclass(frozen=True)
class SequenceReport:
    """What the committee gave, over all that a folder holds.

    Attributes:
        rewards: each member's mean reward, over its answers that no check rejected.
        wins: how often the best answer, one that is kept, was a member's.
        reasons: why answers were rejected, and how many for each reason.
    """

    prompts: int
    kept: int
    rewards: dict[str, float]
    wins: dict[str, int]
    reasons: dict[str, int]

    @property
    def kept_share(self) -> float:
        return self.kept / self.prompts if self.prompts else 0.0


def answer_prompts(
    prompts: Sequence[Prompt],
    members: Sequence[Respondent],
    reward: Reward,
    folder: Path,
    options: SequenceOptions | None = None,
) -> Iterator[Answered | SequenceReport]:
    """Let ``members`` answer ``prompts`` that have no line in ``folder`` yet; a report at the end.

    A prompt that comes again counts once. A member that cannot answer a prompt (too long for
    it, say) has no part in it.

    Raises:
        InputError: the folder cannot be written, or its files are damaged.
        GenerationError: a member has not answered a single prompt so far and refuses this one.
        ModelError: a member cannot be reached.
    """
    options = options or SequenceOptions()
    if not members or len({m.name for m in members}) != len(members):
        raise InputError("name at least one teacher, and none twice")
    wanted = {key_of(prompt): prompt for prompt in prompts}
    logs = {name: _File(folder / name) for name in (ANSWERS, REJECTED)}
    lines = {name: log.repaired() for name, log in logs.items()}
    before = [line for found in lines.values() for line in found]
    done = {line["key"] for line in before} & wanted.keys()
    kept = len({line["key"] for line in lines[ANSWERS]} & wanted.keys())
    proven = {name for line in before for name in line["rewards"]}
    for key, prompt in wanted.items():
        if key in done:
            continue
        line = _ask(prompt, key, members, reward, options, proven)
        logs[ANSWERS if "teacher" in line else REJECTED].append(line)
        done.add(key)
        kept += "teacher" in line
        proven |= line["rewards"].keys()
        yield Answered(len(done), len(wanted), kept, line["score"], line.get("teacher", ""))
    yield report(folder)


def _ask(
    prompt: Prompt,
    key: str,
    members: Sequence[Respondent],
    reward: Reward,
    options: SequenceOptions,
    proven: set[str],
) -> dict[str, Any]:
    """The line of a prompt; it names a ``teacher`` if one gave an answer to keep."""
    found: list[tuple[str, Answer, Score]] = []
    reasons: Counter[str] = Counter()
    rewards: dict[str, list[float | None]] = {}
    for member in members:
        count = options.candidates if options.answer_temperature else 1
        try:
            answers = member.answers(prompt, count, options.generation(key, member.name))
        except GenerationError as error:
            too_long = isinstance(error, ExceededContextWindowSizeError)
            if member.name not in proven and not too_long:
                raise  # it may be that no prompt can be answered
            reasons[REFUSED] += count
            continue
        scores = reward.scores(prompt, answers)
        rewards[member.name] = [s.reward for s in scores]
        found += [(member.name, a, s) for a, s in zip(answers, scores, strict=True)]
    for _, _, score in found:
        if score.reward is None:
            reasons[score.reason] += 1
        elif score.reward < options.least_reward:
            reasons[TOO_POOR] += 1
    scored = [(s.reward, name, a, s) for name, a, s in found if s.reward is not None]
    line: dict[str, Any] = {
        "messages": [asdict(m) for m in prompt],
        "score": None,
        "rejected": sum(reasons.values()),
        "reasons": dict(reasons),
        "rewards": rewards,
        "key": key,
    }
    if scored:
        value, name, answer, score = max(scored, key=lambda s: s[0])  # the first of equals
        line |= {"score": value, "parts": score.parts}
        if value >= options.least_reward:
            line["messages"].append(asdict(Message("assistant", answer.content)))
            line["teacher"] = name
    return line


def report(folder: Path) -> SequenceReport:
    """What the files in ``folder`` say."""
    answers, rejected = (_File(folder / name).lines() for name in (ANSWERS, REJECTED))
    rewards: dict[str, list[float]] = {}
    reasons: Counter[str] = Counter()
    for line in (*answers, *rejected):
        reasons.update(line["reasons"])
        for name, values in line["rewards"].items():
            rewards.setdefault(name, []).extend(v for v in values if v is not None)
    won = Counter(line["teacher"] for line in answers)
    return SequenceReport(
        len(answers) + len(rejected),
        len(answers),
        {name: sum(v) / len(v) for name, v in rewards.items() if v},
        {name: won[name] for name in rewards},
        dict(reasons.most_common()),
    )


class _File:
    """JSON Lines that only grow; each line is on disk before the next one is made."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        """All whole lines; none if there is no file."""
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise self._trouble(error) from error
        found = []
        for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
            try:
                found.append(json.loads(line))
                if not isinstance(found[-1]["rewards"], dict) or not found[-1]["key"]:
                    raise ValueError("other fields")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(
                    f"{self.path}:{number} is damaged ({first_line(error)}): delete this line, and"
                    " its prompt is asked again"
                ) from error
        return found

    def repaired(self) -> list[dict[str, Any]]:
        """The same; what a killed process left of a line is cut off."""
        found = self.lines()
        try:
            if self.path.exists():
                data = self.path.read_bytes()
                os.truncate(self.path, data.rfind(b"\n") + 1)
        except OSError as error:
            raise self._trouble(error) from error
        return found

    def append(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._trouble(error) from error

    def _trouble(self, error: OSError) -> InputError:
        return InputError(
            f"{self.path} cannot be written or read ({first_line(error)}): free some space or"
            " choose another folder, and run the same command again"
        )
