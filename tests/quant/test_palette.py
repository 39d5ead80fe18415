"""Palettising one matrix."""

from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.quant.feedback import factorise
from afm_mlx.quant.palette import bits_per_weight, palettize

import numpy as np
import pytest

Array = np.ndarray[Any, Any]


def matrix(rows: int = 32, columns: int = 64, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_every_weight_takes_its_nearest_entry(bits: int) -> None:
    weight = matrix() * np.linspace(0.1, 5, 32, dtype=np.float32)[:, None]
    found = palettize(weight, [bits])[bits]
    assert found.lut.shape == (2, 2**bits) and (np.diff(found.lut) >= 0).all()
    entries = found.lut.astype(np.float32).repeat(16, 0) * found.scales.astype(np.float32)[:, None]
    nearest = np.abs(weight[:, :, None] - entries[:, None]).min(-1)
    assert np.allclose(np.abs(found.weight() - weight), nearest, atol=1e-6)


def test_more_bits_err_less_and_one_call_gives_all() -> None:
    weight, fisher = matrix(), np.abs(matrix(seed=1)) + 0.01
    together = palettize(weight, [2, 3, 4], fisher)
    errors = [float((fisher * (q.weight() - weight) ** 2).sum()) for q in together.values()]
    assert errors == sorted(errors, reverse=True)
    for bits, found in together.items():
        alone = palettize(weight, [bits], fisher)[bits]
        assert np.array_equal(found.codes, alone.codes) and np.array_equal(found.lut, alone.lut)


def test_fisher_weights_decide_where_levels_lie() -> None:
    # Unweighted, the few weights that large activations meet would share a level with others.
    weight = matrix(16, 512)
    weight[:, 7] = np.random.default_rng(5).normal(3.0, 0.05, 16)
    fisher = np.full_like(weight, 1e-3)
    fisher[:, 7] = 1e3
    blind, seeing = palettize(weight, [2])[2], palettize(weight, [2], fisher)[2]
    assert np.abs(seeing.weight() - weight)[:, 7].mean() < 0.1
    assert np.abs(blind.weight() - weight)[:, 7].mean() > 0.3


def test_feedback_changes_outputs_less() -> None:
    weight = matrix(32, 128)
    x = matrix(600, 128, 3) @ matrix(128, 128, 4)
    hessian = x.T @ x / len(x)
    fed_back = palettize(weight, [3], order=factorise(hessian, 0.01))[3].weight()
    rounded = palettize(weight, [3])[3].weight()
    before, after = (np.square(x @ (w - weight).T).sum() for w in (rounded, fed_back))
    assert after < 0.5 * before


def test_same_input_same_bytes() -> None:
    weight, fisher = matrix(), np.abs(matrix(seed=1))
    order = factorise(np.cov(matrix(200, 64, 2).T), 0.1)
    first, second = (palettize(weight, [3], fisher, order)[3] for _ in range(2))
    for name in ("codes", "lut", "scales"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()


@pytest.mark.parametrize("value", [0.0, -0.37])
def test_constant_matrix(value: float) -> None:
    weight = np.full((16, 32), value, np.float32)
    found = palettize(weight, [2, 4])
    for q in found.values():
        assert np.allclose(q.weight(), value, atol=abs(value) * 1e-3)


@pytest.mark.parametrize("shape", [(16, 48), (24, 64)])
def test_shapes_that_no_palette_takes(shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="cannot be palettised"):
        palettize(matrix(*shape), [3])


def test_no_numbers_and_unknown_widths() -> None:
    weight = matrix()
    weight[3, 4] = np.nan
    with pytest.raises(InputError, match="no numbers"):
        palettize(weight, [3])
    with pytest.raises(InputError, match="not 5"):
        palettize(matrix(), [5])


def test_overheads_are_counted() -> None:
    q = palettize(matrix(32, 64), [4])[4]
    stored = q.codes.size * 4 + q.lut.size * 16 + q.scales.size * 16
    assert bits_per_weight((32, 64), 4) == pytest.approx(stored / q.codes.size)
