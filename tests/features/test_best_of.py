"""Where an answer has faults others are sampled and the best is taken; favoured choices."""

import asyncio
from dataclasses import replace

from afm_mlx.constraints import Among, restricted
from afm_mlx.engine import Engine
from afm_mlx.features import (
    CHANGE,
    CONCISE,
    FRIENDLY,
    PRIORITY,
    SUMMARY,
    Answer,
    Change,
    Text,
    reading,
    respond,
    respond_together,
)
from afm_mlx.features.declaration import Reading
from afm_mlx.features.run import WARMTH, _attempts, _varied, make_request
from afm_mlx.generation import GenerationOptions, SamplingMode
from afm_mlx.tokenizer import Tokenizer
from tests.features.small import STACK, small

import mlx.core as mx
import pytest

CUT = "Ana. Lunch. At 13:00. Lunch, Ana."  # one sentence too many


def best(engine: Engine, said: list[str], best_of: int) -> tuple[Answer, int]:
    """The answer taken of those that the model says in turn, and how many it was asked for."""
    left = iter(said)

    def read(_: str, text: Text) -> Reading:
        return reading.summary(next(left), text)

    feature = small(SUMMARY, read=read, choices=("a",))  # which lets the answer end by itself
    value = Text("Ana: lunch at 13:00")
    answer = asyncio.run(respond(engine, feature, value, best_of=best_of))
    return answer, len(said) - len([*left])


@pytest.mark.parametrize(
    ("said", "taken", "asked"),
    [
        (["Lunch at 13:00.", "Lunch."], 0, 1),  # nothing to better
        (["Lunch at 14:00.", "Lunch at 13:00.", "Lunch."], 1, 2),
        (["Boris at 14:00.", "At 14:00.", "Boris at 9."], 1, 3),
        (["At 14:00.", "At 15:00.", "At 16:00."], 0, 3),  # the first of the best
        ([CUT, "At 15:00.", "Lunch."], 2, 3),
        (["", CUT, "At 15:00."], 1, 3),  # better cut than invented, or nothing said
    ],
)
def test_best_of(engine: Engine, said: list[str], taken: int, asked: int) -> None:
    answer, count = best(engine, said, 3)
    expected = reading.summary(said[taken], Text("x")).value
    assert (answer.text, count) == (expected, asked)
    assert answer.metrics.requests == asked


def test_a_feature_has_others_sampled_by_itself(engine: Engine) -> None:
    said = iter(["At 14:00.", "At 15:00.", "Lunch."] * 2)
    feature = small(
        SUMMARY, read=lambda _, t: reading.summary(next(said), t), choices=("a",), best_of=3
    )
    value = Text("Ana: lunch at 13:00")
    answer = asyncio.run(respond(engine, feature, value, best_of=3))
    assert (answer.text, answer.metrics.requests) == ("Lunch.", 3)
    (answer,) = asyncio.run(respond_together(engine, [(feature, value, None)], best_of=3))
    assert (answer.text, answer.metrics.requests) == ("Lunch.", 2)  # asked again, alone
    said = iter(["Lunch.", "At 15:00."])
    (answer,) = asyncio.run(respond_together(engine, [(feature, value, None)], best_of=3))
    assert (answer.text, answer.metrics.requests) == ("Lunch.", 1)
    said = iter(["At 14:00.", "Lunch."])  # the bare model has too many faults for that
    assert asyncio.run(respond(engine, feature, value)).text == "At 14:00."
    assert [_attempts(feature, a, None) for a in ("lora", "", None)] == [3, 1, 1]
    assert _attempts(feature, "lora", 2) == 2


def test_what_a_rewriting_lacks() -> None:
    text = Text("Ana, lunch is at 13:00 in Tarvik on 4 May and costs 12 euros, is it fine for you?")
    kept = "Dear Ana, would lunch in Tarvik at 13:00 on 4 May for 12 euros suit you?"
    assert FRIENDLY.lacks(kept, text) == 0
    assert FRIENDLY.lacks(kept.replace("13:00", "noon"), text) == 1
    assert FRIENDLY.lacks("Lunch?", text) > 3
    assert FRIENDLY.lacks(f" {text.text}", text) == 1
    assert CONCISE.lacks(kept, text) == 1
    assert CONCISE.lacks("Ana: lunch 13:00, Tarvik, 4 May, 12 euros?", text) == 0
    assert CHANGE.lacks("x", Change("x", "shout")) == 1 > CHANGE.lacks("X", Change("x", "shout"))


def test_further_answers_are_sampled(tokenizer: Tokenizer) -> None:
    request = make_request(SUMMARY, Text("x"), tokenizer)
    assert _varied(request, 0) is request
    first, second = (_varied(request, n).options for n in (1, 2))
    assert first.sampling.kind == "random" and first.temperature == WARMTH
    assert (first.sampling.seed, second.sampling.seed) == (1, 2)
    assert first.maximum_response_tokens == request.options.maximum_response_tokens
    warm = GenerationOptions(SamplingMode.random(top=5, seed=9), 1.3)
    again = _varied(replace(request, options=warm), 2).options
    assert again == replace(warm, sampling=SamplingMode.random(top=5, seed=11))


def test_a_choice_that_is_favoured() -> None:
    """By so many nats, and no other token can be chosen."""
    logits = mx.array([3.0, 9.0, 1.0, 1.4, 9.0])
    for favour, taken in ((0.0, 3), (0.3, 3), (0.5, 2)):
        among = Among([[2, 0], [3]], (favour, 0.0))
        assert int(mx.argmax(restricted(logits, [among]))) == taken
    among.advance(2)
    assert int(mx.argmax(restricted(logits, [among]))) == 0 and not among.ended


def test_only_an_adapter_has_a_favourite(tokenizer: Tokenizer) -> None:
    assert make_request(PRIORITY, STACK, tokenizer).favours == ()
    assert make_request(PRIORITY, STACK, tokenizer, adapter="a").favours == PRIORITY.favours
    assert len(PRIORITY.favours) == len(PRIORITY.choices)
