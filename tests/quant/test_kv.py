"""Quantised KV caches against a numpy rounding, mlx-lm's own cache, and plain ones."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from afm_mlx import model as model_module
from afm_mlx.engine import Engine
from afm_mlx.errors import InputError
from afm_mlx.generation import GenerationOptions, PrefixCache, Request, Snapshot, generate
from afm_mlx.model import PRESETS, Model, named_weights
from afm_mlx.ops import attention
from afm_mlx.quant.kv import KVOptions, QuantizedCache, make_cache
from tests.conftest import random_model, tiny_checkpoint, tiny_tokenizer

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models import llama
from mlx_lm.models.cache import KVCache, QuantizedKVCache

Array = np.ndarray[Any, Any]
TINY = PRESETS["tiny"]
KV8 = KVOptions()
TOKENS = [3 + i * i % 251 for i in range(40)]
# Here each greedy token leads by 0.15 or more: rounding changes which is likeliest only where
# two are nearly as likely.
CLEAR = [3 + (8 * i + 5) % 200 for i in range(40)]


def arrays(seed: int, positions: int, heads: int = 2, dim: int = 64) -> tuple[mx.array, mx.array]:
    random = np.random.default_rng(seed)
    keys, values = random.standard_normal((2, 1, heads, positions, dim)).astype(np.float32)
    return mx.array(keys), mx.array(values)


def rounded(x: mx.array, bits: int, group_size: int) -> mx.array:
    """What MLX's affine format keeps: the larger end of each group exactly, 0 exactly."""
    if bits == 16:
        return x
    groups = np.array(x).reshape(*x.shape[:-1], -1, group_size)
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    steps = np.maximum((high - low) / (2**bits - 1), 1e-7)
    from_low = np.abs(low) > np.abs(high)
    edge, steps = np.where(from_low, low, high), np.where(from_low, steps, -steps)
    first = np.rint(edge / steps)
    scale = np.where(first != 0, edge / np.where(first != 0, first, 1), steps)
    bias = np.where(first != 0, edge, 0)
    codes = np.clip(np.rint((groups - bias) / scale), 0, 2**bits - 1)
    return mx.array((codes * scale + bias).reshape(x.shape).astype(np.float32))


def in_chunks(model: Model, cache: list[Any], tokens: Sequence[int], sizes: Sequence[int]) -> Array:
    """Logits of ``tokens`` fed in pieces, the rest one by one."""
    out, start = [], 0
    for size in [*sizes, *[1] * (len(tokens) - sum(sizes))]:
        out.append(model(mx.array([tokens[start : start + size]]), cache=cache))
        start += size
    return np.array(mx.concatenate(out, axis=1))


@pytest.mark.parametrize("form", ["8", "8/4", "16/4", "4/16", "3/6"])
@pytest.mark.parametrize(
    "args", [TINY, replace(TINY, num_kv_reuse_layers=2, qk_norm=True), replace(TINY, head_dim=64)]
)
def test_decoding_equals_full_pass_with_rounded_keys_and_values(
    args: Any, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, options = random_model(args), KVOptions.parse(form)
    at_once = in_chunks(model, make_cache(model, options), TOKENS, [len(TOKENS)])
    in_steps = in_chunks(model, make_cache(model, options), TOKENS, [9, 1, 4, 18])
    plain = np.array(model(mx.array([TOKENS])))

    def rounding(queries: mx.array, keys: Any, values: Any, **rest: Any) -> mx.array:
        group = min(args.head_dim, 64)
        keys = rounded(keys, options.key_bits, group)
        return attention(queries, keys, rounded(values, options.value_bits, group), **rest)

    monkeypatch.setattr(model_module, "attention", rounding)
    expected = np.array(model(mx.array([TOKENS])))
    effect = np.abs(plain - expected).mean()
    assert np.abs(at_once - expected).max() < 1e-3 * effect
    # A key computed alone differs in its last bits, which now and then rounds to the next step.
    assert np.abs(in_steps - expected).mean() < 0.03 * effect


def test_same_as_mlx_lm_with_its_own_cache() -> None:
    model = random_model(TINY)
    twin = llama.Model(llama.ModelArgs.from_dict(TINY.to_dict()))
    twin.load_weights(named_weights(model))
    theirs = in_chunks(twin, [QuantizedKVCache(32, 8) for _ in range(4)], TOKENS, [20])
    ours = in_chunks(model, make_cache(model, KVOptions()), TOKENS, [20])
    np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max())
    # With one width for both, mlx-lm's classes can use this cache too.
    mixed = in_chunks(twin, make_cache(model, KVOptions()), TOKENS, [20])
    np.testing.assert_allclose(mixed, theirs, atol=1e-5 * np.abs(theirs).max())


def kl(model: Model, form: str) -> float:
    """Mean KL of the next-token distributions from those with a plain cache."""
    logits = [
        in_chunks(model, make_cache(model, KVOptions.parse(f)), TOKENS, []) for f in ("16", form)
    ]
    p, q = (x.astype(np.float64) - np.logaddexp.reduce(x, -1, keepdims=True) for x in logits)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def test_error_is_small() -> None:
    model = random_model(TINY)
    # The weights are far larger than a trained model's, which loses 4e-4 and 0.016 by these.
    assert 0 < kl(model, "8") < 2e-3
    assert kl(model, "8") < kl(model, "8/4") < 0.1 < kl(model, "4")


@pytest.mark.parametrize("form", ["8", "8/4", "4/3", "16/8"])
@pytest.mark.parametrize("dtype", [mx.float16, mx.float32])
def test_memory(form: str, dtype: mx.Dtype) -> None:
    options = KVOptions.parse(form)
    keys, values = (x.astype(dtype) for x in arrays(0, 300))
    cache, plain = QuantizedCache(options.key_bits, options.value_bits, 64), KVCache()
    assert cache.nbytes == 0 and cache.empty() and cache.size() == 0
    for c in (cache, plain):
        mx.eval(c.update_and_fetch(keys, values))
    room = 512 * 2
    sizes = {b: room * (8 * b + 2 * dtype.size) for b in (3, 4, 8)} | {16: room * 64 * dtype.size}
    assert cache.nbytes == sizes[options.key_bits] + sizes[options.value_bits]
    if form == "8" and dtype == mx.float16:
        assert cache.nbytes / plain.nbytes == pytest.approx(0.53, abs=0.005)


def test_grows_over_steps_as_if_written_at_once() -> None:
    # 3 and 6 bits do not divide 32: mlx-lm's own cache allots too little for them.
    for bits in (3, 6, 8):
        keys, values = arrays(1, 700)
        cache, start = QuantizedCache(bits, bits, 32), 0
        for size in [250, *[1] * 10, 252, 1, 180, 7]:
            found = cache.update_and_fetch(
                keys[..., start : start + size, :], values[..., start : start + size, :]
            )
            start += size
        for x, y in zip(found, (keys, values), strict=True):
            for a, b in zip(x, mx.quantize(y, 32, bits), strict=True):
                assert mx.array_equal(a, b)
        assert cache.offset == cache.size() == 700


def test_a_token_is_written_in_place() -> None:
    # A copy of the whole cache per token would make long answers slow.
    keys, values = arrays(2, 4000)
    cache = QuantizedCache(8, 4, 64)
    cache.update_and_fetch(keys, values)
    mx.eval(cache.state)
    new = [x[..., :1, :] for x in (keys, values)]
    mx.eval(new)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(5):
        cache.update_and_fetch(*new)
        mx.eval(cache.state)
    assert mx.get_peak_memory() - before < cache.nbytes / 10


def test_trimmed_positions_are_written_anew() -> None:
    model = random_model(replace(TINY, num_kv_reuse_layers=1))
    cache = make_cache(model, KVOptions(8, 4))
    in_chunks(model, cache, [*TOKENS[:20], 200, 201, 202], [23])
    assert all(c.is_trimmable() for c in cache)
    assert [c.trim(3) for c in cache] == [3] * 3
    again = in_chunks(model, cache, TOKENS[20:], [3])
    straight = in_chunks(model, make_cache(model, KVOptions(8, 4)), TOKENS, [20, 3])
    np.testing.assert_allclose(again, straight[:, 20:], atol=1e-5)


def test_state_tells_all() -> None:
    cache = QuantizedCache(8, 4, 32)
    cache.update_and_fetch(*arrays(3, 10))
    twin = QuantizedCache.from_state(cache.state)
    for c in (cache, twin):
        c.update_and_fetch(*arrays(4, 300))
    mx.eval(cache.state, twin.state)
    assert twin.state[2:] == cache.state[2:] == (310, 32, 8, 4)
    for x, y in zip(cache.keys_and_values(), twin.keys_and_values(), strict=True):
        assert all(mx.array_equal(a, b) for a, b in zip(x, y, strict=True))


def test_mlx_lm_generates_with_it() -> None:
    model = random_model(TINY)
    small, plain = (
        [int(t) for t, _ in generate_step(mx.array(CLEAR), model, max_tokens=8, prompt_cache=c)]
        for c in (make_cache(model, KV8), model.make_cache())
    )
    assert small == plain


# ---- prefixes and the engine


def last(model: Model, request: Request, prefixes: PrefixCache) -> Snapshot:
    *_, final = generate(model, tiny_tokenizer(), request, prefixes)
    return final


@pytest.mark.parametrize("reuse", [0, 2])
def test_cached_prefix_changes_nothing(reuse: int) -> None:
    model = random_model(replace(TINY, num_kv_reuse_layers=reuse))
    make = partial(make_cache, options=KVOptions(8, 4))
    short = GenerationOptions(maximum_response_tokens=8)
    first = Request([*TOKENS, 50, 51], short, keep=30)
    second = Request([*TOKENS[:35], 60, 61, 62], short, keep=30)
    plain = [last(model, r, PrefixCache(make_cache=make)).text for r in (first, second, first)]
    prefixes = PrefixCache(make_cache=make)
    # What an answer writes must not reach the prefix that it started from.
    finals = [last(model, r, prefixes) for r in (first, second, first)]
    assert [f.text for f in finals] == plain
    assert [f.metrics.cached_tokens for f in finals] == [0, 30, 30]
    layers = TINY.num_hidden_layers - reuse
    a_position = 2 * ((32 + 8) + (16 + 8))  # 2 heads of 32 numbers, 8 and 4 bits, float32 scales
    assert prefixes.nbytes == layers * 30 * a_position


def test_kept_answer_serves_the_next_turn() -> None:
    model, prefixes = random_model(TINY), PrefixCache(make_cache=partial(make_cache, options=KV8))
    short = GenerationOptions(maximum_response_tokens=8)
    last(model, Request(TOKENS, short, keep_answer=True), prefixes)
    longer = last(model, Request([*TOKENS, 9], short), prefixes)
    assert longer.metrics.cached_tokens == len(TOKENS)


def test_engine_streams_the_same_text_from_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afm_mlx.engine.load", lambda source, revision: tiny_checkpoint())
    request = Request(CLEAR, GenerationOptions(maximum_response_tokens=12))
    with Engine(tiny_checkpoint) as engine:
        plain = list(engine.generate(request))
    with Engine.open(kv=KV8) as engine:
        small = list(engine.generate(request))
        run = engine.generate(Request(CLEAR, GenerationOptions(maximum_response_tokens=900)))
        for _ in run:
            run.cancel()
        again = list(engine.generate(request))
    assert [s.text for s in small] == [s.text for s in plain] == [s.text for s in again]
    positions = len(CLEAR) + 11
    saved = 4 * positions * 2 * 2 * (32 * 4 - (32 + 8))  # layers, positions, both, heads, bytes
    assert plain[-1].metrics.bytes_per_token - small[-1].metrics.bytes_per_token == saved


def test_sixteen_bits_is_the_model_s_own_cache() -> None:
    model = random_model(TINY)
    for options in (None, KVOptions.parse("16"), KVOptions(16, 16)):
        assert [type(c) for c in make_cache(model, options)] == [KVCache] * 4


def test_groups_fit_the_heads() -> None:
    assert KVOptions().group_in(128) == 64
    assert KVOptions().group_in(96) == 32
    assert KVOptions(group_size=128).group_in(64) == 64
    with pytest.raises(InputError, match="this model's have 80: leave it at 16 bits"):
        KVOptions().group_in(80)


def test_heads_that_cannot_be_rounded_are_reported_by_the_engine() -> None:
    def odd() -> Any:
        return replace(tiny_checkpoint(), model=random_model(replace(TINY, head_dim=24)))

    with Engine(odd, kv=KV8) as engine, pytest.raises(InputError, match="have 24"):
        list(engine.generate(Request(TOKENS)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: KVOptions(7, 8),
        lambda: KVOptions(8, 0),
        lambda: KVOptions(group_size=48),
        lambda: KVOptions.parse("eight"),
        lambda: KVOptions.parse("8/x"),
        lambda: KVOptions.parse("8/4/2"),
        lambda: KVOptions.parse(""),
    ],
)
def test_bad_options(make: Callable[[], object]) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert len(str(error.value).splitlines()) == 1


def test_forms() -> None:
    assert KVOptions.parse("8") == KVOptions() == KVOptions(8, 8, 64)
    assert KVOptions.parse("8/4") == KVOptions(8, 4)
