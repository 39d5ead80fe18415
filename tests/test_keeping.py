"""A change must be likelier than the source's own next token by a margin, wherever it stands."""

from typing import Any

from afm_mlx.constraints import restricted
from afm_mlx.generation import GenerationOptions, Request, generate
from afm_mlx.keeping import Keeping
from afm_mlx.model import PRESETS
from tests.conftest import random_model, tiny_tokenizer

import mlx.core as mx
import numpy as np
import pytest

SOURCE = [10, 11, 12, 13, 14, 15, 16, 17, 18, 2]


def favoured(keeping: Keeping) -> int | None:
    scores = keeping.allowed()
    assert scores.size == 0 or np.flatnonzero(scores).tolist() == [scores.size - 1]
    return scores.size - 1 if scores.size else None


def after(*written: int) -> int | None:
    keeping = Keeping(SOURCE, 1.5)
    for token in written:
        keeping.advance(token)
    return favoured(keeping)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([], 10),
        ([10, 11], 12),
        ([10, 11, 99], None),  # a token replaced: not known yet whether something was left out
        ([10, 11, 99, 13], None),
        ([10, 11, 99, 13, 14], 15),
        ([10, 11, 98, 99, 12, 13], 14),  # two put in
        ([10, 14, 15], 16),  # three left out
        (SOURCE[:-1], 2),
        (SOURCE, None),
    ],
)
def test_the_place_in_the_source(written: list[int], expected: int | None) -> None:
    assert after(*written) == expected


def test_of_like_places_the_nearest_is_taken() -> None:
    source = [5, 6, 7, 5, 6, 8, 5, 6, 9]
    keeping = Keeping(source, 1.0)
    for token in (5, 6, 7, 50, 6, 8, 5, 6):
        keeping.advance(token)
    assert favoured(keeping) == 9


def test_a_change_needs_the_margin() -> None:
    logits = mx.zeros(300)
    logits[[20, 10]] = mx.array([3.0, 2.0])
    for margin, chosen in ((0.5, 20), (1.5, 10)):
        assert mx.argmax(restricted(logits, [Keeping(SOURCE, margin)])).item() == chosen


def test_with_a_large_margin_the_answer_is_the_source() -> None:
    model, tokenizer = random_model(PRESETS["tiny"]), tiny_tokenizer()
    source = [*tokenizer.encode("It is as it was."), *tokenizer.eos_token_ids]

    def answer(constraint: Any) -> str:
        options = GenerationOptions(maximum_response_tokens=40)
        *_, last = generate(model, tokenizer, Request([5, 6], options, constraint=constraint))
        return last.text

    assert answer(lambda: Keeping(source, 1e6)) == "It is as it was."
    assert answer(lambda: Keeping(source, 0.0)) == answer(None) != "It is as it was."
