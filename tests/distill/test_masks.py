"""Soft top-k against its definition, and learnt masks against a planted truth."""

from afm_mlx.distill import masks
from afm_mlx.model import PRESETS
from tests.conftest import number, random_model

import mlx.core as mx
import numpy as np
import pytest


def reference(scores: np.ndarray, k: int, eps: float) -> np.ndarray:
    """The same optimum by bisection: mask = sigmoid-free form min(1, exp((s + a) / eps)).

    Soft top-k maximises <s, m> + eps H(m) for 0 <= m <= 1 and sum m = k, whose solution is
    m = min(1, exp((s + a) / eps)) with a such that the sum is k.
    """
    low, high = -100.0, 100.0
    for _ in range(200):
        a = (low + high) / 2
        total = np.minimum(1, np.exp(np.minimum((scores + a) / eps, 0))).sum()
        low, high = (a, high) if total < k else (low, a)
    return np.minimum(1, np.exp(np.minimum((scores + a) / eps, 0)))


@pytest.mark.parametrize("eps, near", [(1.0, 0.02), (0.5, 0.1)])
@pytest.mark.parametrize("k", [3, 20, 40])
def test_soft_top_k_solves_its_problem(k: int, eps: float, near: float) -> None:
    """Twenty rounds do not quite get there if eps is smaller."""
    scores = np.random.default_rng(0).normal(size=50)
    found = np.array(masks.soft_top_k(mx.array(scores.astype(np.float32)), k, eps))
    assert np.allclose(found, reference(scores, k, eps), atol=near)
    assert abs(found.sum() - k) < 0.05 * k and found.max() <= 1 + 1e-5


def test_a_small_eps_is_nearly_hard_top_k() -> None:
    scores = np.random.default_rng(1).permutation(50) / 10
    found = np.array(masks.soft_top_k(mx.array(scores.astype(np.float32)), 20, 0.02))
    chosen = np.sort(found)[::-1]
    assert (np.diff(found[np.argsort(scores)]) >= -1e-6).all()
    assert chosen[:15].min() > 0.99 and chosen[25:].max() < 0.01


def test_all_stay_if_k_is_all() -> None:
    assert number(mx.min(masks.soft_top_k(mx.zeros(4), 4, 0.1))) == 1


def test_gradient_flows_to_the_scores() -> None:
    scores = mx.array(np.random.default_rng(2).normal(size=30).astype(np.float32))
    weights = mx.arange(30) / 30

    def value(s: mx.array) -> mx.array:
        return mx.sum(masks.soft_top_k(s, 10, 0.5) * weights)

    found = np.array(mx.grad(value)(scores))
    step = mx.zeros(30)
    step[4] = 1e-2
    wanted = (number(value(scores + step)) - number(value(scores - step))) / 2e-2
    assert found[4] == pytest.approx(wanted, rel=0.05, abs=1e-3)


def test_masks_come_off_again() -> None:
    model = random_model(PRESETS["tiny"])
    tokens = mx.array([[5, 6, 7, 8]])
    before = model(tokens)
    importance = [np.arange(1, 513)] * 4
    masks.put_on(model, importance, [256] * 4)
    assert set(dict(_trainable(model))) == {f"model.layers.{i}.mlp.scores" for i in range(4)}
    masks.sharpen(model, 1.0)
    assert not mx.allclose(model(tokens), before, atol=1e-3)
    scores = masks.take_off(model)
    assert (np.argsort(-scores[2])[:256] >= 256).all()
    assert mx.array_equal(model(tokens), before)
    assert len(_trainable(model)) > 30


def _trainable(model: object) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    return list(tree_flatten(model.trainable_parameters()))  # type: ignore[attr-defined]
