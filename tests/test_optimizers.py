"""AdamW against MLX's own; Muon against the singular values it should leave."""

from collections.abc import Callable
from typing import Any

from afm_mlx.optimizers import ADAMW_RMS, AdamW, Muon

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

Array = np.ndarray[Any, Any]


def steps(optimizer: optim.Optimizer, start: Array, gradients: list[Array]) -> list[Array]:
    """Weights after each step; the learning rate changes on the way."""
    parameters: Any = {"a": {"weight": mx.array(start)}}
    optimizer.init(parameters)
    found = []
    for i, gradient in enumerate(gradients):
        optimizer.learning_rate = 0.01 / (i + 1)
        parameters = optimizer.apply_gradients({"a": {"weight": mx.array(gradient)}}, parameters)
        mx.eval(parameters, optimizer.state)
        found.append(np.array(parameters["a"]["weight"]))
    return found


def made_up(shape: tuple[int, ...], scale: float = 1.0) -> tuple[Array, list[Array]]:
    rng = np.random.default_rng(0)
    normal: Callable[[], Array] = lambda: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return normal(), [scale * normal() for _ in range(6)]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-8])  # at the last one eps counts
@pytest.mark.parametrize("shape", [(33, 17), (7,)])
def test_adamw_is_that_of_mlx(shape: tuple[int, ...], scale: float, decay: float) -> None:
    start, gradients = made_up(shape, scale)
    betas = (0.9, 0.95)
    theirs = optim.AdamW(0.01, betas=list(betas), weight_decay=decay, bias_correction=True)
    ours = AdamW(0.01, betas, decay)
    for a, b in zip(steps(ours, start, gradients), steps(theirs, start, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    for name in ("m", "v"):
        np.testing.assert_allclose(
            np.array(ours.state["a"]["weight"][name]),
            np.array(theirs.state["a"]["weight"][name]),
            rtol=1e-5,
        )


def test_adamw_is_that_of_the_paper() -> None:
    """In float64: arXiv 1711.05101, algorithm 2."""
    start, gradients = made_up((5, 4))
    w, m, v = start.astype(np.float64), np.zeros((5, 4)), np.zeros((5, 4))
    found = steps(AdamW(0.01, (0.9, 0.95), 0.1), start, gradients)
    for t, (g, weights) in enumerate(zip(gradients, found, strict=True), 1):
        rate = 0.01 / t
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
        w = w - rate * (step + 0.1 * w)
        np.testing.assert_allclose(weights, w, atol=2e-6)


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (32, 32)])
def test_muon_makes_updates_orthogonal_and_of_adamws_size(shape: tuple[int, int]) -> None:
    start, gradients = made_up(shape)
    (after,) = steps(Muon(0.01, weight_decay=0.0), start, gradients[:1])
    change = (start - after) / 0.01
    values = np.linalg.svd(change, compute_uv=False) / (ADAMW_RMS * max(shape) ** 0.5)
    assert 0.6 < np.median(values) and values.max() < 1.3  # Newton-Schulz brings them near one
    assert np.sqrt((change**2).mean()) == pytest.approx(ADAMW_RMS, rel=0.2)


def test_muon_decays_the_weights_themselves() -> None:
    """MLX's own adds the decay to the gradients, and a larger weight would not shrink faster."""
    start, gradients = made_up((16, 16))
    with_decay = steps(Muon(0.01, weight_decay=0.5), start, gradients[:1])[0]
    without = steps(Muon(0.01, weight_decay=0.0), start, gradients[:1])[0]
    np.testing.assert_allclose(without - with_decay, 0.01 * 0.5 * start, atol=1e-6)


def test_muon_has_momentum() -> None:
    """The second update is that of the mean of both gradients, weighted by Nesterov's rule."""
    start, gradients = made_up((16, 16))
    first, second = steps(Muon(0.01, weight_decay=0.0), start, gradients[:2])
    v1 = 0.05 * gradients[0]
    ahead = 0.95 * (0.95 * v1 + 0.05 * gradients[1]) + 0.05 * gradients[1]
    (alone,) = steps(Muon(0.01, weight_decay=0.0), start, [ahead])
    np.testing.assert_allclose(first - second, (start - alone) / 2, atol=1e-4)
