"""A cut model computes what the whole one computes with everything else set to zero."""

from dataclasses import replace
from typing import Any

from afm_mlx.data.packing import Batch
from afm_mlx.distill import prune
from afm_mlx.distill.shape import PruneOptions, choose_shape
from afm_mlx.model import PRESETS, Model, named_weights
from afm_mlx.model_args import ModelArgs
from tests.conftest import random_model

import mlx.core as mx
import numpy as np
import pytest

TINY = PRESETS["tiny"]
REUSE = replace(TINY, num_hidden_layers=6, num_kv_reuse_layers=2, qk_norm=True)


def some_batches(count: int = 3, seed: int = 0) -> list[Batch]:
    random = np.random.default_rng(seed)
    batches = []
    for i in range(count):
        tokens = random.integers(3, 259, (2, 40)).astype(np.int32)
        segments = np.repeat([[1] * 25 + [2] * 10 + [0] * 5], 2, 0).astype(np.int32)
        batches.append(Batch(tokens, segments, segments > 0, np.array([2 * i, 2 * i + 1])))
    return batches


def masked(model: Model, kept: prune.Kept) -> Model:
    """``model`` with all that is not kept set to zero; layers stay."""
    args = model.args
    hidden = np.zeros(args.hidden_size, np.float32)
    hidden[kept.hidden] = 1
    per_head = args.num_attention_heads // args.num_key_value_heads * args.head_dim
    weights: dict[str, Any] = {k: np.array(v) for k, v in named_weights(model)}
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] * hidden
    for place, layer in enumerate(kept.layers):
        at = f"model.layers.{layer}."
        ffn = np.zeros(args.ffn_sizes[layer], np.float32)
        ffn[kept.ffn[place]] = 1
        heads = np.zeros(args.num_key_value_heads, np.float32)
        heads[kept.kv_heads[place]] = 1
        down, out = at + "mlp.down_proj.weight", at + "self_attn.o_proj.weight"
        weights[down] = weights[down] * ffn * hidden[:, None]
        weights[out] = weights[out] * np.repeat(heads, per_head) * hidden[:, None]
    other = Model(args)
    other.load_weights([(k, mx.array(v)) for k, v in weights.items()])
    return other


@pytest.mark.parametrize(
    "options",
    [
        PruneOptions(ffn=0.5),
        PruneOptions(ffn=1.0, kv_heads=1),
        PruneOptions(ffn=1.0, hidden=96),
        PruneOptions(ffn=0.25, kv_heads=1, hidden=64),
    ],
)
@pytest.mark.parametrize("args", [TINY, REUSE, replace(TINY, tie_word_embeddings=False)])
def test_cut_equals_masked(options: PruneOptions, args: ModelArgs) -> None:
    model = random_model(args)
    shape = choose_shape(args, options)
    kept = prune.choose(args, shape, prune.finish(prune.measure(model, some_batches())))
    student = prune.cut(model, shape, kept)
    assert student.args == shape
    assert shape.num_parameters < model.args.num_parameters
    tokens = mx.array(some_batches()[0].tokens)
    found, wanted = student(tokens), masked(model, kept)(tokens)
    assert np.abs(np.array(found - wanted)).max() < 1e-4


@pytest.mark.parametrize("args", [replace(TINY, num_hidden_layers=6), REUSE])
def test_dropped_layers_are_gone(args: ModelArgs) -> None:
    model = random_model(args)
    shape = choose_shape(args, PruneOptions(ffn=1.0, layers=5))
    importance = prune.finish(prune.measure(model, some_batches()))
    kept = prune.choose(args, shape, importance)
    assert len(kept.layers) == 5
    student = prune.cut(model, shape, kept)
    for place, layer in enumerate(kept.layers):
        own: Any = student.layers[place].mlp.up_proj.weight
        assert mx.array_equal(own, model.layers[layer].mlp.up_proj.weight)


def test_importance_is_what_a_part_writes() -> None:
    """A dimension, a group and a layer made silent come out last."""
    model = random_model(replace(TINY, num_hidden_layers=6))
    silent: Any = model.layers[3].mlp.up_proj
    silent.weight = mx.concatenate([mx.zeros((1, 128)), silent.weight[1:]])
    values: Any = model.layers[2].self_attn.v_proj
    values.weight = mx.concatenate([values.weight[:32], mx.zeros((32, 128))])
    quiet: Any = model.layers[2]
    quiet.mlp.down_proj.weight = quiet.mlp.down_proj.weight * 0
    quiet.self_attn.o_proj.weight = quiet.self_attn.o_proj.weight * 1e-3
    importance = prune.finish(prune.measure(model, some_batches()))
    assert importance.ffn[3].argmin() == 0 and importance.ffn[3][0] == 0
    assert importance.kv_heads[2].argmin() == 1
    assert importance.layers.argmin() == 2


def test_padding_counts_for_nothing() -> None:
    model = random_model(TINY)
    batches = some_batches(1)
    changed = replace(batches[0], tokens=np.where(batches[0].segments > 0, batches[0].tokens, 7))
    a, b = (
        prune.finish(prune.measure(model, batches)),
        prune.finish(prune.measure(model, [changed])),
    )
    assert np.allclose(a.ffn[1], b.ffn[1]) and np.allclose(a.hidden, b.hidden)


def test_the_fit_is_least_squares() -> None:
    """Against numpy's own solver, without ridge, and with one so large that nothing moves."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(200, 12)), random.normal(size=(200, 7))
    start = random.normal(size=(7, 12))
    gram, cross = mx.array((x.T @ x).astype(np.float32)), mx.array((y.T @ x).astype(np.float32))
    weight = mx.array(start.astype(np.float32))
    found = prune._solve(weight, gram, cross, 0.0)
    assert np.allclose(np.array(found), np.linalg.lstsq(x, y, rcond=None)[0].T, atol=1e-4)
    assert np.allclose(np.array(prune._solve(weight, gram, cross, 1e9)), start, atol=1e-4)


@pytest.mark.parametrize("args", [TINY, REUSE])
def test_refit_brings_the_student_nearer(args: ModelArgs) -> None:
    args = replace(args, intermediate_size=64)  # more text than unknowns
    model = random_model(args)
    shape = choose_shape(args, PruneOptions(ffn=0.5))
    batches = some_batches(12)
    kept = prune.choose(args, shape, prune.finish(prune.measure(model, batches)))
    cut, fitted = prune.cut(model, shape, kept), prune.cut(model, shape, kept)
    prune.finish(prune.refit(model, fitted, kept, batches))
    tokens = mx.array(batches[0].tokens[:, :25])  # the first sample of each window
    wanted = np.array(model(tokens))
    errors = [float(np.square(np.array(s(tokens)) - wanted).mean()) for s in (cut, fitted)]
    assert errors[1] < 0.95 * errors[0]
