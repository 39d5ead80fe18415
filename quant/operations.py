"""The operations of a model: what each holds, and what it must read to run here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from afm_mlx.model import Model, named_weights
from afm_mlx.quant import kernels
from afm_mlx.quant.kernel_source import MOST_VECTORS
from afm_mlx.quant.layers import AffineLinear, PalettizedLinear, RowwiseEmbedding
from afm_mlx.quant.profile import Kind

import mlx.core as mx
from mlx import nn

# What a block's keys and values are made with.
_FOR_KEYS = {"input_layernorm"} | {
    f"self_attn.{n}" for n in ("k_proj", "v_proj", "k_rope", "k_norm")
}


@dataclass(frozen=True)
class Part:
    """An operation before it is measured.

    Attributes:
        late: it comes after the last keys and values, so it runs for wanted positions only.
        tied: its weights are another one's too.
        rows: vectors for each position (a norm of every head has several).
    """

    name: str
    kind: Kind
    block: int | None
    shape: tuple[int, ...]
    layer: Any = None
    late: bool = False
    tied: bool = False
    rows: int = 1

    @property
    def stored(self) -> int:
        """Bytes on disk: packed numbers as they are, others with 16 bits."""
        if self.layer is None or self.tied:
            return 0
        return sum(
            2 * v.size if mx.issubdtype(v.dtype, mx.floating) else v.nbytes
            for _, v in named_weights(self.layer)
        )


def parts(model: Model) -> Iterator[Part]:
    """Operations of a model in the order in which they run."""
    args, decoder = model.args, model.model
    shape = (args.vocab_size, args.hidden_size)
    yield Part("model.embed_tokens", "embedding", None, shape, decoder.embed_tokens)
    for number in range(len(model.layers)):
        yield from _block_parts(model, number)
    yield Part("model.norm", "norm", None, shape[1:], decoder.norm, late=True)
    tied = args.tie_word_embeddings
    table = decoder.embed_tokens if tied else model.lm_head
    yield Part("lm_head", "head", None, shape, table, late=True, tied=tied)


def _block_parts(model: Model, number: int) -> Iterator[Part]:
    args, block, final = model.args, model.layers[number], model.model.num_regular - 1
    dim, hidden, head = args.hidden_size, args.ffn_sizes[number], args.head_dim
    heads, kv_heads = args.num_attention_heads, args.num_key_value_heads
    at, ffn = block.self_attn, block.mlp

    def part(name: str, kind: Kind, shape: tuple[int, ...], layer: Any = None) -> Part:
        # Of the last block with keys and values of its own only these run for all positions.
        late = number > final or (number == final and name not in _FOR_KEYS)
        rows = {"self_attn.q_norm": heads, "self_attn.k_norm": kv_heads}.get(name, 1)
        return Part(f"model.layers.{number}.{name}", kind, number, shape, layer, late, rows=rows)

    yield part("input_layernorm", "norm", (dim,), block.input_layernorm)
    if number <= final:
        yield part("self_attn.k_proj", "linear", (kv_heads * head, dim), at.k_proj)
        yield part("self_attn.v_proj", "linear", (kv_heads * head, dim), at.v_proj)
        yield part("self_attn.k_rope", "rotary", (kv_heads, head), at.rope)
        if args.qk_norm:
            yield part("self_attn.k_norm", "norm", (head,), at.k_norm)
    yield part("self_attn.q_proj", "linear", (heads * head, dim), at.q_proj)
    yield part("self_attn.q_rope", "rotary", (heads, head), at.rope)
    if args.qk_norm:
        yield part("self_attn.q_norm", "norm", (head,), at.q_norm)
    yield part("self_attn.attention", "attention", (heads, kv_heads, head))
    yield part("self_attn.o_proj", "linear", (dim, heads * head), at.o_proj)
    yield part("post_attention_layernorm", "norm", (dim,), block.post_attention_layernorm)
    yield part("mlp.gate_proj", "linear", (hidden, dim), ffn.gate_proj)
    yield part("mlp.up_proj", "linear", (hidden, dim), ffn.up_proj)
    yield part("mlp.swiglu", "activation", (hidden,))
    yield part("mlp.down_proj", "linear", (dim, hidden), ffn.down_proj)


def dtype(model: Model) -> mx.Dtype:
    """The type that a model computes in."""
    found: mx.Dtype = model.model.norm.weight.dtype
    return found


def width(layer: Any) -> int:
    """Nominal bits of a weight; those of the layer inside, where an adapter is around it."""
    for module in [] if layer is None else layer.modules():
        if isinstance(module, PalettizedLinear | nn.QuantizedLinear | nn.QuantizedEmbedding):
            return int(module.bits)
        if isinstance(module, RowwiseEmbedding):
            return 8
    return 16


def weights_read(layer: Any, rows: int) -> int:
    """Bytes of weights that a product with ``rows`` vectors reads, and writes to read them."""
    return sum(_module_read(module, rows) for module in layer.modules())


def _module_read(module: Any, rows: int) -> int:
    own = sum(
        v.nbytes for k, v in module.items() if isinstance(v, mx.array) and not k.startswith("_")
    )
    if isinstance(module, PalettizedLinear):
        if module._dense is not None:
            return int(module._dense.nbytes)
        if rows <= MOST_VECTORS and kernels.usable(module.bits, module.lut.dtype):
            return own
        decoded = module.input_dims * module.output_dims * module.lut.itemsize
        return own + 2 * decoded
    if isinstance(module, AffineLinear) and module._dense is not None:
        return int(module._dense.nbytes)
    if isinstance(module, RowwiseEmbedding):
        if module._grid is not None:
            return int(module.weight.nbytes) + sum(v.nbytes for v in module._grid)
        if module._dense is not None:
            return int(module._dense.nbytes)
        return own + 8 * module.weight.size * module.scales.itemsize
    return own


def notes(parts: Sequence[Part]) -> Iterator[str]:
    """What a reader of the figures must know of this machine."""
    linear = [p.layer for p in parts if p.kind == "linear"]
    packed = [x for x in linear if width(x) < 16]
    held = [
        m
        for x in packed
        for m in x.modules()
        if isinstance(m, PalettizedLinear | AffineLinear) and m._dense is not None
    ]
    if held:
        yield (
            f"{len(held)} of {len(packed)} low-bit layers compute from dense copies here, so they"
            " take as long at any width; what-if times are those of packed weights"
        )
