"""Palettised layers against dense ones with the same weights."""

from typing import Any

from afm_mlx.model import PRESETS
from afm_mlx.quant.layers import (
    AffineLinear,
    PalettizedLinear,
    RowwiseEmbedding,
    learn_tables,
    make_ready,
    set_dtype,
    settle,
)
from afm_mlx.quant.palette import palettize
from tests.conftest import random_model

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.lora import LoRALinear

Array = np.ndarray[Any, Any]
WIDTHS = [1, 2, 3, 4, 6, 8]


def pair(bits: int, rows: int = 48, columns: int = 96) -> tuple[PalettizedLinear, mx.array]:
    """A float32 layer, and the weights it stands for."""
    weight = np.random.default_rng(bits).standard_normal((rows, columns)).astype(np.float32)
    q = palettize(weight, [bits])[bits]
    layer = PalettizedLinear.of(q)
    layer.set_dtype(mx.float32)
    return layer, mx.array(q.weight())


def inputs(*shape: int) -> mx.array:
    return mx.array(np.random.default_rng(7).standard_normal(shape).astype(np.float32))


def close(a: mx.array, b: mx.array, tolerance: float = 1e-5) -> bool:
    return bool(mx.abs(a - b).max() <= tolerance * mx.abs(b).max())


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("shape", [(96,), (1, 1, 96), (2, 13, 96)])
def test_outputs_are_those_of_the_dense_layer(
    bits: int, held: bool, shape: tuple[int, ...]
) -> None:
    layer, weight = pair(bits)
    layer.hold_dense(held)
    x = inputs(*shape)
    assert close(layer(x), x @ weight.T)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("held", [True, False])
def test_gradients_to_the_input(bits: int, held: bool) -> None:
    layer, weight = pair(bits)
    layer.hold_dense(held)
    c = inputs(5, 48)
    found = mx.grad(lambda x: mx.sum(layer(x) * c))(inputs(5, 96))
    assert close(found, c @ weight)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gradients_to_tables_and_scales(bits: int) -> None:
    layer, _ = pair(bits)
    codes, c, x = layer.codes, inputs(5, 48), inputs(5, 96)
    hot = (codes[..., None] == mx.arange(2**bits)).astype(mx.float32)  # [N, K, entries]

    def plain(values: dict[str, mx.array]) -> mx.array:
        tables = mx.repeat(values["lut"], 16, axis=0)
        weight = mx.sum(hot * tables[:, None], axis=-1) * values["scales"][:, None]
        return mx.sum((x @ weight.T) * c)

    expected = mx.grad(plain)({"lut": layer.lut, "scales": layer.scales})
    before = layer(x)
    layer.learn_tables()
    assert close(layer(x), before)
    _, found = nn.value_and_grad(layer, lambda x: mx.sum(layer(x) * c))(x)
    assert set(found) == {"lut", "gain"}
    assert close(found["lut"], expected["lut"])
    assert close(found["gain"], expected["scales"] * layer.scales)
    layer.gain = layer.gain * 2
    layer.settle()
    assert close(layer(x), 2 * before)
    assert not tree_flatten(layer.trainable_parameters())
    assert {k for k, _ in tree_flatten(layer.parameters())} <= {
        *("weight", "weight_high", "lut", "scales")
    }


def test_gradients_to_scales_and_biases_of_affine_layers() -> None:
    stock = nn.QuantizedLinear(96, 48, False, 32, 3)
    layer = AffineLinear(stock)
    c, x = inputs(5, 48), inputs(5, 96)

    def plain(values: dict[str, mx.array]) -> mx.array:
        weight = mx.dequantize(stock.weight, values["scales"], values["biases"], 32, 3)
        return mx.sum((x @ weight.T) * c)

    expected = mx.grad(plain)({"scales": stock.scales, "biases": stock.biases})
    layer.learn_tables()
    _, found = nn.value_and_grad(layer, lambda x: mx.sum(layer(x) * c))(x)
    assert set(found) == {"gain", "shift"}
    assert close(found["gain"], expected["scales"] * stock.scales)
    assert close(found["shift"], expected["biases"] * stock.scales)
    layer.shift = layer.shift + 1
    moved = layer(x)
    layer.settle()
    assert close(layer(x), moved)
    assert set(dict(tree_flatten(layer.parameters()))) == {"weight", "scales", "biases"}
    layer.biases = layer.biases - layer.scales
    assert close(layer(x), stock(x))


def test_norms_learn_with_the_tables() -> None:
    mx.random.seed(0)
    model = nn.Sequential(nn.RMSNorm(96), pair(3)[0])
    model.layers[0].weight = mx.random.uniform(0.01, 2, (96,))
    c, x = inputs(5, 48), inputs(5, 96)
    before, weight = model(x), model.layers[0].weight
    expected = mx.grad(lambda w: mx.sum(model.layers[1](mx.fast.rms_norm(x, w, 1e-5)) * c))(weight)
    learn_tables(model)
    assert close(model(x), before)
    _, found = nn.value_and_grad(model, lambda x: mx.sum(model(x) * c))(x)
    assert {k for k, _ in tree_flatten(found)} == {
        *("layers.0.gain", "layers.1.lut", "layers.1.gain")
    }
    assert close(found["layers"][0]["gain"], expected * weight)
    model.layers[0].gain = 3 * model.layers[0].gain
    settle(model)
    assert type(model.layers[0]) is nn.RMSNorm and close(model(x), 3 * before)
    assert not tree_flatten(model.trainable_parameters())


def test_lora_on_three_bits() -> None:
    # mlx-lm counts 960 inputs for 96 of 3 bits.
    lora = AffineLinear(nn.QuantizedLinear(96, 48, False, 32, 3)).to_lora(r=4)
    assert lora.lora_a.shape == (96, 4) and lora(inputs(2, 96)).shape == (2, 48)


def lora_step(layer: nn.Module, x: mx.array, target: mx.array) -> tuple[mx.array, Any]:
    return nn.value_and_grad(layer, lambda: mx.mean(mx.square(layer(x) - target)))()


@pytest.mark.parametrize("held", [True, False])
def test_lora_learns_as_through_dense_weights(held: bool) -> None:
    layer, weight = pair(3)
    layer.hold_dense(held)
    dense = nn.Linear(96, 48, bias=False)
    dense.weight = weight
    dense.freeze()
    mx.random.seed(0)
    ours = layer.to_lora(r=4, scale=2.0)
    assert isinstance(ours, LoRALinear)
    theirs = LoRALinear.from_base(dense, r=4, scale=2.0)
    theirs.lora_a = ours.lora_a
    x, target = inputs(9, 96), inputs(9, 48)
    names = set(dict(tree_flatten(ours.trainable_parameters())))
    assert names == {"lora_a", "lora_b"}
    first, second = optim.Adam(1e-2), optim.Adam(1e-2)
    for _ in range(5):
        a, grads_a = lora_step(ours, x, target)
        b, grads_b = lora_step(theirs, x, target)
        assert close(a, b) and close(grads_a["lora_b"], grads_b["lora_b"])
        first.update(ours, grads_a)
        second.update(theirs, grads_b)
    assert float(a.item()) < float(mx.mean(mx.square(x @ weight.T - target)).item())  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_keeps_the_tables(dtype: mx.Dtype) -> None:
    # bfloat16 would round them, and kernels read float16.
    model = random_model(PRESETS["tiny"])
    weight = np.array(model.layers[0].mlp.up_proj.weight)
    q = palettize(weight, [3])[3]
    model.layers[0].mlp.up_proj = PalettizedLinear.of(q)
    model.model.embed_tokens = RowwiseEmbedding.of(np.array(model.model.embed_tokens.weight))
    set_dtype(model, dtype)
    layer = model.layers[0].mlp.up_proj
    assert layer.lut.dtype == mx.float16 and np.array_equal(np.array(layer.lut), q.lut)
    y = layer(inputs(3, 128).astype(dtype))
    assert y.dtype == dtype
    assert close(y.astype(mx.float32), inputs(3, 128) @ mx.array(q.weight()).T, 0.03)
    assert model(mx.array([[5, 6]])).dtype == dtype


@pytest.mark.parametrize("held", [True, False])
def test_int8_embedding(held: bool) -> None:
    table = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    table[3] = 0.0
    layer = RowwiseEmbedding.of(table)
    layer.set_dtype(mx.float32)
    layer.hold_dense(held)
    steps = np.maximum(np.abs(table).max(1, keepdims=True) / 127, 1e-9)
    assert (np.abs(np.array(layer.dense()) - table) <= 0.51 * steps).all()
    ids = mx.array([[3, 49], [0, 3]])
    assert close(layer(ids), layer.dense()[ids])
    x = inputs(2, 5, 64)
    assert close(layer.as_linear(x), x @ layer.dense().T)


def test_int8_embedding_through_mlx_own_product() -> None:
    layer = RowwiseEmbedding.of(inputs(40, 128).__array__())
    layer.set_dtype(mx.float32)
    x = inputs(2, 5, 128)
    plain = layer.as_linear(x)
    layer.hold_grid(True)
    assert layer._grid is not None
    assert close(layer.as_linear(x), plain, 1e-4)


def test_dense_copies_stay_under_the_cap() -> None:
    model = random_model(PRESETS["tiny"])
    weights = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    for layer in model.layers:
        for name in ("gate_proj", "up_proj"):
            q = palettize(np.array(layer.mlp[name].weight), [3])[3]
            layer.mlp[name] = PalettizedLinear.of(q)
    model.set_dtype(mx.float32)
    one = 4 * weights["model.layers.0.mlp.up_proj"].weight.size
    make_ready(model, 3.5 * one)
    held = [m for _, m in model.named_modules() if isinstance(m, PalettizedLinear)]
    assert sum(m._dense is not None for m in held) == 3
    logits = model(mx.array([[5, 6, 7]]))
    make_ready(model, 0)
    assert not any(m._dense is not None for m in held)
    assert close(model(mx.array([[5, 6, 7]])), logits, 1e-4)


def test_mlx_own_layers_are_held_dense_too() -> None:
    model = random_model(PRESETS["tiny"])
    nn.quantize(model.layers[0], 64, 4)
    tokens = mx.array([[5, 6, 7]])
    before = model(tokens)
    names = set(dict(tree_flatten(model.parameters())))
    make_ready(model, 1e9)
    assert isinstance(model.layers[0].mlp.up_proj, AffineLinear)
    assert set(dict(tree_flatten(model.parameters()))) == names
    assert close(model(tokens), before, 1e-4)
