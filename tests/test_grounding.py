"""Under grounding only what the source bears out can be written, and something always can."""

import random
import re
from copy import copy
from functools import cache

from afm_mlx.facts import Kind, unsupported
from afm_mlx.generation import GenerationOptions, Request, SamplingMode, generate
from afm_mlx.grounding import Grounding, Text, Vocabulary, decode, vocabulary
from afm_mlx.model import PRESETS
from tests.conftest import random_model, tiny_tokenizer

import numpy as np
import pytest

SOURCE = (
    "Ana met Éva and Boris at 14:30 on Monday, and paid $45.50 (20%) at 7pm. Tennis at C-17; 3"
    " more. Жанна, Ünal and İnci"
)
WORDS = (
    "Ana an Th The the ten ten. seven ty teen 14 :30 14:30 1 0 , . : 45 % $ € Bo Bor ris is. 's n't"
    " I It Éva É é 7pm pm am 19 Monday mon day Mon may n May tomorrow to morrow one One two Two"
).split()
PIECES = [
    *(bytes([b]) for b in range(256)),
    *(word.encode() for word in WORDS),
    *(f" {word}".encode() for word in WORDS),
    *(b". The", b".\n", b"\n", b"\xc3", b"\xa9va", b" \xc3", b", ", b"Ana,", b"x. Y", b"a b", b""),
]


@cache
def pieces() -> Vocabulary:
    """A vocabulary of words, parts of words, and parts of characters."""
    return Vocabulary(PIECES)


def by_letter(text: Text, piece: bytes) -> bool | None:
    """Whether ``piece`` may follow, letter by letter; ``None`` if it ends within a character."""
    characters, rest = decode(text._pending + piece)
    if characters is None:
        return False
    if not piece:
        return text._ends() and not text._pending
    if rest:
        return None
    twin = copy(text)
    return all([twin._write(c) for c in characters]) and twin._fits()


SEVERAL = {b"14:30", b":30", b"Ana,", b"x. Y", b"a b", b"ten.", b"is.", b"n't", b". The"}
"""Tokens with more than one word or sign may be refused, since their parts are there too."""


@pytest.mark.parametrize("seed", range(5))
def test_masks_are_what_letters_allow(seed: int) -> None:
    rng = random.Random(seed)
    text = Grounding(pieces(), SOURCE).start()
    for _ in range(20):
        allowed = text.allowed()
        for token, piece in enumerate(PIECES):
            expected = by_letter(text, piece)
            if expected is None or (expected and piece.strip() in SEVERAL):
                continue
            assert allowed[token] == expected, (piece, text._tail, text._word)
        likely = np.flatnonzero(allowed[256:]) + 256
        text.advance(int(rng.choice(list(likely if len(likely) else np.flatnonzero(allowed)))))


def written(source: str, tokens: list[str]) -> bool:
    """Whether all ``tokens`` may follow one another."""
    text = Grounding(pieces(), source).start()
    for token in tokens:
        i = PIECES.index(token.encode())
        if not text.allowed()[i]:
            return False
        text.advance(i)
    return bool(text.allowed()[PIECES.index(b"")])  # it may end there


@pytest.mark.parametrize(
    ("tokens", "fine"),
    [
        (["Ana", " is", ". The", " day"], True),
        (["the", " Ana", ",", " Bor", "is"], True),
        (["the", " Bor", "is", "."], True),
        (["the", " Bor", "ris"], False),
        (["The", " Bo", "r"], False),  # only half of a name
        (["the", " Bo", "ris"], True),
        (["the", " The"], False),  # no beginning of a sentence
        (["the", ".", " The"], True),
        (["I"], True),
        (["at", " 14", ":30"], False),  # one token for several, but:
        (["at", " 14", ":", "3", "0"], True),
        (["at", " 14", ":", "3", "1"], False),
        (["at", " 14"], False),
        (["at", " ", "3", "."], True),
        (["at", " ", "3", "1"], False),
        (["at", " 19", ":", "0", "0"], True),  # 7pm
        (["at", " 7pm"], True),
        (["at", " 7pm", "m"], False),
        (["for", " $", "45", ".", "5", "0"], True),
        (["for", " €", "45"], False),
        (["for", " 45", "%"], False),
        (["on", " Mon", "day"], True),
        (["on", " may"], True),
        (["on", " May"], False),
        (["on", " to", "morrow"], False),
        (["on", " ten"], False),
        (["one", " two"], False),
        (["at", " É", "v", "a"], True),
        (["at", " \xc3".replace("\xc3", "É"), "é"], False),
    ],
)
def test_tokens_in_a_row(tokens: list[str], fine: bool) -> None:
    available = [t for token in tokens for t in ([token] if token.encode() in PIECES else [*token])]
    assert written(SOURCE, available) == fine


@pytest.mark.parametrize("opening", ["Yes", "Sorry", "Sure", "No", "Thanks", "Please"])
def test_common_words_may_begin_a_sentence(opening: str) -> None:
    assert written("the bus is late", list(opening))
    assert not written("the bus is late", ["a", " ", *opening])
    assert not written("the bus is late", list("Karlov"))


@pytest.mark.parametrize("seed", range(4))
def test_answers_hold_nothing_that_is_not_in_the_source(seed: int) -> None:
    # The model is random, so that it would write any number and any name.
    tokenizer, model = tiny_tokenizer(), random_model(PRESETS["tiny"], seed)
    known = vocabulary(tokenizer)
    assert known is not None
    grounding = Grounding(known, SOURCE)
    most = GenerationOptions(SamplingMode.random(seed=seed), 1.5, maximum_response_tokens=160)
    request = Request(tokenizer.encode("Write!"), most, constraint=grounding.start)
    answer = [*generate(model, tokenizer, request)][-1].text
    free = [*generate(model, tokenizer, Request(request.tokens, most))][-1].text
    shown = answer.replace("Ā", "\0")  # what mlx-lm makes of that byte
    whole = re.sub(r"\w+\W?$", "", shown)  # the last word may be cut
    kinds: tuple[Kind, ...] = ("name", "number", "time", "amount")
    assert len(whole) > 10
    assert unsupported(whole, SOURCE, kinds) == ()
    assert unsupported(free, SOURCE, kinds)


@pytest.mark.parametrize("seed", range(10))
def test_something_is_always_allowed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = bytes(rng.integers(32, 500, 80).astype(np.uint16)).decode("utf-16", "ignore")
    text = Grounding(pieces(), source).start()
    for _ in range(60):
        allowed = np.flatnonzero(text.allowed())
        assert allowed.size
        text.advance(int(rng.choice(allowed)))


def test_models_may_have_more_logits_than_tokens() -> None:
    # Guards: padded vocabularies, whose extra logits are of no token at all.
    tokenizer, model = tiny_tokenizer(), random_model(PRESETS["tiny"])
    small = Vocabulary([b"", b"a", b"b"])
    most = GenerationOptions(maximum_response_tokens=8)
    request = Request([5, 6], most, constraint=Grounding(small, "x").start)
    writer = [*generate(model, tokenizer, request)][-1]
    assert writer.finish_reason in ("stop", "length")


def test_the_same_text_where_nothing_is_to_be_held_back() -> None:
    tokenizer, model = tiny_tokenizer(), random_model(PRESETS["tiny"])

    class Free:
        def allowed(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
            return np.ones(model.args.vocab_size, np.bool_)

        def advance(self, token: int) -> None:
            pass

        @property
        def ended(self) -> bool:
            return False

    for sampling in (SamplingMode.greedy(), SamplingMode.random(seed=3)):
        most = GenerationOptions(sampling, maximum_response_tokens=24)
        plain, held = Request([5, 6], most), Request([5, 6], most, constraint=Free)
        assert [*generate(model, tokenizer, plain)][-1].text == (
            [*generate(model, tokenizer, held)][-1].text
        )
