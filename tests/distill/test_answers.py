"""Sampling many prompts at once gives what each gives alone; thoughts are told from answers."""

from afm_mlx.distill.answers import (
    Answer,
    LocalRespondent,
    drawing,
    sample,
    split_thoughts,
)
from afm_mlx.distill.teachers import Teacher, wrap
from afm_mlx.errors import ExceededContextWindowSizeError, InputError
from afm_mlx.generation import PREFILL_STEP, GenerationOptions, SamplingMode
from afm_mlx.model import PRESETS, Model
from afm_mlx.tokenizer import Message, Tokenizer

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models import llama

GREEDY = drawing(GenerationOptions())
KEY = mx.random.key(0)
QUESTION = [Message("user", "What is new?")]
NEVER: frozenset[int] = frozenset()


def random_options(
    seed: int | None = 0, tokens: int = 24, top: int | None = None
) -> GenerationOptions:
    return GenerationOptions(SamplingMode.random(seed=seed, top=top), 1.0, tokens)


def alone(model: object, prompt: list[int], count: int) -> list[int]:
    return [int(t) for t, _ in generate_step(mx.array(prompt), model, max_tokens=count)]


def sliding_llama() -> llama.Model:
    """mlx-lm's llama with two layers that see 8 tokens, whose caches rotate."""
    mx.random.seed(1)
    kinds = ["sliding_attention", "full_attention"] * 2
    model = llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=32,
            num_hidden_layers=4,
            intermediate_size=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=50,
            layer_types=kinds,
            sliding_window=8,
        )
    )
    mx.eval(model.parameters())
    return model


PROMPTS = {
    "one length": [[5, 6, 7], [8, 9, 10]],
    "other lengths": [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]],
    "one beginning": [[5, 6, 7, 8], [5, 6, 7, 9, 10], [5, 6, 7]],
    "the same": [[5, 6, 7]] * 3,
    "far apart": [list(range(3, 43)), [7], [5, 6], list(range(3, 44))],
}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("sliding", [False, True])
def test_together_as_alone(model: Model, name: str, sliding: bool) -> None:
    """Left padding would shift rotary positions and let rows see it."""
    asked = sliding_llama() if sliding else model
    prompts, most = PROMPTS[name], [6, 4, 9, 1]
    found = sample(asked, prompts, most[: len(prompts)], NEVER, GREEDY, KEY)
    assert found == [alone(asked, p, n) for p, n in zip(prompts, most, strict=False)]


def test_a_prompt_longer_than_a_prefill_step(model: Model) -> None:
    long = [3 + i % 200 for i in range(PREFILL_STEP + 7)]
    prompts = [[*long, 9], [*long, 9, 10], long[:-1]]
    found = sample(model, prompts, [5] * 3, NEVER, GREEDY, KEY)
    assert found == [alone(model, p, 5) for p in prompts]


def test_ends(model: Model) -> None:
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    whole = [alone(model, p, 12) for p in prompts]
    ends = frozenset({whole[0][4], whole[1][2]})
    found = sample(model, prompts, [12] * 3, ends, GREEDY, KEY)
    for tokens, expected in zip(found, whole, strict=True):
        stop = next((i + 1 for i, t in enumerate(expected) if t in ends), 12)
        assert tokens == expected[:stop]
    assert len(found[0]) <= 5 and len(found[1]) <= 3


@pytest.mark.parametrize(("prompts", "most"), [([[1], []], [1, 1]), ([[1]], [0]), ([[1]], [])])
def test_nothing_to_sample_from(model: Model, prompts: list[list[int]], most: list[int]) -> None:
    with pytest.raises(InputError, match="at least one token"):
        sample(model, prompts, most, NEVER, GREEDY, KEY)


@pytest.mark.parametrize(
    ("temperature", "top", "mass"),
    [(1.0, None, None), (0.5, None, None), (1.3, 5, None), (1, 9, 0.6)],
)
def test_the_distribution(temperature: float, top: int | None, mass: float | None) -> None:
    """Against float64 probabilities: temperature was once applied before the nucleus was cut."""
    logits = np.random.default_rng(0).normal(size=12) * 1.5
    p = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-p)
    kept = len(p) if top is None else top
    if mass is not None:
        kept = min(kept, int(np.searchsorted(np.cumsum(p[order]), mass)) + 1)
    q = np.zeros_like(p)
    q[order[:kept]] = p[order[:kept]] ** (1 / temperature)
    q /= q.sum()
    rows = 20_000
    mode = SamplingMode.random(top=top, probability_threshold=mass)
    draw = drawing(GenerationOptions(mode, temperature))
    drawn = draw(mx.broadcast_to(mx.array(logits.astype(np.float32)), (rows, 12)), KEY)
    seen = np.bincount(np.array(drawn), minlength=12) / rows
    assert np.all(np.abs(seen - q) < 5 * np.sqrt(q * (1 - q) / rows) + 1e-9)


def teacher(model: Model, tokenizer: Tokenizer) -> Teacher:
    return wrap("tiny", model, tokenizer)


def test_seeds(model: Model, tokenizer: Tokenizer) -> None:
    asked = LocalRespondent(teacher(model, tokenizer))
    mx.random.seed(5)
    untouched = mx.random.normal((4,)).tolist()
    mx.random.seed(5)
    first = asked.answers(QUESTION, 4, random_options(3))
    assert mx.random.normal((4,)).tolist() == untouched
    assert asked.answers(QUESTION, 4, random_options(3)) == first
    assert asked.answers(QUESTION, 4, random_options(4)) != first
    assert len({a.text for a in first}) == 4  # rows draw for themselves
    assert not any(a.complete for a in first)


def test_the_window(model: Model, tokenizer: Tokenizer) -> None:
    asked = LocalRespondent(teacher(model, tokenizer))
    template = len(tokenizer.chat([Message("user", "")]))
    window = PRESETS["tiny"].max_position_embeddings
    full = [Message("user", "a" * (window - template - 3))]
    (answer,) = asked.answers(full, 1, random_options())
    prompt = tokenizer.chat(full)
    (tokens,) = sample(
        model, [prompt], [3], tokenizer.eos_token_ids, drawing(random_options()), KEY
    )
    assert len(tokens) == 3 and answer.text == tokenizer.decode(tokens).strip()
    with pytest.raises(ExceededContextWindowSizeError):
        asked.answers([Message("user", "a" * (window - template))], 1, random_options())


def test_text_and_end(model: Model, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.chat(QUESTION)
    tokens = alone(model, prompt, 20)
    tokenizer.eos_token_ids = frozenset({tokens[9]})
    stop = tokens.index(tokens[9])
    asked = LocalRespondent(teacher(model, tokenizer))
    (answer,) = asked.answers(QUESTION, 1, GenerationOptions())
    assert answer == Answer(tokenizer.decode(tokens[:stop]).strip(), complete=True)
    (cut,) = asked.answers(QUESTION, 1, GenerationOptions(maximum_response_tokens=stop))
    assert not cut.complete and cut.text == answer.text


@pytest.mark.parametrize(
    ("text", "thoughts", "rest"),
    [
        ("Hello.", "", "Hello."),
        ("<think>\nHm.\n</think>\n\nHello.", "Hm.", "Hello."),
        ("Hm.\n</think>\n\nHello.", "Hm.", "Hello."),  # the template opened it
        ("<think>\nHm, what", "Hm, what", ""),  # cut short
        ("<think></think>Hello.", "", "Hello."),
        ("<think>a</think> x <think>b</think> y", "a\nb", "x  y"),
        ("", "", ""),
    ],
)
def test_thoughts(text: str, thoughts: str, rest: str) -> None:
    assert split_thoughts(text) == (thoughts, rest)
    assert Answer.of(text, True, "strip") == Answer(rest)
    kept = Answer.of(text, True, "keep")
    assert kept == Answer(rest, thoughts=thoughts)
    assert split_thoughts(kept.content) == (thoughts, rest)


def test_thoughts_apart() -> None:
    assert Answer.of("Hello.", False, "keep", " Hm. ").content == "<think>\nHm.\n</think>\n\nHello."
    assert Answer.of("Hello.", False, "strip", "Hm.") == Answer("Hello.", False)


def test_a_teacher_of_mlx_lm(tokenizer: Tokenizer) -> None:
    """mlx-lm's classes take no ``last``, which this package's own generation needs."""
    theirs = llama.Model(llama.ModelArgs.from_dict(PRESETS["tiny"].to_dict()))
    mx.eval(theirs.parameters())
    asked = LocalRespondent(wrap("theirs", theirs, tokenizer))
    (answer,) = asked.answers(QUESTION, 1, GenerationOptions(maximum_response_tokens=5))
    tokens = alone(theirs, tokenizer.chat(QUESTION), 5)
    assert not set(tokens) & tokenizer.eos_token_ids
    assert answer == Answer(tokenizer.decode(tokens).strip(), complete=False)
