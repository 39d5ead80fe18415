"""The student: one decoder for Apple's 2024 and 2025 on-device shapes and the llama family.

Pre-norm RMSNorm, SwiGLU, grouped-query attention, RoPE, tied embeddings, no biases
(arXiv 2407.21075, section 2.1). Two options cover the 2025 shape (arXiv 2507.13575): RMSNorm
on queries and keys, and *KV-reuse* layers at the end of the stack, which own only Q and O and
attend to the keys and values of the last regular layer.

The class follows mlx-lm's model protocol (``__call__(inputs, cache)``, ``layers``,
``make_cache``, ``sanitize``), so mlx-lm's generation, caches, speculation and LoRA work on it.
"""

from dataclasses import replace
from typing import Any

from afm_mlx.model_args import ModelArgs
from afm_mlx.ops import attention, swiglu

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.cache import KVCache
from mlx_lm.models.rope_utils import initialize_rope

_SMOLLM2 = ModelArgs(
    hidden_size=576,
    num_hidden_layers=30,
    intermediate_size=1536,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49_152,
    rope_theta=100_000.0,
)

PRESETS: dict[str, ModelArgs] = {
    # arXiv 2407.21075, table 1; the paper leaves the FFN width out: 8064 gives its 2.58 B.
    "afm-2024": ModelArgs(
        hidden_size=3072,
        num_hidden_layers=26,
        intermediate_size=8064,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=49_152,
        rope_theta=500_000.0,
        qk_norm=True,
    ),
    "afm-2025": ModelArgs(
        hidden_size=2048,
        num_hidden_layers=56,
        intermediate_size=6656,
        num_attention_heads=16,
        num_key_value_heads=2,
        head_dim=128,
        vocab_size=153_600,
        rope_theta=500_000.0,
        rope_traditional=True,
        qk_norm=True,
        num_kv_reuse_layers=21,
    ),
    "smollm2-135m": _SMOLLM2,
    "smollm2-360m": replace(
        _SMOLLM2,
        hidden_size=960,
        num_hidden_layers=32,
        intermediate_size=2560,
        num_attention_heads=15,
        num_key_value_heads=5,
        head_dim=64,
    ),
    "smollm2-1.7b": replace(
        _SMOLLM2,
        hidden_size=2048,
        num_hidden_layers=24,
        intermediate_size=8192,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=64,
        rope_theta=130_000.0,
    ),
    "tiny": replace(
        _SMOLLM2,
        hidden_size=128,
        num_hidden_layers=4,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=259,  # bytes and three special tokens
        max_position_embeddings=1024,
    ),
}

KV = tuple[Any, Any]  # keys and values as a cache returns them: arrays, or quantised triples


class Attention(nn.Module):
    """Grouped-query attention; with ``reuses_kv`` it owns only Q and O."""

    def __init__(self, args: ModelArgs, reuses_kv: bool = False) -> None:
        super().__init__()
        dim, head = args.hidden_size, args.head_dim
        self.num_heads, self.num_kv_heads = args.num_attention_heads, args.num_key_value_heads
        self.scale = head**-0.5
        self.q_proj = nn.Linear(dim, self.num_heads * head, bias=False)
        self.o_proj = nn.Linear(self.num_heads * head, dim, bias=False)
        if not reuses_kv:
            self.k_proj = nn.Linear(dim, self.num_kv_heads * head, bias=False)
            self.v_proj = nn.Linear(dim, self.num_kv_heads * head, bias=False)
        if args.qk_norm:
            self.q_norm = nn.RMSNorm(head, eps=args.rms_norm_eps)
            if not reuses_kv:
                self.k_norm = nn.RMSNorm(head, eps=args.rms_norm_eps)
        self.qk_norm = args.qk_norm
        self.rope = initialize_rope(
            head,
            args.rope_theta,
            args.rope_traditional,
            args.rope_scaling,
            args.max_position_embeddings,
        )

    def keys_values(self, x: mx.array, cache: Any, offset: Any) -> KV:
        """Keys and values ``[B, num_kv_heads, S, head_dim]`` of ``x`` and all before it."""
        b, n, _ = x.shape
        keys = self.k_proj(x).reshape(b, n, self.num_kv_heads, -1).transpose(0, 2, 1, 3)
        values = self.v_proj(x).reshape(b, n, self.num_kv_heads, -1).transpose(0, 2, 1, 3)
        keys = _rotated(self.rope, keys, offset)
        if self.qk_norm:
            keys = self.k_norm(keys)
        return (keys, values) if cache is None else cache.update_and_fetch(keys, values)

    def heads(self, x: mx.array, kv: KV, mask: Any, cache: Any, offset: Any) -> mx.array:
        """What all heads read, side by side: ``[B, L, num_heads * head_dim]``."""
        b, n, _ = x.shape
        queries = self.q_proj(x).reshape(b, n, self.num_heads, -1).transpose(0, 2, 1, 3)
        queries = _rotated(self.rope, queries, offset)
        if self.qk_norm:
            queries = self.q_norm(queries)
        out = attention(queries, *kv, cache=cache, scale=self.scale, mask=mask)
        return out.transpose(0, 2, 1, 3).reshape(b, n, -1)

    def __call__(self, x: mx.array, kv: KV, mask: Any, cache: Any, offset: Any) -> mx.array:
        return self.o_proj(self.heads(x, kv, mask, cache, offset))


def _rotated(rope: nn.Module, x: mx.array, offset: Any) -> mx.array:
    """RoPE of ``x`` ``[B, H, L, head_dim]``; ``offset`` is the position of the first token, one for
    all rows or ``[B]``, or of every token ``[B, L]``."""
    if not isinstance(offset, mx.array) or offset.ndim < 2:
        turned: mx.array = rope(x, offset=offset)
        return turned
    b, heads, n, dim = x.shape
    rows = x.swapaxes(1, 2).reshape(b * n, heads, 1, dim)
    return rope(rows, offset=offset.reshape(-1)).reshape(b, n, heads, dim).swapaxes(1, 2)


def _after(offset: Any, skipped: int) -> Any:
    """The ``offset`` of what is left without the first tokens."""
    each = isinstance(offset, mx.array) and offset.ndim > 1
    return offset[:, skipped:] if each else offset + skipped


class MLP(nn.Module):
    """SwiGLU feed-forward of width ``hidden`` (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class TransformerBlock(nn.Module):
    """Pre-norm block; returns the stream and the keys and values that it attended to.

    Given ``kv`` it makes none of its own. The first ``skipped`` positions give keys and
    values only; the stream goes on without them.
    """

    def __init__(self, args: ModelArgs, ffn_size: int, reuses_kv: bool) -> None:
        super().__init__()
        self.self_attn = Attention(args, reuses_kv)
        self.mlp = MLP(args.hidden_size, ffn_size)
        self.input_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(
        self,
        h: mx.array,
        mask: Any,
        cache: Any,
        offset: Any,
        kv: KV | None = None,
        skipped: int = 0,
    ) -> tuple[mx.array, KV]:
        x = self.input_layernorm(h)
        if kv is None:
            kv = self.self_attn.keys_values(x, cache, offset)
        if skipped:
            h, x = h[:, skipped:], x[:, skipped:]
            mask = mask[..., skipped:, :] if isinstance(mask, mx.array) else mask
        if isinstance(mask, str) and h.shape[1] == 1:
            mask = None  # the last query sees all keys
        h = h + self.self_attn(x, kv, mask, cache, _after(offset, skipped))
        return h + self.mlp(self.post_attention_layernorm(h)), kv


class Decoder(nn.Module):
    """Embedding, blocks and final norm: token ids ``[B, L]`` to hidden states ``[B, L, D]``."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.num_regular = args.num_hidden_layers - args.num_kv_reuse_layers
        self.gradient_checkpointing = False
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [
            TransformerBlock(args, size, reuses_kv=i >= self.num_regular)
            for i, size in enumerate(args.ffn_sizes)
        ]
        self.norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(
        self,
        inputs: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
        last: int | None = None,
        seen: list[mx.array] | None = None,
    ) -> mx.array:
        """Hidden states; what goes into each block is appended to ``seen``."""
        h = self.embed_tokens(inputs) if input_embeddings is None else input_embeddings
        caches = cache if cache is not None else [None] * self.num_regular
        mask = create_attention_mask(h, caches[0])
        offset = 0 if caches[0] is None else caches[0].offset
        final = self.num_regular - 1
        run = _checkpointed if self.gradient_checkpointing and self.training else _plainly
        for layer, c in zip(self.layers[:final], caches, strict=False):
            _note(seen, h)
            h, _ = run(layer, h, mask, c, offset)
        # All that follows the last keys and values is needed only where logits are wanted.
        skipped = max(h.shape[1] - last, 0) if last is not None else 0
        shared = caches[final]
        _note(seen, h)
        h, kv = run(self.layers[final], h, mask, shared, offset, None, skipped)
        if isinstance(mask, mx.array):
            mask = mask[..., skipped:, :]
        for layer in self.layers[self.num_regular :]:
            _note(seen, h)
            h, _ = run(layer, h, mask, shared, _after(offset, skipped), kv)
        return self.norm(h)


def _note(seen: list[mx.array] | None, h: mx.array) -> None:
    if seen is not None:
        seen.append(h)


def _plainly(layer: TransformerBlock, *arguments: Any) -> tuple[mx.array, KV]:
    return layer(*arguments)


def _checkpointed(layer: TransformerBlock, *arguments: Any) -> tuple[mx.array, KV]:
    """Keep nothing of a block for its gradients but its input (arXiv 1604.06174)."""

    def block(parameters: Any, *arguments: Any) -> tuple[mx.array, KV]:
        layer.update(parameters)
        return layer(*arguments)

    kept: Any = mx.checkpoint(block)
    return kept(layer.trainable_parameters(), *arguments)


class Model(nn.Module):
    """Causal language model.

    ``model(inputs, cache=None, input_embeddings=None, last=None)`` maps token ids ``[B, L]``
    to logits ``[B, L, vocab_size]``, or to those of the ``last`` positions only: everything
    after the last layer that writes keys and values is then computed for these alone.
    """

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.to_dict()["model_type"]
        self.model = Decoder(args)
        if not args.tie_word_embeddings:
            self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def __call__(
        self,
        inputs: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
        last: int | None = None,
    ) -> mx.array:
        h = self.model(inputs, cache, input_embeddings, last)
        if self.args.tie_word_embeddings:
            return self.model.embed_tokens.as_linear(h)
        return self.lm_head(h)

    @property
    def head_weight(self) -> mx.array:
        """The output table ``[vocab_size, hidden_size]``; the embeddings where they are tied."""
        head = self.model.embed_tokens if self.args.tie_word_embeddings else self.lm_head
        if isinstance(head, nn.QuantizedEmbedding | nn.QuantizedLinear):
            grid = (head.scales, head.get("biases"), head.group_size, head.bits, head.mode)
            return mx.dequantize(head.weight, *grid)
        return head.weight if isinstance(head, nn.Embedding | nn.Linear) else head.dense()

    @property
    def layers(self) -> list[TransformerBlock]:
        return self.model.layers

    def make_cache(self) -> list[KVCache]:
        """One cache per layer that owns keys and values, as mlx-lm's own class does it."""
        return [KVCache() for _ in range(self.model.num_regular)]

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Drop what some llama checkpoints carry and this model derives."""
        weights = {k: v for k, v in weights.items() if not k.endswith("rotary_emb.inv_freq")}
        if self.args.tie_word_embeddings:
            weights.pop("lm_head.weight", None)
        return weights


def named_weights(module: nn.Module) -> list[tuple[str, mx.array]]:
    """All weights of a module with their dotted names."""
    flat: Any = tree_flatten(module.parameters())
    return list(flat)
