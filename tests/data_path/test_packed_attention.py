"""Samples in one window do not see each other, whatever model reads them."""

from typing import Any

from afm_mlx.data.beginnings import Beginnings
from afm_mlx.data.packing import Batch, PackedCache, Windows, mask
from afm_mlx.data.tokens import TokenStore
from afm_mlx.model import PRESETS, named_weights
from afm_mlx.model_args import ModelArgs
from tests.conftest import number, random_model

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models import llama

LENGTHS = [30, 17, 2, 12]
SHAPE = {"num_hidden_layers": 3, "intermediate_size": 64, "hidden_size": 64, "head_dim": 16}


def make_model(kind: str) -> Any:
    args = {**PRESETS["tiny"].to_dict(), **SHAPE}
    if kind == "ours":
        return random_model(ModelArgs.from_dict(args))
    if kind == "ours with KV reuse":
        return random_model(ModelArgs.from_dict(args | {"num_kv_reuse_layers": 1}))
    if kind == "ours with normed queries":
        model = random_model(ModelArgs.from_dict(args | {"qk_norm": True}))
        for layer in model.layers:
            layer.self_attn.q_norm.weight = mx.random.uniform(0.5, 2, [SHAPE["head_dim"]])
        return model
    if kind == "sliding":
        layers = ["full_attention", "sliding_attention", "sliding_attention"]
        args |= {"layer_types": layers, "sliding_window": 8}
    args |= {"model_type": "llama"}
    model = llama.Model(llama.ModelArgs.from_dict(args))
    model.load_weights(named_weights(random_model(ModelArgs.from_dict(args))))
    return model


def packed() -> tuple[TokenStore, Batch]:
    """Four conversations in one window of 64, with three positions of padding."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
    tokens = rng.integers(3, 259, offsets[-1]).astype(np.uint32)
    store = TokenStore(tokens, rng.random(len(tokens)) < 0.7, offsets, np.zeros(4, np.bool_))
    windows = Windows.of(store, 64)
    assert len(windows) == 1 and windows.packings[0].sample.tolist() == [0, 1, 3, 2]
    return store, windows.batch([0])


KINDS = ["ours", "ours with KV reuse", "llama", "sliding"]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_each_sample_alone(kind: str) -> None:
    model = make_model(kind)
    store, batch = packed()
    cache: Any = [PackedCache(batch.segments)] * len(model.layers)
    together = model(mx.array(batch.tokens), cache=cache)
    assert np.isfinite(np.array(together)).all()  # padding too, or gradients would be NaN
    plain = model(mx.array(batch.tokens))
    column = 0
    for sample in (0, 1, 3, 2):
        tokens, _ = store.sample(sample)
        alone = model(mx.array(tokens.astype(np.int32))[None])[0]
        stop = column + len(tokens)
        assert number(mx.abs(together[0, column:stop] - alone).max()) < 1e-4
        if column:  # without the mask the test would show it
            assert number(mx.abs(plain[0, column:stop] - alone).max()) > 1e-2
        column = stop


@pytest.mark.parametrize("kind", [*KINDS, "ours with normed queries"])
def test_nothing_leaks(kind: str) -> None:
    # Norms after RoPE make positions absolute, so that logits alone differ; no sample may
    # see another even so.
    model = make_model(kind)
    _, batch = packed()
    cache: Any = [PackedCache(batch.segments)] * len(model.layers)
    before = np.array(model(mx.array(batch.tokens), cache=cache))
    for segment in range(5):
        own = batch.segments == segment
        changed = np.where(own, 258 - batch.tokens, batch.tokens)
        after = np.array(model(mx.array(changed), cache=cache))
        assert np.abs(after - before)[~own].max() == 0
        assert np.abs(after - before)[own].max() > 1


def loss(model: Any, tokens: Any, cache: Any, learn: Any) -> mx.array:
    """Summed cross-entropy of the positions that count."""
    logits = model(tokens, cache=cache)[:, :-1]
    each = nn.losses.cross_entropy(logits, tokens[:, 1:])
    return (each * learn[:, :-1]).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_each_sample_alone(kind: str) -> None:
    model = make_model(kind)
    store, batch = packed()
    gradient = nn.value_and_grad(model, loss)
    cache: Any = [PackedCache(batch.segments)] * len(model.layers)
    value, together = gradient(model, mx.array(batch.tokens), cache, mx.array(batch.learn))
    total, parts = 0.0, []
    for sample in range(len(LENGTHS)):
        tokens, wanted = store.sample(sample)
        learn = np.append(wanted[1:], False)[None]
        x = mx.array(tokens.astype(np.int32))[None]
        one, part = gradient(model, x, None, mx.array(learn))
        total += number(one)
        parts.append(dict(tree_flatten(part)))
    assert number(value) == pytest.approx(total, rel=1e-5)
    for name, value in dict(tree_flatten(together)).items():
        expected = sum(np.array(part[name], np.float64) for part in parts)
        assert np.abs(expected).max() > 0
        error = np.abs(np.array(value) - expected).max() / np.abs(expected).max()
        assert error < 1e-4, name


@pytest.mark.parametrize("kind", ["ours", "ours with KV reuse", "ours with normed queries"])
def test_samples_that_share_their_beginning_are_as_alone(kind: str) -> None:
    """Norms after RoPE notice where a sample lies, so positions must be those of each alone."""
    model = make_model(kind)
    rng = np.random.default_rng(2)
    begins = [rng.integers(3, 259, n).tolist() for n in (20, 17)]
    samples = [[*begins[i % 2], *rng.integers(3, 259, n)] for i, n in enumerate((9, 30, 14))]
    samples.append(rng.integers(3, 259, 25).tolist())  # goes on from neither
    learns = [np.arange(len(s)) >= len(s) - 6 for s in samples]
    ends = np.cumsum([0, *map(len, samples)])
    tokens, learn = np.concatenate(samples).astype(np.uint32), np.concatenate(learns)
    store = TokenStore(tokens, learn, ends, np.zeros(4, np.bool_))
    shared = Beginnings(np.array(sum(begins, []), np.uint32), np.array([0, 20, 17]),
                        np.array([1, 2, 1, 0]))  # fmt: skip
    windows = Windows.of(store, 120, shared)
    batch = windows.batch([0])
    assert len(windows) == 1 and batch.parents is not None
    assert batch.num_tokens == windows.reports[0].tokens == 20 + 17 + 9 + 30 + 14 + 25
    cache: Any = [PackedCache(batch.segments, batch.parents)] * len(model.layers)
    gradient = nn.value_and_grad(model, loss)
    value, together = gradient(model, mx.array(batch.tokens), cache, mx.array(batch.learn))
    logits = model(mx.array(batch.tokens), cache=cache)[0]
    total, parts = 0.0, []
    for place, sample in enumerate(windows.packings[0].sample.tolist(), 3):
        x = mx.array(np.array([samples[sample]], np.int32))
        one, part = gradient(model, x, None, mx.array(np.append(learns[sample][1:], False)[None]))
        total += number(one)
        parts.append(dict(tree_flatten(part)))
        own = np.flatnonzero(batch.segments[0] == place)
        alone = model(x)[0, -len(own) :]
        assert number(mx.abs(logits[mx.array(own)] - alone).max()) < 1e-4
    assert number(value) == pytest.approx(total, rel=1e-5)
    for name, found in dict(tree_flatten(together)).items():
        expected = sum(np.array(part[name], np.float64) for part in parts)
        error = np.abs(np.array(found) - expected).max() / np.abs(expected).max()
        assert error < 1e-4, name


@pytest.mark.parametrize("window_size", [None, 3])
def test_mask(window_size: int | None) -> None:
    segments = np.array([[1, 1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 3, 3, 3, 3, 3]], np.int32)
    found = np.array(PackedCache(segments).make_mask(8, window_size=window_size))
    assert found.shape == (2, 1, 8, 8) and found.dtype == np.bool_
    for b in range(2):
        for query in range(8):
            for key in range(8):
                near = window_size is None or query - key < window_size
                same = 0 < segments[b, query] == segments[b, key]
                assert found[b, 0, query, key] == (
                    key == query or (key < query and bool(same) and near)
                )
    np.testing.assert_array_equal(np.array(mask(mx.array(segments))), np.array(mask(segments)))
