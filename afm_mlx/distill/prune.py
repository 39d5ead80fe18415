"""Cut a smaller model out of a larger one.

What matters least goes first, measured on a little text (Minitron, arXiv 2407.14679): FFN
dimensions by the size of their activations, attention heads in whole key-value groups by the
size of what they write, layers by how little they turn the residual stream, its channels by
the size of the normalised activations. Or the FFN's masks are learnt (:mod:`.masks`).

Then, layer by layer, what is left of the FFN is fitted to what the whole model had at that
place, by least squares on the same text: H' = argmin |X' H'^T - Y|^2 + ridge, where X' are the
activations that stayed, in the model pruned so far.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from afm_mlx.data.packing import Batch, PackedCache
from afm_mlx.distill.shape import needed_layers
from afm_mlx.model import Model, TransformerBlock, named_weights
from afm_mlx.model_args import ModelArgs
from afm_mlx.ops import swiglu

import mlx.core as mx
import numpy as np

Array = np.ndarray[Any, Any]
T = TypeVar("T")
Work = Generator[tuple[int, int], None, T]
"""Yields how many of how many layers are ready; its result comes with ``yield from``."""

RIDGE = 0.1
"""Added to the mean square of the activations: keeps the fit near what it was."""


@dataclass(frozen=True)
class Kept:
    """Indices that stay, in rising order.

    Attributes:
        layers: of the blocks.
        ffn: for each block that stays, of its FFN dimensions.
        kv_heads: for each block that stays, of its key-value heads.
        hidden: of the channels of the residual stream.
    """

    layers: Array
    ffn: tuple[Array, ...]
    kv_heads: tuple[Array, ...]
    hidden: Array


@dataclass(frozen=True)
class Importance:
    """How much each part matters; only order within one array means anything.

    Attributes:
        layers: ``[num_layers]``, 1 - cosine of the stream before and after.
        ffn: per layer ``[ffn_size]``, mean size of what a dimension writes.
        kv_heads: per layer ``[num_kv_heads]``, likewise of a group of heads.
        hidden: ``[hidden_size]``, mean size of the normalised stream, over all layers.
    """

    layers: Array
    ffn: tuple[Array, ...]
    kv_heads: tuple[Array, ...]
    hidden: Array


def measure(model: Model, batches: Sequence[Batch]) -> Work[Importance]:
    """Importance of all parts of ``model`` on some text, one layer after the other."""
    streams = [model.model.embed_tokens(mx.array(b.tokens)) for b in batches]
    used = [mx.array(b.segments > 0)[..., None] for b in batches]
    shared: list[Any] = [None] * len(batches)
    turns, ffn, heads, hidden = [], [], [], mx.zeros(model.args.hidden_size)
    for number, layer in enumerate(model.layers):
        totals: list[mx.array] | None = None
        for i, batch in enumerate(batches):
            look = _Look(layer, streams[i], batch, shared[i])
            streams[i] = look.after
            if number < model.model.num_regular:
                shared[i] = look.kv
            sums = [mx.sum(s.astype(mx.float32) * used[i], (0, 1)) for s in look.sizes()]
            totals = sums if totals is None else [a + b for a, b in zip(totals, sums, strict=True)]
            mx.eval(totals, streams[i], shared[i])
        assert totals is not None
        count = sum(int((b.segments > 0).sum()) for b in batches)
        turn, activation, written, channels = [t / count for t in totals]
        down: Any = layer.mlp.down_proj.weight
        turns.append(turn.item())
        norms = mx.linalg.norm(down.astype(mx.float32), axis=0)
        ffn.append(np.array(mx.sqrt(activation) * norms))
        heads.append(np.array(written))
        hidden = hidden + channels
        yield number + 1, len(model.layers)
    return Importance(np.array(turns), tuple(ffn), tuple(heads), np.array(hidden))


class _Look:
    """One layer's pass over one batch, with everything that importance needs."""

    def __init__(self, layer: TransformerBlock, h: mx.array, batch: Batch, kv: Any) -> None:
        cache = PackedCache(batch.segments)
        attention = layer.self_attn
        self.layer, self.before = layer, h
        self.first = layer.input_layernorm(h)
        owns = "k_proj" in attention
        self.kv = attention.keys_values(self.first, cache, 0) if owns else kv
        mask = cache.make_mask(h.shape[1])
        self.heads = attention.heads(self.first, self.kv, mask, cache, 0)
        middle = h + attention.o_proj(self.heads)
        self.second = layer.post_attention_layernorm(middle)
        self.hidden = activations(layer, self.second)
        self.after = middle + layer.mlp.down_proj(self.hidden)

    def sizes(self) -> list[mx.array]:
        """For each position: turn of the stream, FFN squares, sizes of what the groups write,
        sizes of the channels."""
        attention = self.layer.self_attn
        before, after = (
            x / mx.linalg.norm(x, axis=-1, keepdims=True) for x in (self.before, self.after)
        )
        groups = attention.num_kv_heads
        parts = mx.split(self.heads, groups, axis=-1)
        tables = mx.split(attention.o_proj.weight, groups, axis=-1)
        written = [mx.linalg.norm(p @ t.T, axis=-1) for p, t in zip(parts, tables, strict=True)]
        return [
            1 - mx.sum(before * after, axis=-1, keepdims=True),
            mx.square(self.hidden),
            mx.stack(written, axis=-1),
            mx.abs(self.first) + mx.abs(self.second),
        ]


def activations(layer: TransformerBlock, x: mx.array) -> mx.array:
    """What goes into the FFN's down projection, ``[..., ffn_size]``."""
    return swiglu(layer.mlp.gate_proj(x), layer.mlp.up_proj(x))


def choose(
    args: ModelArgs, shape: ModelArgs, importance: Importance, ffn: Sequence[Array] | None = None
) -> Kept:
    """What stays in a model of ``shape``; ``ffn`` are other scores for the FFN dimensions."""
    regular = args.num_hidden_layers - args.num_kv_reuse_layers
    dropped = args.num_hidden_layers - shape.num_hidden_layers
    safe = needed_layers(args)
    free = [i for i in range(regular) if i not in safe]
    order = sorted(free, key=lambda i: importance.layers[i])
    layers = np.array(sorted(set(range(args.num_hidden_layers)) - set(order[:dropped])))
    scores = importance.ffn if ffn is None else ffn
    return Kept(
        layers,
        tuple(_top(scores[i], size) for i, size in zip(layers, shape.ffn_sizes, strict=True)),
        tuple(_top(importance.kv_heads[i], shape.num_key_value_heads) for i in layers),
        _top(importance.hidden, shape.hidden_size),
    )


def _top(scores: Array, k: int) -> Array:
    return np.sort(np.argsort(-scores, kind="stable")[:k])


def cut(model: Model, shape: ModelArgs, kept: Kept) -> Model:
    """A physically smaller model with the weights of ``model`` that stay.

    It computes what ``model`` computes with all else set to zero: a norm over fewer channels
    is brought to the scale it has over zeros among them.
    """
    scale = (model.args.hidden_size / shape.hidden_size) ** 0.5
    hidden = mx.array(kept.hidden)
    weights: list[tuple[str, mx.array]] = []
    for name, weight in named_weights(model):
        parts = name.split(".")
        if parts[1] != "layers":
            size = scale if parts[-2] == "norm" else 1.0
            weights.append((name, mx.take(weight, hidden, axis=-1) * size))
            continue
        places = np.flatnonzero(kept.layers == int(parts[2]))
        if not len(places):
            continue
        place = int(places[0])
        parts[2] = str(place)
        new = _cut_layer(weight, parts[-2], hidden, kept, place, model.args, scale)
        weights.append((".".join(parts), new))
    student = Model(shape)
    student.load_weights(weights)
    student.eval()
    mx.eval(student.parameters())
    return student


def _cut_layer(
    weight: mx.array,
    part: str,
    hidden: mx.array,
    kept: Kept,
    place: int,
    args: ModelArgs,
    scale: float,
) -> mx.array:
    ffn = mx.array(kept.ffn[place])
    queries = args.num_attention_heads // args.num_key_value_heads * args.head_dim
    heads = kept.kv_heads[place]
    match part:
        case "gate_proj" | "up_proj":
            return weight[ffn][:, hidden]
        case "down_proj":
            return weight[hidden][:, ffn]
        case "q_proj":
            return weight[_rows(heads, queries)][:, hidden]
        case "k_proj" | "v_proj":
            return weight[_rows(heads, args.head_dim)][:, hidden]
        case "o_proj":
            return weight[hidden][:, _rows(heads, queries)]
        case "input_layernorm" | "post_attention_layernorm":
            return weight[hidden] * scale
    return weight  # norms within a head


def _rows(heads: Array, size: int) -> mx.array:
    return mx.array((heads[:, None] * size + np.arange(size)).reshape(-1))


def refit(
    model: Model,
    student: Model,
    kept: Kept,
    batches: Sequence[Batch],
    ridge: float = RIDGE,
) -> Work[None]:
    """Fit the down projections of ``student`` (from :func:`cut`) to ``model``, in place.

    The target of layer by layer least squares is the stream of ``model`` after the same layer,
    so a layer also mends what the layers before it lost.
    """
    channels = mx.array(kept.hidden)
    whole = [model.model.embed_tokens(mx.array(b.tokens)) for b in batches]
    pruned = [student.model.embed_tokens(mx.array(b.tokens)) for b in batches]
    shared: list[Any] = [[None, None] for _ in batches]
    place = 0
    for number, layer in enumerate(model.layers):
        stays = number in kept.layers
        own = student.layers[place] if stays else None
        size = own.mlp.down_proj.weight.shape[1] if own is not None else 0
        gram, cross = mx.zeros((size, size)), mx.zeros((len(kept.hidden), size))
        middles = []
        for i, batch in enumerate(batches):
            look = _Look(layer, whole[i], batch, shared[i][0])
            whole[i] = look.after
            shared[i][0] = look.kv
            mx.eval(whole[i], look.kv)
            if own is None:
                continue
            mine = _Look(own, pruned[i], batch, shared[i][1])
            shared[i][1] = mine.kv
            used = mx.array(batch.segments > 0).reshape(-1, 1)
            x = mine.hidden.reshape(-1, size).astype(mx.float32) * used
            middle = mine.after - own.mlp.down_proj(mine.hidden)
            error = (whole[i][..., channels] - middle).astype(mx.float32)
            error = error.reshape(-1, len(kept.hidden))
            gram, cross = gram + x.T @ x, cross + (error * used).T @ x
            middles.append((middle, mine.hidden))
            mx.eval(gram, cross, middles[-1], mine.kv)
        if own is not None:
            own.mlp.down_proj.weight = _solve(own.mlp.down_proj.weight, gram, cross, ridge)
            pruned = [m + own.mlp.down_proj(h) for m, h in middles]
            mx.eval(pruned)
            place += 1
        yield number + 1, len(model.layers)


def _solve(weight: mx.array, gram: mx.array, cross: mx.array, ridge: float) -> mx.array:
    """argmin over W of |X W^T - Y|^2 + ridge mean(X^2) |W - weight|^2, from X^T X and Y^T X."""
    g = np.array(gram.astype(mx.float32), np.float64)
    pull = ridge * max(float(np.trace(g)) / len(g), 1e-12)
    start = np.array(weight.astype(mx.float32), np.float64)
    right = np.array(cross.astype(mx.float32), np.float64) + pull * start
    solved = np.linalg.solve(g + pull * np.eye(len(g)), right.T).T
    return mx.array(solved.astype(np.float32)).astype(weight.dtype)


def finish(work: Work[T]) -> T:
    """The result of ``work``, its progress not looked at."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
