"""Rounded activations against numpy, dense layers fed by hand, and the untouched model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS, Model, named_weights
from afm_mlx.quant.activations import fake_quantize, quantized_inputs
from afm_mlx.quant.layers import PalettizedLinear, make_ready
from afm_mlx.quant.palette import palettize
from tests.conftest import number, random_model

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers

TINY = replace(PRESETS["tiny"], num_hidden_layers=2)
TOKENS = mx.array([[3 + i * i % 251 for i in range(24)]])


def inputs(*shape: int) -> mx.array:
    return mx.array(np.random.default_rng(7).standard_normal(shape).astype(np.float32))


def stock_affine(model: Model) -> None:
    nn.quantize(model, 32, 4, class_predicate=lambda _, m: isinstance(m, nn.Linear))


def own_affine(model: Model) -> None:
    stock_affine(model)
    make_ready(model, 1e9)


def palettes(model: Model) -> None:
    made = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            made.append((name, PalettizedLinear.of(palettize(np.array(layer.weight), [3])[3])))
    model.update_modules(tree_unflatten(made))
    model.set_dtype(mx.float32)


def adapter(model: Model) -> None:
    palettes(model)
    config = {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "mlp.up_proj"]}
    linear_to_lora_layers(model, 2, config)
    for name, value in named_weights(model):
        if name.endswith("lora_b"):
            model.load_weights([(name, inputs(*value.shape))], strict=False)


FORMS: list[Callable[[Model], Any]] = [lambda _: None, stock_affine, own_affine, palettes, adapter]


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_equals_numpy(bits: int) -> None:
    x = inputs(3, 5, 48) * mx.array([1e-6, 1, 3e4])[:, None, None]
    levels = 2 ** (bits - 1) - 1
    exact = np.array(x, np.float64)
    scale = np.abs(exact).max(-1, keepdims=True) / levels
    codes = np.rint(exact / scale)
    assert set(np.unique(codes)) <= set(range(-levels, levels + 1))
    found = np.array(fake_quantize(x, bits), np.float64)
    # Where a number lies between two steps, float32 may take the other one.
    off = np.abs(found - codes * scale) / scale
    assert off.max() < 1.01 and (off > 1e-3 * levels / 127).mean() < 2e-3
    assert (np.abs(found - exact) <= 0.501 * scale).all()


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_type_and_empty_tokens(dtype: mx.Dtype) -> None:
    x = mx.array([[0, 0, 0, 0], [1, -127, 63, 0.4]], dtype)
    y = fake_quantize(x)
    assert y.dtype == dtype
    assert y.tolist() == [[0, 0, 0, 0], [1, -127, 63, 0]]


def test_tokens_next_to_nothing_are_nothing() -> None:
    # Their scale is below the smallest float: dividing by it gave NaN.
    assert fake_quantize(mx.array([[1e-44, 0.0]])).tolist() == [[0, 0]]


def test_rounding_twice_is_rounding_once() -> None:
    once = fake_quantize(inputs(6, 32))
    np.testing.assert_allclose(np.array(fake_quantize(once)), np.array(once), rtol=1e-6)


def test_gradient_goes_straight_through() -> None:
    x, c = inputs(6, 32), inputs(6, 32) + 1
    found = mx.grad(lambda x: mx.sum(fake_quantize(x, 3) * c))(x)
    assert mx.array_equal(found, c)
    compiled = mx.compile(mx.grad(lambda x: mx.sum(fake_quantize(x, 3) * c)))
    assert mx.array_equal(compiled(x), c)


@pytest.mark.parametrize("make", FORMS)
@pytest.mark.parametrize("tied", [True, False])
def test_inputs_of_the_blocks_are_rounded_and_the_head_s_are_not(
    make: Callable[[Model], Any], tied: bool
) -> None:
    model = random_model(replace(TINY, tie_word_embeddings=tied))
    make(model)
    plain = model(TOKENS)
    seen: list[mx.array] = []

    class Spy(nn.Module):
        """Rounds by hand what goes into a layer."""

        def __init__(self, layer: Any) -> None:
            super().__init__()
            self._layer = layer

        def __call__(self, x: mx.array) -> mx.array:
            seen.append(x)
            step = mx.max(mx.abs(x), axis=-1, keepdims=True) / 7
            return self._layer(mx.round(x / step) * step)

    with quantized_inputs(model, 4):
        found = model(TOKENS)
    layers: dict[str, Any] = dict(model.named_modules())
    names = [n for n in layers if n.startswith("model.layers") and n.endswith("_proj")]
    model.update_modules(tree_unflatten([(n, Spy(layers[n])) for n in names]))
    expected = model(TOKENS)
    assert len(seen) == 2 * 7
    assert mx.abs(found - expected).max() < 1e-4 * mx.abs(expected).max()
    assert mx.abs(found - plain).max() > 1e-2 * mx.abs(expected).max()


@pytest.mark.parametrize("make", FORMS)
def test_undone_exactly(make: Callable[[Model], Any]) -> None:
    model = random_model(TINY)
    make(model)
    before, kinds = model(TOKENS), [(n, id(m), type(m)) for n, m in model.named_modules()]
    weights = named_weights(model)
    with quantized_inputs(model, 3):
        inside = named_weights(model)
        changed = model(TOKENS)
        assert [(n, id(m)) for n, m in model.named_modules()] == [k[:2] for k in kinds]
    assert not mx.array_equal(changed, before)
    with pytest.raises(ZeroDivisionError), quantized_inputs(model, 3):
        raise ZeroDivisionError
    assert [(n, id(m), type(m)) for n, m in model.named_modules()] == kinds
    after = named_weights(model)
    assert [n for n, _ in weights] == [n for n, _ in inside] == [n for n, _ in after]
    assert all(a is b for (_, a), (_, b) in zip(weights, after, strict=True))
    assert mx.array_equal(model(TOKENS), before)


def test_error_is_small_and_halves_with_each_bit() -> None:
    model = random_model(TINY)
    plain = model(TOKENS)

    def error(bits: int) -> float:
        with quantized_inputs(model, bits):
            return number(mx.abs(model(TOKENS) - plain).mean() / mx.abs(plain).mean())

    assert error(8) < 0.06
    assert error(8) / error(11) == pytest.approx(8, rel=0.3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trains_with_rounded_inputs(checkpointing: bool) -> None:
    model = random_model(TINY)
    model.model.gradient_checkpointing = checkpointing
    model.train()
    optimizer = optim.Adam(learning_rate=1e-3)

    def loss(model: Model) -> mx.array:
        logits = model(TOKENS[:, :-1])
        return nn.losses.cross_entropy(logits, TOKENS[:, 1:], reduction="mean")

    step = nn.value_and_grad(model, loss)
    with quantized_inputs(model, 4):
        losses = []
        for _ in range(8):
            value, gradients = step(model)
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), value)
            losses.append(float(value))
    assert losses[-1] < losses[0] - 0.5


def test_an_adapter_attached_meanwhile_stays_when_it_is_undone() -> None:
    model = random_model(TINY)
    with quantized_inputs(model):
        linear_to_lora_layers(model, 2, {"rank": 4, "scale": 2.0, "dropout": 0.0})
    kinds = {type(m) for _, m in model.named_modules()}
    assert LoRALinear in kinds
    assert {k for k in kinds if issubclass(k, nn.Linear)} == {nn.Linear}


@pytest.mark.parametrize("bits", [0, 1, 17])
def test_bad_bits_change_nothing(bits: int) -> None:
    model = random_model(TINY)
    with pytest.raises(InputError, match="2 to 16 bits"), quantized_inputs(model, bits):
        pass
    assert type(model.layers[0].mlp.up_proj) is nn.Linear
