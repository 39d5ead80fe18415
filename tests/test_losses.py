"""Losses against numpy in float64, gradients against finite differences, chunks against whole."""

from collections.abc import Callable
from typing import Any

from afm_mlx import losses
from afm_mlx.losses import chunked_sum, plain_sum
from tests.conftest import number

import mlx.core as mx
import numpy as np
import pytest

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)
TEACHER = RANDOM.normal(size=(5, 40)) * 2
STUDENT = RANDOM.normal(size=(5, 40)) * 2
LABELS = RANDOM.integers(0, 40, 5)


def soft(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p: Array, q: Array) -> Array:
    return (p * (np.log(p) - np.log(q))).sum(-1)


def jsd(p: Array, q: Array, beta: float) -> Array:
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


REFERENCES: dict[str, Callable[[Array, Array], Array]] = {
    "forward-kl": kl,
    "reverse-kl": lambda p, q: kl(q, p),
    "skew-kl": lambda p, q: kl(p, 0.1 * p + 0.9 * q),
    "skew-reverse-kl": lambda p, q: kl(q, 0.9 * p + 0.1 * q),
    "jsd": lambda p, q: jsd(p, q, 0.5),
}


def numerical_gradient(f: Callable[[Array], float], x: Array, step: float = 1e-6) -> Array:
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        change = np.zeros_like(x)
        change[i] = step
        gradient[i] = (f(x + change) - f(x - change)) / (2 * step)
    return gradient


def gradient(f: Callable[[mx.array], mx.array], x: Array) -> Array:
    return np.array(mx.grad(lambda s: mx.sum(f(s)))(mx.array(x.astype(np.float32))))


@pytest.mark.parametrize("name", losses.DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_and_its_gradient(name: str, temperature: float) -> None:
    teacher = losses.log_softmax(mx.array(TEACHER.astype(np.float32)), temperature)

    def ours(student: mx.array) -> mx.array:
        return losses.DIVERGENCES[name](teacher, losses.log_softmax(student, temperature))

    def reference(student: Array) -> Array:
        return REFERENCES[name](soft(TEACHER / temperature), soft(student / temperature))

    found = np.array(ours(mx.array(STUDENT.astype(np.float32))))
    assert np.allclose(found, reference(STUDENT), atol=2e-5)
    wanted = numerical_gradient(lambda s: float(reference(s).sum()), STUDENT)
    assert np.allclose(gradient(ours, STUDENT), wanted, atol=2e-5)


@pytest.mark.parametrize("name", losses.DIVERGENCES)
def test_divergence_of_buckets(name: str) -> None:
    """The k likeliest tokens and the rest are a distribution like any other."""
    k = 6
    best = np.argsort(-TEACHER, -1)[:, :k]

    def buckets(p: Array) -> Array:
        chosen = np.take_along_axis(p, best, -1)
        return np.concatenate([chosen, 1 - chosen.sum(-1, keepdims=True)], -1)

    said = np.log(buckets(soft(TEACHER))[:, :-1]).astype(np.float32)
    teacher = losses.with_rest(mx.array(said))

    def ours(student: mx.array) -> mx.array:
        return losses.DIVERGENCES[name](teacher, losses.bucketed(student, mx.array(best)))

    def reference(student: Array) -> Array:
        return REFERENCES[name](buckets(soft(TEACHER)), buckets(soft(student)))

    found = np.array(ours(mx.array(STUDENT.astype(np.float32))))
    assert np.allclose(found, reference(STUDENT), atol=2e-5)
    wanted = numerical_gradient(lambda s: float(reference(s).sum()), STUDENT)
    assert np.allclose(gradient(ours, STUDENT), wanted, atol=3e-5)


def test_all_tokens_in_the_buckets_leave_no_rest() -> None:
    """log(0) must not spoil the sum."""
    sure = mx.array([[60.0, 0.0, 0.0, 0.0]])
    buckets = losses.bucketed(sure, mx.array([[0, 1]]))
    value = losses.forward_kl(buckets, losses.bucketed(sure, mx.array([[0, 1]])))
    assert np.isfinite(np.array(buckets)).all() and number(value) == pytest.approx(0, abs=1e-6)


def test_apples_target_and_cross_entropy() -> None:
    best = TEACHER.argmax(-1)
    rows = np.arange(5)

    def reference(student: Array) -> float:
        logs = np.log(soft(student))
        return float(-(0.9 * logs[rows, best] + 0.1 * logs[rows, LABELS]).sum())

    def ours(student: mx.array) -> mx.array:
        return losses.teacher_top1(student, mx.array(best), mx.array(LABELS))

    found = number(mx.sum(ours(mx.array(STUDENT.astype(np.float32)))))
    assert found == pytest.approx(reference(STUDENT), abs=1e-4)
    assert np.allclose(gradient(ours, STUDENT), numerical_gradient(reference, STUDENT), atol=2e-5)
    plain = losses.cross_entropy(mx.array(STUDENT.astype(np.float32)), mx.array(LABELS))
    assert np.allclose(np.array(plain), -np.log(soft(STUDENT))[rows, LABELS], atol=2e-5)


def test_hidden_error_is_relative_and_maps_widths() -> None:
    teacher = RANDOM.normal(size=(2, 3, 8)).astype(np.float32)
    student = RANDOM.normal(size=(2, 3, 6)).astype(np.float32)
    table = RANDOM.normal(size=(8, 6)).astype(np.float32)
    found = losses.hidden_error(mx.array(student), mx.array(teacher), mx.array(table))
    wanted = ((student @ table.T - teacher) ** 2).mean(-1) / (teacher**2).mean(-1)
    assert np.allclose(np.array(found), wanted, rtol=1e-4)
    assert number(mx.max(losses.hidden_error(mx.array(teacher), mx.array(teacher), None))) == 0


def test_relations_compare_models_of_other_width() -> None:
    heads, length = 4, 5
    teacher = RANDOM.normal(size=(2, length, 16))
    student = RANDOM.normal(size=(2, length, 8))
    mask = np.tril(np.ones((length, length), bool))

    def relations(x: Array) -> Array:
        b, n, d = x.shape
        split = x.reshape(b, n, heads, d // heads).transpose(0, 2, 1, 3)
        scores = split @ split.swapaxes(-1, -2) / np.sqrt(d // heads)
        return soft(np.where(mask, scores, -1e30))

    p, q = relations(teacher), relations(student)
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = np.where(p > 0, p * (np.log(p) - np.log(q)), 0).sum(-1).mean(1)
    found = losses.relation_error(
        mx.array(student.astype(np.float32)),
        mx.array(teacher.astype(np.float32)),
        mx.array(mask)[None, None],
        heads,
    )
    assert np.allclose(np.array(found), wanted, atol=1e-5)


N, D, V = 37, 16, 301
HIDDEN = RANDOM.normal(size=(N, D)).astype(np.float32)
TABLE = RANDOM.normal(size=(V, D)).astype(np.float32)
SAID = RANDOM.normal(size=(N, V)).astype(np.float32)


def rows(h: mx.array, w: mx.array, said: mx.array) -> tuple[mx.array, mx.array]:
    own = losses.log_softmax(h @ w.T)
    return mx.sum(losses.forward_kl(losses.log_softmax(said), own)), mx.sum(mx.argmax(own, -1))


@pytest.mark.parametrize("chunk", [1, 8, 37, 100])
def test_chunks_give_loss_and_gradients_of_the_whole(chunk: int) -> None:
    """Odd sizes: the last chunk is shorter. The cotangent 3 guards the custom gradient."""
    h, w, said = map(mx.array, (HIDDEN, TABLE, SAID))

    def chunked(h: mx.array, w: mx.array) -> mx.array:
        return 3 * chunked_sum(rows, h, w, [said], chunk)[0]

    def whole(h: mx.array, w: mx.array) -> mx.array:
        return 3 * rows(h, w, said)[0]

    value, gradients = mx.value_and_grad(chunked, argnums=(0, 1))(h, w)
    wanted, others = mx.value_and_grad(whole, argnums=(0, 1))(h, w)
    assert number(value) == pytest.approx(number(wanted), rel=1e-5)
    for a, b in zip(gradients, others, strict=True):
        assert np.allclose(np.array(a), np.array(b), atol=1e-4)
    sums = chunked_sum(rows, h, w, [said], chunk)
    assert number(sums[1]) == number(plain_sum(rows, h, w, [said], chunk)[1])


def test_a_frozen_head_gets_no_gradient() -> None:
    h, w, said = map(mx.array, (HIDDEN, TABLE, SAID))

    def chunked(h: mx.array, w: mx.array) -> mx.array:
        return chunked_sum(rows, h, w, [said], 8, train_head=False)[0]

    _, gradients = mx.value_and_grad(chunked, argnums=(0, 1))(h, w)
    wanted = mx.grad(lambda h: rows(h, w, said)[0])(h)
    assert np.allclose(np.array(gradients[0]), np.array(wanted), atol=1e-4)
    assert not np.array(gradients[1]).any()


@pytest.mark.slow
def test_memory_of_a_large_vocabulary() -> None:
    """Batch 4 x 512, 49,152 tokens: the plain form holds logits of both models at once."""
    n, d, v = 4 * 512, 32, 49_152
    mx.random.seed(0)
    h, w, said, table = (mx.random.normal(s) for s in ((n, d), (v, d), (n, d), (v, d)))

    def few(h: mx.array, w: mx.array, said: mx.array) -> tuple[mx.array]:
        teacher = losses.log_softmax(said @ table.T)
        return (mx.sum(losses.forward_kl(teacher, losses.log_softmax(h @ w.T))),)

    def peak(f: Callable[[mx.array, mx.array], mx.array]) -> tuple[float, int]:
        mx.eval(h, w, said, table)
        mx.synchronize()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        value, gradients = mx.value_and_grad(f, argnums=(0, 1))(h, w)
        mx.eval(value, gradients)
        return number(value) / n, mx.get_peak_memory() - before

    chunked, small = peak(lambda h, w: chunked_sum(few, h, w, [said])[0])
    plain, large = peak(lambda h, w: few(h, w, said)[0])
    assert chunked == pytest.approx(plain, rel=1e-5)
    assert large >= 2 * small
