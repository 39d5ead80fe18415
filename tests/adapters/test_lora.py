"""Slots around layers of every kind, against dense products and mlx-lm's own layers."""

from dataclasses import replace
from typing import Any

from afm_mlx.adapters.adapter import Adapter, LoRAOptions
from afm_mlx.adapters.layers import Filling, LoRAEmbedding, LoRALinear, slot_of
from afm_mlx.adapters.lora import fit, prepare, put, slots, stacked, strip, taken
from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS, Model, named_weights
from afm_mlx.quant.layers import AffineLinear, PalettizedLinear, RowwiseEmbedding
from afm_mlx.quant.palette import palettize
from tests.adapters.made import random_adapter
from tests.conftest import random_model

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers

K, N, RANK = 192, 64, 4
TOKENS = mx.array([[1, 2, 3, 4, 5]])
TINY = replace(PRESETS["tiny"], num_hidden_layers=2, hidden_size=64, intermediate_size=96)


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def linear(kind: str) -> Any:
    """A layer of 192 inputs and 64 outputs."""
    layer = nn.Linear(K, N, bias=kind == "bias")
    layer.weight = normal(N, K, seed=1) * 0.1
    if kind == "bias":
        layer.bias = normal(N, seed=2)
    if kind[0] in "qa":
        layer = nn.QuantizedLinear.from_linear(layer, 64, int(kind[1:]))
        return AffineLinear(layer) if kind[0] == "a" else layer
    if kind == "palette":
        layer = PalettizedLinear.of(palettize(np.array(layer.weight), [4])[4])
        layer.set_dtype(mx.float32)
    return layer


LINEARS = ["dense", "bias", "q3", "q4", "q5", "q6", "q8", "a3", "a6", "palette"]


def embedding(kind: str) -> Any:
    """A table of 96 rows and 64 columns."""
    layer = nn.Embedding(96, 64)
    layer.weight = normal(96, 64, seed=3)
    if kind == "quantized":
        return nn.QuantizedEmbedding.from_embedding(layer, 64, 4)
    if kind == "rowwise":
        rowwise = RowwiseEmbedding.of(np.array(layer.weight))
        rowwise.set_dtype(mx.float32)
        return rowwise
    return layer


EMBEDDINGS = ["dense", "quantized", "rowwise"]


def slot_for(layer: nn.Module) -> Any:
    slot = slot_of(layer)
    assert slot is not None
    return slot


def weight_of(layer: Any, columns: int) -> mx.array:
    """What a linear layer multiplies by, from what it does to unit vectors."""
    return (layer(mx.eye(columns)) - layer(mx.zeros((1, columns)))).T


def close(a: mx.array, b: mx.array, tolerance: float = 1e-5) -> bool:
    return bool(mx.abs(a - b).max() <= tolerance * mx.abs(b).max())


@pytest.mark.parametrize("kind", LINEARS)
def test_linear_layers_of_every_kind(kind: str) -> None:
    # mlx-lm's DoRA takes 32 // bits numbers to a word, and miscounts those of 3, 5 or 6 bits.
    layer = linear(kind)
    slot = slot_for(layer)
    assert isinstance(slot, LoRALinear)
    assert slot.shape == (K, N)
    x = normal(2, 5, K, seed=4)
    plain = layer(x)
    assert mx.array_equal(slot(x), plain)
    a, b = normal(K, RANK, seed=5), normal(RANK, N, seed=6)
    slot.fill(Filling(a, b, 0.5))
    delta = np.array(a) @ np.array(b) * 0.5
    assert close(slot(x), plain + x @ mx.array(delta))
    assert close(slot.dense(), weight_of(layer, K) + mx.array(delta).T, 1e-4)
    slot.empty()
    assert mx.array_equal(slot(x), plain)


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_embeddings_of_every_kind(kind: str) -> None:
    layer = embedding(kind)
    slot = slot_for(layer)
    assert isinstance(slot, LoRAEmbedding)
    assert slot.shape == (96, 64)
    tokens, x = mx.array([[3, 90], [7, 7]]), normal(2, 3, 64, seed=4)
    rows, logits = layer(tokens), layer.as_linear(x)
    assert mx.array_equal(slot(tokens), rows)
    assert mx.array_equal(slot.as_linear(x), logits)
    a, b = normal(96, RANK, seed=5), normal(RANK, 64, seed=6)
    slot.fill(Filling(a, b, 0.5))
    delta = mx.array(np.array(a) @ np.array(b) * 0.5)
    assert close(slot(tokens), rows + delta[tokens])
    assert close(slot.as_linear(x), logits + x @ delta.T)
    assert close(slot.dense()[tokens], slot(tokens))


@pytest.mark.parametrize("kind", LINEARS)
def test_dora_on_every_kind(kind: str) -> None:
    layer = linear(kind)
    slot = slot_for(layer)
    a, b, m = normal(K, RANK, seed=5), 0.1 * normal(RANK, N, seed=6), mx.abs(normal(N, seed=7)) + 1
    slot.fill(Filling(a, b, 0.5, m))
    changed = np.array(weight_of(layer, K)) + 0.5 * (np.array(a) @ np.array(b)).T
    wanted = np.array(m)[:, None] * changed / np.linalg.norm(changed, axis=1, keepdims=True)
    x = normal(5, K, seed=4)
    bias = layer(mx.zeros((1, K)))
    assert close(slot(x), x @ mx.array(wanted).T + bias, 1e-4)
    assert close(slot.dense(), mx.array(wanted), 1e-4)


def test_dora_learns_as_in_mlx_lm() -> None:
    layer = linear("dense")
    theirs = DoRALinear.from_base(layer, RANK, 0.0, 0.5)
    slot = slot_for(layer)
    a, b, m = normal(K, RANK, seed=5), normal(RANK, N, seed=6), theirs.m * 1.5
    slot.fill(Filling(a, b, 0.5, m))
    theirs.update({"lora_a": a, "lora_b": b, "m": m})
    x, c = normal(5, K, seed=4), normal(5, N, seed=8)
    assert close(slot(x), theirs(x), 1e-4)

    def gradients(module: nn.Module) -> dict[str, mx.array]:
        module.freeze()
        module.unfreeze(keys=["lora_a", "lora_b", "m"], recurse=False)
        return nn.value_and_grad(module, lambda x: mx.sum(module(x) * c))(x)[1]

    own, other = gradients(slot), gradients(theirs)
    for name in ("lora_a", "lora_b", "m"):
        assert close(own[name], other[name], 1e-4), name


def test_names_are_those_of_mlx_lm() -> None:
    keys = ("self_attn.q_proj", "mlp.down_proj", "model.embed_tokens")
    own, other = random_model(TINY), random_model(TINY)
    prepare(own, LoRAOptions(rank=4, keys=keys, num_layers=1))
    other.freeze()
    config = {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(other, 1, config)
    theirs: Any = tree_flatten(other.trainable_parameters())
    mine: Any = tree_flatten(own.trainable_parameters())
    assert {n: w.shape for n, w in mine} == {n: w.shape for n, w in theirs}
    assert set(taken(own)) == {n for n, _ in mine}


def test_prepared_model_begins_unchanged_and_learns_only_the_adapter() -> None:
    for options in (LoRAOptions(rank=4), LoRAOptions(rank=4, dora=True)):
        model = random_model(TINY)
        plain = model(TOKENS)
        prepare(model, options, seed=3)
        assert close(model(TOKENS), plain)
        trainable: Any = tree_flatten(model.trainable_parameters())
        leaves = {n.rpartition(".")[2] for n, _ in trainable}
        assert leaves == ({"lora_a", "lora_b", "m"} if options.dora else {"lora_a", "lora_b"})
        assert len(trainable) == len(leaves) * 2 * 7  # two blocks of seven linear layers
        again = random_model(TINY)
        prepare(again, options, seed=3)
        assert all(mx.array_equal(w, taken(again)[n]) for n, w in taken(model).items())


def test_high_ranks_learn_at_the_root_of_the_rank() -> None:
    plain, stable = LoRAOptions(64, 2.0), LoRAOptions(64, 2.0, rank_stabilised=True)
    assert (plain.multiplier, stable.multiplier) == (2.0, 0.25)
    model = random_model(TINY)
    adapter = random_adapter(model, options=stable)
    put(model, adapter)
    found = model(TOKENS)
    put(model, Adapter("plain", adapter.weights, replace(plain, scale=0.25)))
    assert close(model(TOKENS), found)


@pytest.mark.parametrize("dora", [False, True])
def test_training_goes_on_from_an_adapter(dora: bool) -> None:
    # Of a lower rank, another scale and fewer layers, or with no DoRA of its own.
    model = random_model(TINY)
    start = random_adapter(model, options=LoRAOptions(4, 3.0, keys=("mlp.up_proj",)))
    put(model, start)
    before = model(TOKENS)
    options = LoRAOptions(6, 1.0, keys=("mlp.up_proj", "self_attn.v_proj"), dora=dora)
    prepare(model, options, start)
    assert close(model(TOKENS), before, 1e-4)


def test_dropout_works_in_training_only() -> None:
    model = random_model(TINY)
    adapter = random_adapter(model)
    put(model, adapter)
    plain = model(TOKENS)
    strip(model)
    prepare(model, replace(adapter.options, dropout=0.5), adapter)
    assert close(model(TOKENS), plain)  # it was not training, and is not now
    model.train()
    assert not mx.array_equal(model(TOKENS), model(TOKENS))
    model.eval()
    assert mx.array_equal(model(TOKENS), model(TOKENS))


def test_put_takes_references_and_leaves_the_base_alone() -> None:
    model = random_model(TINY)
    plain = model(TOKENS)
    base = {n: np.array(w) for n, w in named_weights(model)}
    first, second = (random_adapter(model, seed=s) for s in (1, 2))
    full = {n: w.astype(mx.float32) for n, w in first.weights.items()}
    put(model, Adapter("full", full, first.options))
    for name, weight in taken(model).items():
        held, given = np.array(weight, copy=False), np.array(full[name], copy=False)
        assert np.shares_memory(held, given)
    one = model(TOKENS)
    put(model, second)
    two = model(TOKENS)
    put(model, first)
    assert mx.array_equal(model(TOKENS), one)
    assert not close(one, plain, 1e-2) and not close(one, two, 1e-2)
    put(model, None)
    assert mx.array_equal(model(TOKENS), plain)
    assert not taken(model)
    strip(model)
    assert not slots(model)
    assert all(np.array_equal(w, base[n]) for n, w in named_weights(model))


def test_activations_keep_their_type() -> None:
    # float16 matrices would turn bfloat16 activations into float32, all through the model.
    model = random_model(TINY)
    adapter = random_adapter(model, options=LoRAOptions(4, keys=("model.embed_tokens",)))
    model.set_dtype(mx.bfloat16)
    put(model, adapter)
    assert model(TOKENS).dtype == mx.bfloat16
    dora = random_adapter(model, options=LoRAOptions(4, dora=True))
    put(model, dora)
    assert model(TOKENS).dtype == mx.bfloat16


def test_only_needed_layers_get_a_slot() -> None:
    model = random_model(TINY)
    options = LoRAOptions(4, keys=("self_attn.q_proj",), num_layers=1)
    adapter = random_adapter(model, options=options)
    put(model, adapter)
    put(model, adapter)  # a second time must not wrap the wrapped
    assert list(slots(model)) == ["model.layers.1.self_attn.q_proj"]
    assert type(slots(model)["model.layers.1.self_attn.q_proj"].base) is nn.Linear


def damaged(adapter: Adapter, name: str, weight: mx.array | None) -> Adapter:
    weights = {n: w for n, w in adapter.weights.items() if n != name}
    if weight is not None:
        weights[name] = weight
    return Adapter("bad", weights, adapter.options)


def test_what_does_not_fit_leaves_what_is_in() -> None:
    model = random_model(TINY)
    good = random_adapter(model)
    put(model, good)
    before = model(TOKENS)
    place = "model.layers.0.mlp.up_proj"
    bad = [
        (damaged(good, f"{place}.lora_b", None), "has lora_a at"),
        (damaged(good, f"{place}.lora_b", mx.zeros((4, 7))), "is for another model"),
        (damaged(good, f"{place}.lora_b", mx.zeros((5, 96))), "says rank 4"),
        (damaged(good, f"{place}.bias", mx.zeros((4,))), "bias"),
        (random_adapter(random_model(replace(TINY, num_hidden_layers=3))), "no linear layer"),
    ]
    for adapter, message in bad:
        with pytest.raises(InputError, match=message):
            put(model, adapter)
        assert mx.array_equal(model(TOKENS), before)


def test_options_that_cannot_be_are_refused() -> None:
    model = random_model(TINY)
    with pytest.raises(InputError, match="no layer is called q_proj"):
        prepare(model, LoRAOptions(keys=("q_proj",)))
    with pytest.raises(InputError, match="linear layers only"):
        prepare(model, LoRAOptions(keys=("model.embed_tokens",), dora=True))
    start = random_adapter(model, options=LoRAOptions(4))
    with pytest.raises(InputError, match="has rank 4"):
        prepare(model, LoRAOptions(3), start)
    with pytest.raises(InputError, match="same keys"):
        prepare(model, LoRAOptions(4, keys=("mlp.up_proj",)), start)
    for wrong in ({"rank": 0}, {"scale": 0.0}, {"dropout": 1.0}, {"num_layers": 0}):
        with pytest.raises(InputError):
            LoRAOptions(**wrong)


@pytest.mark.parametrize("dora", [False, True])
def test_rows_of_a_batch_have_matrices_of_their_own(dora: bool) -> None:
    layer, slot = linear("dense"), slot_for(linear("dense"))
    fillings: list[Filling | None] = [None]
    for seed, rank in ((1, 2), (2, 5)):
        a, b = normal(K, rank, seed=seed), normal(rank, N, seed=seed + 10)
        gain = mx.abs(normal(N, seed=seed)) if dora and rank == 5 else None
        fillings.append(Filling(a, b, 0.5 * seed, None, gain))
    x = normal(4, 3, K, seed=4)
    rows = [1, 0, 2, 1]
    slot.fill(stacked(fillings, slot.shape, mx.array(rows, mx.uint32)))
    found = slot(x)
    for row, index in enumerate(rows):
        slot.empty()
        part = fillings[index]
        if part is not None:
            slot.fill(part)
        assert close(found[row], slot(x)[row], 1e-5)
    assert close(found[1], layer(x)[1])


def test_embedding_rows_of_a_batch() -> None:
    slot = slot_for(embedding("dense"))
    fillings = [Filling(normal(96, 3, seed=s), normal(3, 64, seed=s + 1), 0.5) for s in (1, 5)]
    tokens, x, rows = mx.array([[3, 90], [7, 7], [1, 2]]), normal(3, 2, 64), [1, 0, 1]
    slot.fill(stacked(fillings, slot.shape, mx.array(rows, mx.uint32)))
    looked_up, logits = slot(tokens), slot.as_linear(x)
    for row, index in enumerate(rows):
        slot.fill(fillings[index])
        assert close(looked_up[row], slot(tokens)[row])
        assert close(logits[row], slot.as_linear(x)[row])


def test_adapter_counts_its_bytes_and_checks_its_model() -> None:
    model = random_model(TINY)
    adapter = random_adapter(model)
    assert adapter.nbytes == 2 * sum(w.size for w in adapter.weights.values())
    fillings = fit(model, adapter)
    assert set(fillings) == set(adapter.places)
    assert not taken(model)


def test_head_weight_is_the_changed_table() -> None:
    # Losses multiply hidden states by this table themselves.
    model: Model = random_model(TINY)
    put(model, random_adapter(model, options=LoRAOptions(4, keys=("model.embed_tokens",))))
    h = normal(1, 3, 64)
    assert close(h @ model.head_weight.T, model.model.embed_tokens.as_linear(h))
