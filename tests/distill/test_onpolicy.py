"""The student's own answers in batches: masks, repeatability, and that learning from them helps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.data.sources import Sample
from afm_mlx.data.tokens import TokenStore, tokenize
from afm_mlx.distill.objective import Learner, LossOptions, Objective
from afm_mlx.distill.onpolicy import OnPolicyBatches, OnPolicyOptions
from afm_mlx.distill.teachers import Committee, wrap
from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS, Model
from afm_mlx.saves import Saves
from afm_mlx.tokenizer import Message, Tokenizer
from afm_mlx.training import Resumed, Step, TrainingOptions, train
from tests.conftest import number, random_model

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step

SHAPE = replace(
    PRESETS["tiny"],
    hidden_size=32,
    num_hidden_layers=2,
    intermediate_size=64,
    head_dim=8,
    num_key_value_heads=4,
)
WINDOW = 64
ALWAYS = OnPolicyOptions(on_policy=1.0, own_tokens=12)
NEVER = OnPolicyOptions()


def conversation(question: str, *turns: str) -> Sample:
    roles = ("user", "assistant")
    contents = (question, *turns)
    return Sample(messages=tuple(Message(roles[i % 2], c) for i, c in enumerate(contents)))


SAMPLES = [
    conversation("a", "first"),
    Sample(text="A text, which has no prompt."),
    conversation("bcd", "second"),
    conversation("e" * 100, "the prompt fills a window"),
    conversation("f", "third", "g", "fourth"),
    conversation("h", "cut " * 20),
]
USED = [0, 2, 4, 5]


@pytest.fixture
def store(tmp_path: Path, tokenizer: Tokenizer) -> TokenStore:
    return tokenize(SAMPLES, tokenizer, tmp_path / "tokens", "key")


def student(seed: int = 1) -> Model:
    return random_model(SHAPE, seed)


def batches(
    model: Model, store: TokenStore, options: OnPolicyOptions = ALWAYS, seed: int = 0, size: int = 4
) -> OnPolicyBatches:
    return OnPolicyBatches(model, store, frozenset({2}), WINDOW, size, options, seed)


def prompt_of(i: int, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.chat(SAMPLES[i].messages[:-1])


def used(row: Any) -> list[int]:
    return [int(t) for t in row[0][row[1] > 0]]


def test_the_student_answers(store: TokenStore, tokenizer: Tokenizer) -> None:
    """At temperature 0 its answers are those of mlx-lm; each is learnt, and nothing else."""
    model = student()
    dealt = batches(model, store, replace(ALWAYS, own_temperature=0.0))
    assert dealt.left_out == 2 and dealt.samples.tolist() == USED
    batch = dealt.batch(0)
    assert batch.tokens.shape == (4, WINDOW) and batch.tokens.dtype == np.int32
    assert batch.window.tolist() == [-1] * 4
    found = []
    for tokens, segments, learn in zip(batch.tokens, batch.segments, batch.learn, strict=True):
        row = used((tokens, segments))
        (place,) = (
            i for i in USED if row[: len(prompt_of(i, tokenizer))] == prompt_of(i, tokenizer)
        )
        found.append(place)
        prompt = prompt_of(place, tokenizer)
        room = min(12, WINDOW - len(prompt))
        answer = [int(t) for t, _ in generate_step(mx.array(prompt), model, max_tokens=room)]
        answer = answer[: answer.index(2) + 1 if 2 in answer else None]
        assert row == prompt + answer
        assert segments.tolist() == [1] * len(row) + [0] * (WINDOW - len(row))
        expected = [len(prompt) - 1 <= t < len(row) - 1 for t in range(WINDOW)]
        assert learn.tolist() == expected
        assert [int(t) for t in batch.labels[len(found) - 1][learn]] == answer
    assert sorted(found) == USED  # each once an epoch
    assert (dealt.epoch_steps, dealt.tokens_per_step) == (
        1,
        round(np.mean([min(store.lengths[i], WINDOW) for i in USED]) * 4),
    )


def test_the_window_limits_answers(store: TokenStore, tokenizer: Tokenizer) -> None:
    dealt = batches(student(), store, OnPolicyOptions(1.0, own_tokens=1000))
    batch = dealt.batch(0)
    ended = [2 in used(row)[-1:] for row in zip(batch.tokens, batch.segments, strict=True)]
    full = [len(used(row)) == WINDOW for row in zip(batch.tokens, batch.segments, strict=True)]
    assert any(full) and all(e or f for e, f in zip(ended, full, strict=True))


def test_answers_of_the_data(store: TokenStore) -> None:
    """Off policy, rows are what packing one conversation a window gives; all turns are learnt."""
    dealt = batches(student(), store, NEVER, size=len(USED))
    batch = dealt.batch(0)
    both = list(zip(batch.tokens, batch.segments, strict=True))
    rows = {tuple(used(row)): batch.learn[i] for i, row in enumerate(both)}
    assert len(rows) == len(USED)
    for i in USED:
        tokens, wanted = (x[:WINDOW] for x in store.sample(i))
        learn = rows[tuple(tokens.tolist())]
        assert learn.tolist() == [*wanted[1:].tolist(), *[False] * (WINDOW - len(wanted) + 1)]


def test_lambda(store: TokenStore) -> None:
    model = student()
    half = batches(model, store, replace(ALWAYS, on_policy=0.5, own_tokens=1), size=200).batch(0)
    data = batches(model, store, NEVER, size=200).batch(0)
    same = (half.tokens == data.tokens).all(1).sum()
    assert 70 < same < 130
    again = batches(model, store, replace(ALWAYS, on_policy=0.5, own_tokens=1), 1, 200).batch(0)
    assert not np.array_equal(half.tokens, again.tokens)


def test_a_batch_can_be_made_again(store: TokenStore) -> None:
    """Nothing depends on what was drawn before, here or elsewhere."""
    model = student()
    first = [batches(model, store).batch(s).tokens for s in range(3)]
    mx.random.seed(3)
    untouched = mx.random.normal((4,)).tolist()
    mx.random.seed(3)
    again = [batches(model, store).batch(s).tokens for s in (2, 1, 0)][::-1]
    assert mx.random.normal((4,)).tolist() == untouched
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], batches(model, store, seed=1).batch(0).tokens)
    assert not np.array_equal(first[0], batches(student(2), store).batch(0).tokens)


def test_ranks_share_a_batch(store: TokenStore) -> None:
    whole = batches(student(), store, NEVER).batch(1)
    parts = [batches(student(), store, NEVER).batch(1, rank, 2) for rank in range(2)]
    for rank, part in enumerate(parts):
        np.testing.assert_array_equal(part.tokens, whole.tokens[rank::2])
    with pytest.raises(InputError, match="multiple of 3"):
        batches(student(), store).batch(0, 0, 3)


def test_training_mode(store: TokenStore) -> None:
    """A checkpointed layer cannot write into a cache; dropout would change what is said."""
    model = student()
    expected = batches(model, store).batch(0)
    model.train()
    model.model.gradient_checkpointing = True
    found = batches(model, store).batch(0)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert model.training


def test_bad_options(store: TokenStore, tmp_path: Path, tokenizer: Tokenizer) -> None:
    for options in ({"on_policy": 1.5}, {"own_tokens": 0}, {"own_temperature": -1.0}):
        with pytest.raises(InputError, match=next(iter(options))):
            OnPolicyOptions(**options)
    with pytest.raises(InputError, match="at least 1 and 2"):
        batches(student(), store, size=0)
    texts = tokenize([SAMPLES[1], SAMPLES[3]], tokenizer, tmp_path / "texts", "key")
    with pytest.raises(InputError, match="larger window"):
        batches(student(), texts)


def objective(learner: Learner, teacher: Model, tokenizer: Tokenizer, loss: Any) -> Objective:
    committee = Committee((wrap("teacher", teacher, tokenizer),))
    return Objective(learner, committee, LossOptions(loss))


def log_probabilities(model: Model, tokens: list[int]) -> Any:
    """float64 ``[len(tokens), V]``."""
    logits = np.array(model(mx.array([tokens]))[0], np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_the_loss_is_that_of_each_token(store: TokenStore, tokenizer: Tokenizer) -> None:
    """Reverse KL at the answer's tokens, each answer alone with its prompt."""
    learner, teacher = Learner(student()), student(7)
    batch = batches(learner.student, store).batch(0)
    total, count, _ = objective(learner, teacher, tokenizer, "reverse-kl")(batch)
    expected, tokens = 0.0, 0
    for row in zip(batch.tokens, batch.segments, strict=True):
        whole = used(row)
        prompts = (prompt_of(i, tokenizer) for i in USED)
        (start,) = {len(p) for p in prompts if whole[: len(p)] == p}
        own, told = (
            log_probabilities(m, whole)[start - 1 : -1] for m in (learner.student, teacher)
        )
        expected += float((np.exp(own) * (own - told)).sum())
        tokens += len(whole) - start
    assert number(count) == tokens
    assert number(total) == pytest.approx(expected, rel=1e-3)


def test_on_policy_divergence_falls(
    store: TokenStore, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Measured on fresh samples of the student as it is then."""
    learner, teacher = Learner(student()), student(7)
    told = objective(learner, teacher, tokenizer, "reverse-kl")

    def measured() -> float:
        total, count, _ = told(batches(learner.student, store, seed=99, size=32).batch(0))
        return number(total) / number(count)

    before = measured()
    options = TrainingOptions(steps=20, batch_size=4, learning_rate=5e-3, save_every=100)
    dealt = batches(learner.student, store)
    losses = [
        e.loss
        for e in train(learner, told, dealt, options, Saves(tmp_path / "run", writes=False))
        if isinstance(e, Step)
    ]
    assert len(losses) == 20
    assert measured() < 0.8 * before


@pytest.mark.parametrize("loss", ["reverse-kl", "jsd"])
def test_a_resumed_run(store: TokenStore, tokenizer: Tokenizer, tmp_path: Path, loss: str) -> None:
    """Answers follow from seed, step and weights, so the losses go on as they would have."""
    options = TrainingOptions(steps=5, batch_size=4, learning_rate=1e-2, save_every=1)
    mixed = replace(ALWAYS, on_policy=0.7)

    def losses(folder: str, stop: int) -> list[float]:
        learner = Learner(student())
        told = objective(learner, student(7), tokenizer, loss)
        dealt = batches(learner.student, store, mixed)
        found: list[float] = []
        for event in train(learner, told, dealt, options, Saves(tmp_path / folder)):
            if isinstance(event, Resumed):
                assert event.step == 2
            if isinstance(event, Step):
                if len(found) == stop:
                    break  # the step is lost: it was not saved
                found.append(event.loss)
        return found

    whole = losses("whole", 5)
    parts = losses("parts", 2) + losses("parts", 5)
    assert len(whole) == len(parts) == 5
    assert parts == pytest.approx(whole, rel=1e-5)
