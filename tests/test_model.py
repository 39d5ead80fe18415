"""The student against Apple's figures, mlx-lm's classes and itself without a cache."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.model import PRESETS, Model, named_weights
from afm_mlx.model_args import ModelArgs
from tests.conftest import number, random_model, tiny_tokenizer

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import batch_generate, generate_step, speculative_generate_step
from mlx_lm.models import afm7, llama
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

TINY = PRESETS["tiny"]
REUSE = replace(
    TINY, num_hidden_layers=8, num_kv_reuse_layers=3, qk_norm=True, rope_traditional=True
)


def count(args: ModelArgs) -> tuple[int, int]:
    """Parameters outside and inside the embedding; nothing is allocated."""
    total = sum(v.size for _, v in named_weights(Model(args)))
    embedding = args.vocab_size * args.hidden_size
    return total - embedding, embedding


def difference(a: mx.array, b: mx.array) -> float:
    return number(mx.abs(a - b).max())


@pytest.mark.parametrize(
    ("preset", "body", "embedding"),
    [
        ("afm-2024", 2.58e9, 0.15e9),  # arXiv 2407.21075, table 1
        ("afm-2025", 3.11e9 - 314.6e6, 314.6e6),  # 3.11 B in all with 153,600 x 2048
        ("smollm2-135m", 134.515e6 - 28.312e6, 28.312e6),
        ("smollm2-360m", 361.821e6 - 47.186e6, 47.186e6),
        ("smollm2-1.7b", 1711.376e6 - 100.663e6, 100.663e6),
    ],
)
def test_parameter_counts(preset: str, body: float, embedding: float) -> None:
    found_body, found_embedding = count(PRESETS[preset])
    assert found_body == pytest.approx(body, rel=0.005)
    assert found_embedding == pytest.approx(embedding, rel=0.01)


def test_tiny_has_a_million_parameters() -> None:
    assert TINY.num_parameters == pytest.approx(1e6, rel=0.05)


@pytest.mark.parametrize(
    "args",
    [
        TINY,
        replace(TINY, tie_word_embeddings=False),
        replace(
            TINY,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
    ],
    ids=["tied", "untied", "llama3-rope"],
)
def test_logits_equal_mlx_lm_llama(args: ModelArgs) -> None:
    ours = random_model(args)
    theirs = llama.Model(llama.ModelArgs.from_dict(args.to_dict()))
    theirs.load_weights(named_weights(ours))
    tokens = mx.random.randint(0, args.vocab_size, (2, 80))
    assert difference(ours(tokens), theirs(tokens)) < 1e-4


def afm7_twin(model: Model) -> Any:
    """mlx-lm's class of Apple's 2025 model around the weights of ``model``."""
    args = model.args
    twin = afm7.Model(
        afm7.ModelArgs(
            model_type="afm7",
            vocab_size=args.vocab_size,
            hidden_dim=args.hidden_size,
            num_layers=args.num_hidden_layers,
            num_kv_reuse_layers=args.num_kv_reuse_layers,
            num_heads=args.num_attention_heads,
            num_kv_heads=args.num_key_value_heads,
            hidden_dim_scale_factor=args.ffn_sizes[0] / args.hidden_size,
            rope_theta=args.rope_theta,
            rms_norm_eps=args.rms_norm_eps,
        )
    )
    regular = args.num_hidden_layers - args.num_kv_reuse_layers
    ours = dict(named_weights(model))
    weights = [
        ("model.embedding.weight", ours["model.embed_tokens.weight"]),
        ("model.output_norm.weight", ours["model.norm.weight"]),
    ]
    for i in range(args.num_hidden_layers):
        here = f"model.layers.{i}."
        there = here if i < regular else f"model.kv_reuse_layers.{i - regular}."
        for name, value in ours.items():
            if name.startswith(here) and not name.endswith(("k_proj.weight", "v_proj.weight")):
                name = name.removeprefix(here)
                if i < regular and name == "self_attn.q_proj.weight":
                    qkv = [ours[f"{here}self_attn.{p}_proj.weight"] for p in "qkv"]
                    name, value = "self_attn.qkv_proj.weight", mx.concatenate(qkv)
                weights.append((there + name.replace("o_proj", "out_proj"), value))
    twin.load_weights(weights, strict=False)
    loaded = {name for name, _ in weights}
    missing = {n for n, _ in named_weights(twin)} - loaded
    assert all("quant_" in name for name in missing)
    return twin


def test_kv_reuse_logits_equal_mlx_lm_afm7(monkeypatch: pytest.MonkeyPatch) -> None:
    # afm7 rounds keys and values to int8 with scales of its checkpoint: taken out here.
    monkeypatch.setattr(afm7, "fake_8bit_quant", lambda x, scale: x)
    # Its q_norm and k_norm have MLX's default epsilon, whatever rms_norm_eps says: 1e-5.
    model = random_model(REUSE)
    noise = {k: v for k, v in named_weights(model) if "norm" in k}
    model.load_weights(
        [(k, v + 0.3 * mx.random.normal(v.shape)) for k, v in noise.items()], strict=False
    )
    tokens = mx.random.randint(0, REUSE.vocab_size, (2, 40))
    assert difference(model(tokens), afm7_twin(model)(tokens)) < 1e-4


@pytest.mark.parametrize("args", [TINY, REUSE, replace(TINY, qk_norm=True)])
@pytest.mark.parametrize("chunks", [(30, 1, 1, 8), (1,) * 12, (17, 23)])
def test_cached_decoding_equals_full_pass(args: ModelArgs, chunks: Sequence[int]) -> None:
    model = random_model(args)
    tokens = mx.random.randint(0, args.vocab_size, (1, sum(chunks)))
    full, cache, start = model(tokens), model.make_cache(), 0
    for size in chunks:
        logits = model(tokens[:, start : start + size], cache=cache)
        assert difference(logits, full[:, start : start + size]) < 1e-4
        start += size


@pytest.mark.parametrize("args", [TINY, REUSE])
@pytest.mark.parametrize("last", [1, 3, 50])
def test_last_positions_alone_equal_full_pass(args: ModelArgs, last: int) -> None:
    # Guards the mask and RoPE offset of queries that are fewer than the keys.
    model = random_model(args)
    tokens = mx.random.randint(0, args.vocab_size, (1, 40))
    full = model(tokens)
    cache = model.make_cache()
    model(tokens[:, :11], cache=cache)
    tail = model(tokens[:, 11:], cache=cache, last=last)
    expected = min(last, 29)
    assert tail.shape == (1, expected, args.vocab_size)
    assert difference(tail, full[:, -expected:]) < 1e-4


def test_kv_reuse_cache_is_37_percent_smaller() -> None:
    shape = replace(
        PRESETS["afm-2025"], hidden_size=64, num_attention_heads=4, head_dim=16,
        intermediate_size=32, vocab_size=64,
    )  # fmt: skip
    sizes = []
    for reuse in (0, shape.num_kv_reuse_layers):
        model = Model(replace(shape, num_kv_reuse_layers=reuse))
        cache = model.make_cache()
        mx.eval(model(mx.array([[1, 2, 3]]), cache=cache))
        sizes.append(sum(c.nbytes for c in cache))
    assert 1 - sizes[1] / sizes[0] == pytest.approx(0.375)


def test_prefill_skips_kv_reuse_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(REUSE)
    lengths = []
    for layer in model.layers[-REUSE.num_kv_reuse_layers :]:
        call = layer.mlp.down_proj

        def record(x: mx.array, call: Any = call) -> mx.array:
            lengths.append(x.shape[1])
            return call(x)

        monkeypatch.setattr(layer.mlp, "down_proj", record)
    model(mx.zeros((1, 33), dtype=mx.int32), cache=model.make_cache(), last=1)
    assert lengths == [1] * REUSE.num_kv_reuse_layers


@pytest.mark.parametrize("args", [TINY, REUSE])
def test_mlx_lm_generates_and_speculates(args: ModelArgs) -> None:
    model, draft = random_model(args), random_model(TINY, seed=1)
    prompt = mx.array([5, 6, 7, 8, 9])
    plain = [int(t) for t, _ in generate_step(prompt, model, max_tokens=12)]
    speculated = [
        int(t) for t, *_ in speculative_generate_step(prompt, model, draft, max_tokens=12)
    ]
    quantised = [
        int(t)
        for t, _ in generate_step(
            prompt, model, max_tokens=12, kv_bits=8, kv_group_size=32, quantized_kv_start=0
        )
    ]
    assert speculated == plain
    assert len(quantised) == 12


@pytest.mark.parametrize("args", [TINY, REUSE])
def test_mlx_lm_generates_in_batches(args: ModelArgs) -> None:
    # Batches bring caches with an offset per row and masks for the padding.
    model, tokenizer = random_model(args), tiny_tokenizer()
    prompts = [[*range(5, 15)], [20, 21, 22], [*range(3, 90)]]
    together = batch_generate(model, tokenizer.wrapper, prompts, max_tokens=10).texts
    alone = [batch_generate(model, tokenizer.wrapper, [p], max_tokens=10).texts[0] for p in prompts]
    assert together == alone


def test_ffn_width_per_layer() -> None:
    args = replace(TINY, intermediate_size=(512, 64, 128, 256))
    model = random_model(args)
    assert [layer.mlp.up_proj.weight.shape[0] for layer in model.layers] == [512, 64, 128, 256]
    assert model(mx.array([[1, 2]])).shape == (1, 2, args.vocab_size)
    assert ModelArgs.from_dict(args.to_dict()) == args


def test_reference_forward_in_numpy() -> None:
    """One layer computed by hand, with its own RoPE, attention and SwiGLU."""
    args = replace(TINY, num_hidden_layers=1, qk_norm=True)
    model = random_model(args)
    w = {k: np.array(v, np.float64) for k, v in named_weights(model)}
    tokens = np.array([3, 1, 4, 1, 5])

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + args.rms_norm_eps) * w[name]

    def rope(x: np.ndarray) -> np.ndarray:
        half = x.shape[-1] // 2
        angles = np.outer(np.arange(len(x)), args.rope_theta ** (-np.arange(half) / half))
        a, b = x[..., :half], x[..., half:]
        sin, cos = np.sin(angles), np.cos(angles)
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    at = "model.layers.0."
    h = w["model.embed_tokens.weight"][tokens]
    x = norm(h, at + "input_layernorm.weight")
    q, k, v = (x @ w[f"{at}self_attn.{p}_proj.weight"].T for p in "qkv")
    heads = []
    for i in range(args.num_attention_heads):
        j, d = i * args.num_key_value_heads // args.num_attention_heads, args.head_dim
        qi = norm(rope(q[:, i * d : (i + 1) * d]), at + "self_attn.q_norm.weight")
        kj = norm(rope(k[:, j * d : (j + 1) * d]), at + "self_attn.k_norm.weight")
        scores = qi @ kj.T / np.sqrt(d) + np.triu(np.full((5, 5), -np.inf), 1)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(p / p.sum(-1, keepdims=True) @ v[:, j * d : (j + 1) * d])
    h = h + np.concatenate(heads, -1) @ w[at + "self_attn.o_proj.weight"].T
    x = norm(h, at + "post_attention_layernorm.weight")
    gate, up = (x @ w[f"{at}mlp.{p}_proj.weight"].T for p in ("gate", "up"))
    h = h + (gate / (1 + np.exp(-gate)) * up) @ w[at + "mlp.down_proj.weight"].T
    expected = norm(h, "model.norm.weight") @ w["model.embed_tokens.weight"].T
    np.testing.assert_allclose(np.array(model(mx.array(tokens)[None])[0]), expected, atol=1e-4)


def test_quantised_model_runs() -> None:
    from mlx.nn.layers.quantized import quantize

    model = random_model(TINY)
    tokens = mx.array([[1, 2, 3]])
    before = model(tokens)
    quantize(model, group_size=32, bits=8)
    assert difference(before, model(tokens)) < 0.1 * number(mx.abs(before).max())


def test_gradients_reach_every_weight() -> None:
    from mlx import nn
    from mlx.nn.utils import value_and_grad

    model = random_model(REUSE)
    tokens = mx.random.randint(0, REUSE.vocab_size, (1, 9))

    def loss(model: Model) -> mx.array:
        return nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).mean()

    _, gradients = value_and_grad(model, loss)(model)
    flat: dict[str, mx.array] = dict(tree_flatten(gradients))
    assert all(number(mx.abs(g).max()) > 0 for g in flat.values())


@pytest.mark.parametrize("args", [TINY, REUSE])
def test_mlx_lm_lora_trains_and_reloads(args: ModelArgs, tmp_path: Path) -> None:
    model = random_model(args)
    tokens = mx.array([[1, 2, 3, 4]])
    before = model(tokens)
    model.freeze()
    config = {"rank": 4, "scale": 2.0, "dropout": 0.0}
    linear_to_lora_layers(model, args.num_hidden_layers, config)
    assert mx.array_equal(model(tokens), before)
    trainable = dict(tree_flatten(model.trainable_parameters()))
    assert {name.rsplit(".", 1)[1] for name in trainable} == {"lora_a", "lora_b"}
    model.load_weights([(k, v + 0.1) for k, v in trainable.items()], strict=False)
    after = model(tokens)
    assert difference(after, before) > 1e-3
    mx.save_safetensors(
        str(tmp_path / "adapters.safetensors"),
        dict(tree_flatten(model.trainable_parameters())),
    )
    settings = {"num_layers": args.num_hidden_layers, "lora_parameters": config}
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({**settings, "fine_tune_type": "lora"})
    )
    again = load_adapters(random_model(args), str(tmp_path))
    assert difference(again(tokens), after) < 1e-5
