"""Checks on small texts, and the likelihood against a float64 softmax of each answer alone."""

import sys
from pathlib import Path
from typing import Any

from afm_mlx.distill import rewards
from afm_mlx.distill.answers import Answer
from afm_mlx.distill.rewards import (
    Reward,
    RewardOptions,
    Score,
    has_words,
    is_json,
    log_likelihoods,
    no_echo,
    no_repeats,
    supported,
)
from afm_mlx.distill.teachers import Committee, wrap
from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS, Model
from afm_mlx.tokenizer import Message, Tokenizer
from tests.conftest import random_model

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import llama

LONG = "Ana will bring the blue chairs to the meeting in Lisbon on 3 May at 9:30."
QUESTION = (Message("system", "Summarise."), Message("user", LONG))
ONLY_REPEATS = RewardOptions(no_echo=0, likelihood=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One two three.", 1.0),
        ("one two three four five six seven eight", 1.0),
        ("one two three four one two three four", 4 / 5),  # phrases 1234 2341 3412 4123 1234
        ("I am here. I am here. I am here. I am here.", 11 / 43),
        ("Tea! Tea! Tea! Tea!", 4 / 19),  # too short for phrases
    ],
)
def test_no_repeats(text: str, expected: float) -> None:
    found = no_repeats(QUESTION, Answer(text))
    assert found == pytest.approx(expected)


def test_no_repeats_is_blind_to_case() -> None:
    a, b = "the cat sat down", "THE CAT SAT DOWN"
    assert no_repeats(QUESTION, Answer(f"{a} {b}")) == pytest.approx(4 / 5)


def test_no_echo() -> None:
    assert no_echo(QUESTION, Answer(LONG)) == 0
    assert no_echo(QUESTION, Answer("summarise.")) == 0  # shorter than a phrase
    assert no_echo(QUESTION, Answer("Ana brings chairs to Lisbon.")) == 1
    nine = "Well: Ana will bring the blue chairs to the"  # 8 of 9 words are copied
    assert no_echo(QUESTION, Answer(nine)) == pytest.approx(1 / 9)
    assert no_echo(QUESTION, Answer("Ana will bring the blue chairs to a hall in town")) == 1


def test_supported() -> None:
    assert supported(QUESTION, Answer("On 3 May, Ana brings chairs.")) == 1
    assert supported(QUESTION, Answer("On 4 May, Ana brings chairs to Berlin.")) == 1 / 3


@pytest.mark.parametrize(
    ("least", "most", "passed"), [(3, 0, 1), (3, 3, 1), (4, 0, None), (0, 2, None)]
)
def test_length(least: int, most: int, passed: float | None) -> None:
    assert has_words(least, most)(QUESTION, Answer("Tea at 9:30.")) == passed


@pytest.mark.parametrize(
    ("text", "passed"),
    [('{"a": [1]}', 1), ("7", 1), ('{"a": 1', None), ('Here: {"a": 1}', None), ("[" * 10**5, None)],
)
def test_json(text: str, passed: float | None) -> None:
    assert is_json(QUESTION, Answer(text)) == passed


@pytest.mark.parametrize(
    ("options", "answer", "reason"),
    [
        ({}, Answer(" \n"), "empty"),
        ({}, Answer("", complete=False), "empty"),
        ({}, Answer("Tea at", complete=False), "cut short"),
        ({"cut_short": True}, Answer("Tea at", complete=False), ""),
        ({"least_words": 3}, Answer("Tea now."), "length"),
        ({"most_words": 1}, Answer("Tea now."), "length"),
        ({}, Answer("…"), "length"),
        ({"least_words": 0}, Answer("…"), ""),
        ({"json_only": True}, Answer("Tea now."), "no JSON"),
        ({}, Answer("Tea now."), ""),
    ],
)
def test_reasons(options: dict[str, Any], answer: Answer, reason: str) -> None:
    (score,) = Reward(RewardOptions(**options)).scores(QUESTION, [answer])
    assert score.reason == reason
    assert (score.reward is None) == bool(reason)


def test_thoughts_are_not_checked() -> None:
    answer = Answer("Chairs for Ana.", thoughts=" ".join([LONG] * 3))
    (score,) = Reward(RewardOptions()).scores(QUESTION, [answer])
    assert score.reward == 1


def test_the_weighted_mean() -> None:
    options = RewardOptions(no_repeats=2, no_echo=0, supported=1, likelihood=5)
    answer = Answer("Tea is here. Tea is here.")
    found = Reward(options).scores(QUESTION, [answer, Answer("")])
    parts = {"no_repeats": no_repeats(QUESTION, answer), "supported": 1.0}
    assert found[0] == Score((2 * parts["no_repeats"] + 1) / 3, parts)  # no teacher runs here
    assert found[1] == Score(None, {}, "empty")


def test_weights_must_say_something() -> None:
    nothing = RewardOptions(no_repeats=0, no_echo=0)
    with pytest.raises(InputError, match="nothing tells good answers"):
        Reward(nothing)
    for options in ({"no_echo": -1}, {"likelihood": float("nan")}, {"least_words": -1}):
        with pytest.raises(InputError, match="must not be below 0"):
            RewardOptions(**options)
    with pytest.raises(InputError, match="lower least_words"):
        RewardOptions(least_words=5, most_words=4)


OWN = """
def polite(messages, answer):
    if "!" in answer.text:
        return None
    return 0.25 if messages[-1].content and "please" in answer.text else 0

def loud(messages, answer):
    return 7

def words(messages, answer):
    return "much"

constant = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_own_checks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_own_checks", raising=False)
    return "my_own_checks"


def test_an_own_check(own_module: str) -> None:
    options = RewardOptions(no_repeats=1, no_echo=0, own_check=f"{own_module}:polite", own_weight=3)
    found = Reward(options).scores(QUESTION, [Answer(t) for t in ("Sit, please.", "Sit.", "Sit!")])
    assert [s.reward for s in found] == [(1 + 3 * 0.25) / 4, 0.25, None]
    assert found[0].parts == {"no_repeats": 1.0, f"{own_module}:polite": 0.25}
    assert found[2].reason == f"{own_module}:polite"


def test_bad_own_checks(own_module: str) -> None:
    for name in (
        "polite",
        "nowhere_to_be_found:f",
        f"{own_module}:none",
        ":f",
        f"{own_module}:constant",
    ):
        with pytest.raises(InputError, match="module:function|is no function"):
            Reward(RewardOptions(own_check=name))
    for name in ("loud", "words"):
        reward = Reward(RewardOptions(own_check=f"{own_module}:{name}"))
        with pytest.raises(InputError, match="return 0 to 1"):
            reward.scores(QUESTION, [Answer("Tea.")])


def alone(models: list[Any], weights: list[float], tokens: list[int], start: int) -> float:
    """Mean log-probability of ``tokens[start:]``, one answer at a time, mixed in float64."""
    mixed: Any = 0
    for model, weight in zip(models, weights, strict=True):
        logits = np.array(model(mx.array([tokens[:-1]]))[0], np.float64)
        e = np.exp(logits - logits.max(-1, keepdims=True))
        mixed = mixed + weight * e / e.sum(-1, keepdims=True)
    picked = mixed[np.arange(len(tokens) - 1), tokens[1:]]
    return float(np.log(picked[start - 1 :]).mean())


def test_likelihood(model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding and other answers beside it change nothing; ends count where there is one."""
    other = llama.Model(llama.ModelArgs.from_dict(PRESETS["tiny"].to_dict()))
    committee = Committee((wrap("a", model, tokenizer), wrap("b", other, tokenizer)), (3.0, 1.0))
    answers = [
        Answer("Tea at 9:30, with Ana."),
        Answer("Te", complete=False),
        Answer("x" * 150, thoughts="Hm."),
    ]
    monkeypatch.setattr(rewards, "CHUNK", 7)  # so that chunks end within answers
    prompt = tokenizer.chat(QUESTION)
    expected = []
    for answer in answers:
        tail = tokenizer.encode(answer.content) + [2] * answer.complete
        expected.append(alone([model, other], [0.75, 0.25], prompt + tail, len(prompt)))
    found = log_likelihoods(committee, QUESTION, answers)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert sorted(tokenizer.eos_token_ids) == [2]

    reward = Reward(RewardOptions(no_repeats=1, no_echo=0, likelihood=3), committee)
    scores = reward.scores(QUESTION, [Answer(""), *answers[:2]])
    assert [s.reason for s in scores] == ["empty", "", "cut short"]
    assert scores[1].parts["likelihood"] == pytest.approx(np.exp(expected[0]), rel=1e-3)
    assert scores[1].reward == pytest.approx((1 + 3 * np.exp(expected[0])) / 4, rel=1e-3)


def test_what_a_teacher_says_is_likelier(tokenizer: Tokenizer) -> None:
    """The reward must prefer the teacher's own greedy answer to another one."""
    teacher = wrap("tiny", random_model(PRESETS["tiny"]), tokenizer)
    prompt = tokenizer.chat(QUESTION)
    greedy: list[int] = []
    for _ in range(6):
        logits = teacher.model(mx.array([[*prompt, *greedy]]))[0, -1, 3:]
        ascii_only = np.array(logits)[:94]
        greedy.append(int(ascii_only.argmax()) + 3)
    answers = [Answer(tokenizer.decode(greedy), complete=False), Answer("zzzzzz", complete=False)]
    own, other = log_likelihoods(Committee((teacher,)), QUESTION, answers)
    assert own > other
