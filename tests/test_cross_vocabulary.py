"""Losses between vocabularies agree with float64 references and with plain forward KL."""

from collections.abc import Callable
from dataclasses import replace

from afm_mlx.alignment import Aligner
from afm_mlx.cross_vocabulary import Rows, Side, SpanTargets, Vocabularies, span_loss, uld
from afm_mlx.errors import InputError, ModelError
from afm_mlx.model import PRESETS, Model
from tests.conftest import number, random_model
from tests.test_alignment import TEXT, by_span, byte_level, packed

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from mlx import nn, optimizers

Floats = npt.NDArray[np.float64]

# Markers are b""; the models' logits are wider than that by ids without a token.
STUDENT = [b"", b"u", b"n", b"un", b"happ", b"happy", b"a", b" on", b"unknown"]
TEACHER = [b"un", b"unhappy", b"u", b"happ", b"a", b"n", b"y", b"", b" xy", b"anon", b"unhappily"]
COMMON = [(1, 2), (2, 5), (3, 0), (4, 3), (6, 4)]
SIZES = len(STUDENT) + 1, len(TEACHER) + 2
# Tokens of each span: one common to both; "unhappy", the teacher's alone; the same two tokens;
# "unhappy" in two tokens and in three; two markers said to mean the same; one more common one;
# "happyu", where neither the whole nor the student's first token is common.
SPANS = [
    ([6], [4]),
    ([3, 5], [1]),
    ([1, 2], [2, 5]),
    ([3, 5], [0, 3, 6]),
    ([0], [7]),
    ([2], [5]),
    ([5, 1], [3, 6, 2]),
]


KNOWN = [STUDENT[i] for i, _ in COMMON]


def home(piece: bytes) -> int:
    """Index of the longest common token that ``piece`` begins with, or -1."""
    found = [k for k in KNOWN if piece.startswith(k)]
    return KNOWN.index(max(found, key=len)) if found else -1


def vocabularies() -> Vocabularies:
    ours, theirs = np.array(COMMON, np.int32).T
    return Vocabularies(Side.of(ours, STUDENT, SIZES[0]), Side.of(theirs, TEACHER, SIZES[1]))


def rows(groups: list[list[int]]) -> Rows:
    tokens = [g[0] for g in groups] + [t for g in groups for t in g[1:]]
    span = [*range(len(groups)), *(n for n, g in enumerate(groups) for _ in g[1:])]
    flat = [np.array(x, np.int32) for x in (range(len(tokens)), tokens, span)]
    return Rows(np.zeros_like(flat[0]), *flat)


def targets() -> SpanTargets:
    ours, theirs = (rows([s[side] for s in SPANS]) for side in (0, 1))
    texts = [b"".join(STUDENT[t] for t in s) for s, _ in SPANS]
    event = [KNOWN.index(x) if x in KNOWN else len(KNOWN) for x in texts]
    return SpanTargets(ours, theirs, np.array(event, np.int32), np.ones(len(SPANS), np.float32))


def softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def masses(
    logits: Floats, groups: list[list[int]], side: int
) -> tuple[list[Floats], list[float], list[Floats]]:
    """For each span: masses of its events, of what is none, of tokens that one side has."""
    pieces = [*(STUDENT, TEACHER)[side], b"", b""]
    common = {pair[side] for pair in COMMON}
    of = rows(groups).span
    events, rest, others = [], [], []
    for n, group in enumerate(groups):
        p = softmax(logits[np.flatnonzero(of == n)])
        text = np.prod([q[t] for q, t in zip(p, group, strict=True)])
        first = p[0].copy()
        first[group[0]] -= text
        event = np.zeros(len(KNOWN) + 2)
        for i, mass in enumerate(first):
            event[home(pieces[i])] += mass
        x = b"".join(pieces[t] for t in group)
        event[KNOWN.index(x) if x in KNOWN else -2] += text
        events.append(event[:-1])
        rest.append(float(event[-1]))
        others.append(np.array([m for i, m in enumerate(first) if i not in common]))
    return events, rest, others


def sorted_difference(a: Floats, b: Floats) -> float:
    width = max(len(a), len(b))
    a, b = (np.pad(np.sort(x)[::-1], (0, width - len(x))) for x in (a, b))
    return float(np.abs(a - b).sum())


def reference(student: Floats, teacher: Floats, uld_weight: float) -> Floats:
    ours = masses(student, [s for s, _ in SPANS], 0)
    theirs = masses(teacher, [t for _, t in SPANS], 1)
    event = targets().event
    out = []
    for n, (s, t, gone, so, to) in enumerate(
        zip(ours[0], *theirs[:2], ours[2], theirs[2], strict=True)
    ):
        at = t > 1e-15  # the last event is none where the text is a common token
        p = t / (1 - gone)
        loss = (p[at] * np.log(p[at] / s[at])).sum()
        if len(SPANS[n][0]) > 1:
            pair = [event[n], home(STUDENT[SPANS[n][0][0]])]
            r, q = p[pair] / p[pair].sum(), s[pair] / s[pair].sum()
            loss += (1 - p[pair].sum()) * (r * np.log(r / q)).sum()
        out.append(loss + uld_weight * sorted_difference(so, to))
    return np.array(out)


def random_logits(seed: int = 0) -> tuple[Floats, Floats]:
    generator = np.random.default_rng(seed)
    shapes = [
        (len(getattr(targets(), n).row), w)
        for n, w in zip(("student", "teacher"), SIZES, strict=True)
    ]
    ours, theirs = (generator.normal(size=s) * 2 for s in shapes)
    return ours, theirs


# --- sorted probabilities


@pytest.mark.parametrize(("width", "teacher_width"), [(7, 12), (12, 7), (9, 9), (700, 900)])
def test_uld_is_the_distance_of_sorted_probabilities(width: int, teacher_width: int) -> None:
    generator = np.random.default_rng(0)
    student, teacher = (
        generator.normal(size=(30, width)),
        generator.normal(size=(30, teacher_width)),
    )
    pairs = zip(softmax(student), softmax(teacher), strict=True)
    expected = [sorted_difference(a, b) for a, b in pairs]
    np.testing.assert_allclose(uld(mx.array(student), mx.array(teacher)), expected, atol=2e-6)


def test_uld_of_the_first_ranks_stays_in_its_bounds() -> None:
    generator = np.random.default_rng(1)
    student, teacher = generator.normal(size=(50, 90)) * 2, generator.normal(size=(50, 130)) * 2
    exact = np.array(uld(mx.array(student), mx.array(teacher)))
    for top in (1, 5, 40, 100, 129):
        rests = [1 - np.sort(softmax(x))[:, ::-1][:, :top].sum(-1) for x in (student, teacher)]
        found = np.array(uld(mx.array(student), mx.array(teacher), top))
        assert (found <= exact + 1e-6).all()
        assert (exact <= found + 2 * np.minimum(*rests) + 1e-6).all()
    for top in (130, 500):
        np.testing.assert_allclose(uld(mx.array(student), mx.array(teacher), top), exact, atol=1e-6)


def differences(function: Callable[[Floats], float], x: Floats, step: float = 1e-6) -> Floats:
    """Gradient of ``function`` at ``x`` by central differences, number by number."""
    out = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][at] += step
        moved[1][at] -= step
        out[at] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return out


@pytest.mark.parametrize("top", [6, 20, None])
def test_uld_gradient(top: int | None) -> None:
    generator = np.random.default_rng(2)
    student, teacher = generator.normal(size=(4, 9)), generator.normal(size=(4, 12))

    def distance(x: Floats) -> float:
        first = [np.sort(softmax(y))[:, ::-1] for y in (x, teacher)]
        first = [np.pad(p, ((0, 0), (0, 12 - p.shape[1])))[:, :top] for p in first]
        rest = first[0].sum(-1) - first[1].sum(-1)
        return float(np.abs(first[0] - first[1]).sum() + np.abs(rest).sum())

    expected = differences(distance, student)
    found = mx.grad(lambda x: mx.sum(uld(x, mx.array(teacher), top)))(mx.array(student))
    np.testing.assert_allclose(found, expected, atol=1e-5)


# --- events


def test_tokens_of_one_side_count_for_what_they_begin_with() -> None:
    side = vocabularies().teacher
    homes = {i: side.events[i] for i in side.others.tolist()}
    un, a, nothing = COMMON.index((3, 0)), COMMON.index((6, 4)), len(COMMON)
    assert homes == {
        1: un,
        6: nothing,
        7: nothing,
        8: nothing,
        9: a,
        10: un,
        11: nothing,
        12: nothing,
    }


@pytest.mark.parametrize("uld_weight", [0.0, 0.3])
def test_loss_is_the_kl_between_events(uld_weight: float) -> None:
    for seed in range(5):
        student, teacher = random_logits(seed)
        found = span_loss(
            mx.array(student), mx.array(teacher), targets(), vocabularies(), uld_weight
        )
        np.testing.assert_allclose(
            found, reference(student, teacher, uld_weight), rtol=1e-5, atol=3e-6
        )
        assert uld_weight or (np.array(found) > 0).all()


@pytest.mark.parametrize("uld_weight", [0.0, 0.3])
def test_gradient_of_the_loss(uld_weight: float) -> None:
    student, teacher = random_logits(7)
    expected = differences(lambda x: reference(x, teacher, uld_weight).sum(), student)

    def loss(x: mx.array, y: mx.array) -> mx.array:
        return mx.sum(span_loss(x, y, targets(), vocabularies(), uld_weight))

    ours, theirs = mx.grad(loss, argnums=(0, 1))(mx.array(student), mx.array(teacher))
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    assert not np.array(theirs).any()  # the teacher learns nothing


def test_models_that_agree_on_the_text_lose_nothing() -> None:
    # One knows "ab" as a token, the other says "a" and then "b" with the same probability.
    ours, theirs = [b"a", b"b"], [b"a", b"b", b"ab"]
    common = np.arange(2, dtype=np.int32)
    pair = Vocabularies(Side.of(common, ours, 2), Side.of(common, theirs, 3))
    student = np.log([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6]])  # the last after an "a"
    teacher = np.log([[0.32, 0.2, 0.48], [0.32, 0.2, 0.48]])
    targets = SpanTargets(
        rows([[1], [0, 1]]), rows([[1], [2]]), np.array([1, 2], np.int32), np.ones(2, np.float32)
    )
    loss = span_loss(mx.array(student), mx.array(teacher), targets, pair)
    np.testing.assert_allclose(loss, [0, 0], atol=1e-6)


def test_half_precision_counts_in_full() -> None:
    student, teacher = (mx.array(x).astype(mx.bfloat16) for x in random_logits(9))
    found = span_loss(student, teacher, targets(), vocabularies())
    ours, theirs = (np.array(x.astype(mx.float32), np.float64) for x in (student, teacher))
    np.testing.assert_allclose(found, reference(ours, theirs, 0), rtol=1e-5, atol=3e-6)
    assert uld(student, student).dtype == mx.float32


def test_improbable_texts_give_finite_numbers() -> None:
    # Products of probabilities leave float32's range, and 1 - p of a sure token is 0 in it.
    student, teacher = random_logits(8)
    for ours, theirs in (
        (student * 40, teacher),
        (student, teacher * 40),
        (-student * 60, teacher * 60),
    ):
        loss, gradient = mx.value_and_grad(
            lambda x, y=theirs: mx.sum(span_loss(x, mx.array(y), targets(), vocabularies(), 0.3))
        )(mx.array(ours))
        assert np.isfinite(number(loss)) and np.isfinite(np.array(gradient)).all()


def test_wrong_width() -> None:
    student, teacher = random_logits()
    with pytest.raises(
        ModelError, match="9 wide, the vocabulary 10: give Aligner.vocabularies the widths"
    ):
        span_loss(mx.array(student)[:, 1:], mx.array(teacher), targets(), vocabularies())


def test_tokenizer_of_another_model() -> None:
    with pytest.raises(ModelError, match="a token 6, the model only 5: load the tokenizer that"):
        Side.of(np.array([1, 6], np.int32), STUDENT, 5)


def test_padding_counts_for_nothing() -> None:
    tokens, segments = packed([byte_level(300).encode(TEXT[:200])], 200)
    aligner = Aligner(byte_level(300), byte_level(420))
    batch = aligner.prepare(tokens, segments, 200)
    mx.random.seed(0)
    ours, theirs = mx.random.normal((1, 200, 300)), mx.random.normal((1, 200, 430))
    pair = aligner.vocabularies(300, 430)

    def total(part: SpanTargets) -> float:
        sides = part.student.of(ours), part.teacher.of(theirs)
        return number(mx.sum(span_loss(*sides, part, pair, 0.5)))

    whole = total(batch.targets)
    assert whole > 1
    assert sum(total(c) for c in batch.targets.chunks(17, 40)) == pytest.approx(whole, rel=1e-5)


# --- chunks


def chunk_targets(spans: int, rows: int) -> tuple[SpanTargets, list[SpanTargets]]:
    student = byte_level(300)
    tokens, segments = packed([student.encode(TEXT[:300]), student.encode(TEXT[300:500])], 500)
    targets = Aligner(student, byte_level(420)).prepare(tokens, segments, 500).targets
    return targets, list(targets.chunks(spans, rows))


@pytest.mark.parametrize(("spans", "rows"), [(16, 31), (40, 200), (5, 21), (500, 600)])
def test_chunks_hold_every_span_once(spans: int, rows: int) -> None:
    targets, chunks = chunk_targets(spans, rows)
    for side in ("student", "teacher"):
        whole: Rows = getattr(targets, side)
        expected = by_span(whole, len(targets.weight))
        found = []
        for chunk in chunks:
            part: Rows = getattr(chunk, side)
            assert {len(x) for x in (part.row, part.position, part.token, part.span)} == {rows}
            assert chunk.weight.shape == (spans,)
            groups = by_span(part, spans + 1)
            found += [g for g, w in zip(groups, chunk.weight, strict=False) if w]
        assert found == expected


def test_chunks_too_small_for_a_group() -> None:
    with pytest.raises(InputError, match="30 rows are too few for 20 spans: allow 16 more"):
        chunk_targets(20, 30)


def test_no_spans_no_chunks() -> None:
    student = byte_level(300)
    tokens, segments = np.zeros((2, 5), np.int32), np.zeros((2, 5), np.int32)
    batch = Aligner(student, student).prepare(tokens, segments, 4)
    assert not list(batch.targets.chunks()) and batch.size == 0 and not batch.tokens.any()


def test_rows_are_taken_from_the_batch() -> None:
    states = mx.arange(2 * 3 * 4).reshape(2, 3, 4)
    rows = Rows(*(np.array(x, np.int32) for x in ([0, 1, 1], [2, 0, 1], [5, 6, 7], [0, 1, 1])))
    assert rows.of(states).tolist() == [[8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19]]


# --- models


def test_equal_vocabularies_give_plain_forward_kl() -> None:
    tokenizer = byte_level(300)
    tokens, segments = packed([tokenizer.encode(TEXT[:150]), tokenizer.encode(TEXT[150:250])], 250)
    aligner = Aligner(tokenizer, tokenizer)
    batch = aligner.prepare(tokens, segments, 250)
    assert (batch.tokens == tokens).all() and (batch.segments == segments).all()
    args = replace(PRESETS["tiny"], vocab_size=300, num_hidden_layers=1)
    student, teacher = (random_model(args, seed)(mx.array(tokens)) for seed in (0, 1))
    pair = aligner.vocabularies(300, 300)
    targets = batch.targets
    ours, theirs = targets.student.of(student), targets.teacher.of(teacher)
    p, q = (softmax(np.array(x, np.float64)) for x in (theirs, ours))
    np.testing.assert_allclose(
        span_loss(ours, theirs, targets, pair), (p * np.log(p / q)).sum(-1), atol=1e-5
    )
    same = span_loss(ours, ours, targets, pair, uld_weight=1.0)
    assert len(targets.weight) > 100 and not np.array(same).any()


def test_student_moves_towards_a_teacher_with_other_tokens() -> None:
    tokenizers = byte_level(300), byte_level(420)
    samples = [tokenizers[0].encode(TEXT[n : n + 60]) for n in range(0, 360, 60)]
    rows = [packed(samples[n : n + 2], 120) for n in (0, 2, 4)]
    tokens, segments = (np.concatenate(x) for x in zip(*rows, strict=True))
    aligner = Aligner(*tokenizers)
    batch = aligner.prepare(tokens, segments, 120)
    pair = aligner.vocabularies(300, 420)
    small = replace(PRESETS["tiny"], num_hidden_layers=1)
    teacher = random_model(replace(small, vocab_size=420), seed=1)(mx.array(batch.tokens))
    student = random_model(replace(small, vocab_size=300), seed=2)
    inputs = mx.array(tokens)
    chunks = list(batch.targets.chunks(96, 144))
    spans = len(batch.targets.weight)

    def loss(model: Model) -> mx.array:
        out = model(inputs)
        parts = [
            mx.sum(span_loss(c.student.of(out), c.teacher.of(teacher), c, pair, uld_weight=0.1))
            for c in chunks
        ]
        return mx.sum(mx.stack(parts)) / spans

    step = nn.value_and_grad(student, loss)
    optimizer = optimizers.Adam(learning_rate=2e-3)
    losses = []
    for _ in range(30):
        value, gradients = step(student)
        optimizer.update(student, gradients)
        mx.eval(student.parameters(), optimizer.state)
        losses.append(number(value))
    assert losses[-1] < 0.5 * losses[0]
    assert len(chunks) > 1 and spans > 150
