"""What calibration text says of each linear layer: its inputs, and what an error costs.

One backward pass with labels sampled from the model itself, so that squared gradients estimate
the Fisher information (Martens, arXiv 1412.1193). With inputs ``x`` of a layer and the loss's
gradients ``d`` of its outputs, a token adds

- ``x x^T`` to the Hessian of the layer's squared error (GPTQ),
- ``mean(d^2) x x^T`` to the guided Hessian, that of the loss (GuidedQuant, arXiv 2505.07004),
- ``d^2 x^2`` to the Fisher information of each weight (SqueezeLLM, arXiv 2306.07629).

Layer by layer: what goes into each block is kept, on disk where it is much, and each block is
computed again on the way back, so that the moments of a single block are in memory at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afm_mlx.data.packing import Batch, PackedCache
from afm_mlx.losses import CHUNK
from afm_mlx.model import Model, TransformerBlock
from afm_mlx.ops import exp, logsumexp

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_unflatten

Array = np.ndarray[Any, Any]

IN_MEMORY = 4e9
"""Bytes of blocks' inputs that are kept in memory: 32k tokens of a 270 M model in float32."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Means over the calibration tokens for a linear layer ``[N, K]``, all float32.

    Attributes:
        hessian: ``[K, K]``; layers with the same input share the array.
        guided: ``[K, K]``.
        fisher: ``[N, K]``.
        peak: ``[K]``, the largest magnitude of each input.
    """

    hessian: Array
    guided: Array
    fisher: Array
    peak: Array


@dataclass(frozen=True)
class Progress:
    """So many of ``total`` passes of a batch through a block are done."""

    done: int
    total: int


def linears(module: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a module by their dotted names, without the output table."""
    found: Any = module.named_modules()
    return {
        name: layer
        for name, layer in sorted(found)
        if isinstance(layer, nn.Linear) and name != "lm_head"
    }


def collect(
    model: Model, batches: Sequence[Batch], seed: int = 0, folder: Path | None = None
) -> Iterator[Progress | tuple[int, dict[str, Statistics]]]:
    """Statistics of one block after the other, from the last to the first.

    Args:
        folder: what goes into the blocks is kept there if it takes over :data:`IN_MEMORY` bytes.

    Yields:
        :class:`Progress`, and for each block its number and the statistics of its linear
        layers by their names in the block. The blocks that reuse the last regular one's keys
        and values come with that one.
    """
    model.eval()
    blocks = _Blocks(model)
    total, done = len(batches) * (len(blocks) + 1), 0
    shape = sum(b.tokens.size for b in batches) * model.args.hidden_size * len(blocks)
    much = shape * model.head_weight.itemsize > IN_MEMORY
    inputs = _Inputs(folder if much else None)
    gradients: list[mx.array] = []
    key = mx.random.key(seed)
    for i, batch in enumerate(batches):
        seen: list[mx.array] = []
        cache: Any = [PackedCache(batch.segments)] * len(model.layers)
        model.model(mx.array(batch.tokens), cache, seen=seen)
        seen = seen[: len(blocks)]
        out = blocks(len(blocks) - 1, seen[-1], batch)
        key, drawn = mx.random.split(key)
        gradients.append(_loss_gradient(model, out, batch, drawn))
        mx.eval(gradients[-1], seen)
        for index, h in enumerate(seen):
            inputs.put(index, i, h)
        done += 1
        yield Progress(done, total)
    tokens = sum(int((b.segments > 0).sum()) for b in batches)
    for index in range(len(blocks) - 1, -1, -1):
        moments = _Moments()
        for i, batch in enumerate(batches):
            gradients[i] = blocks.back(index, inputs.take(index, i), gradients[i], batch, moments)
            mx.eval(gradients[i], moments.arrays())
            done += 1
            yield Progress(done, total)
        yield from moments.finish(tokens).items()


class _Inputs:
    """What goes into piece ``index`` in batch ``i``; taken once."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.held: dict[tuple[int, int], mx.array] = {}

    def put(self, index: int, i: int, h: mx.array) -> None:
        if self.folder is None:
            self.held[index, i] = h
        else:
            mx.save_safetensors(str(self._file(index, i)), {"h": h})

    def take(self, index: int, i: int) -> mx.array:
        if self.folder is None:
            return self.held.pop((index, i))
        loaded: Any = mx.load(str(self._file(index, i)))
        mx.eval(loaded["h"])
        self._file(index, i).unlink()
        return loaded["h"]

    def _file(self, index: int, i: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{index}-{i}.safetensors"


class _Blocks:
    """The stack in pieces that only hand on the stream.

    Piece ``i`` is block ``i``; the last piece holds the last regular block and those that reuse
    its keys and values.
    """

    def __init__(self, model: Model) -> None:
        layers = list(model.layers)
        own = model.model.num_regular
        self.pieces = [[layer] for layer in layers[:own]]
        self.pieces[-1] += layers[own:]

    def __len__(self) -> int:
        return len(self.pieces)

    def __call__(self, index: int, h: mx.array, batch: Batch) -> mx.array:
        cache = PackedCache(batch.segments)
        mask = cache.make_mask(h.shape[1])
        kv = None
        for layer in self.pieces[index]:
            h, kv = layer(h, mask, cache, 0, kv)
        return h

    def back(
        self, index: int, h: mx.array, gradient: mx.array, batch: Batch, moments: "_Moments"
    ) -> mx.array:
        """Gradient of the piece's input; the inputs and gradients within go to ``moments``."""
        layers = {
            (index + i, name): linear
            for i, layer in enumerate(self.pieces[index])
            for name, linear in linears(layer).items()
        }
        names = list(layers)
        seen: dict[tuple[int, str], mx.array] = {}
        shape = h.shape[:-1]

        def run(h: mx.array, nudges: list[mx.array]) -> tuple[mx.array, list[mx.array]]:
            seen.clear()
            given = dict(zip(names, nudges, strict=True))

            def pass_through(at: tuple[int, str], linear: nn.Linear) -> Callable[..., mx.array]:
                def call(x: mx.array) -> mx.array:
                    seen[at] = x
                    return linear(x) + given[at]

                return call

            with _replaced(self.pieces[index], index, pass_through):
                out = self(index, h, batch)
            return mx.sum(out * gradient), [seen[n] for n in names]

        nudges = [mx.zeros((*shape, layers[n].weight.shape[0]), h.dtype) for n in names]
        found: Any = mx.value_and_grad(run, argnums=(0, 1))(h, nudges)
        (_, xs), (back, ds) = found
        real = mx.array(batch.segments.reshape(-1) > 0)[:, None]
        first: dict[int, tuple[int, str]] = {}
        for name in names:  # layers that read the same array share what is said of it
            first.setdefault(id(seen[name]), name)
        for name, x, d in zip(names, xs, ds, strict=True):
            moments.add(name, first[id(seen[name])], x, d, real)
        return back


class _Tap(nn.Module):
    """Takes the place of a linear layer."""

    def __init__(self, call: Callable[..., mx.array]) -> None:
        super().__init__()
        self._call = call

    def __call__(self, x: mx.array) -> mx.array:
        return self._call(x)


class _replaced:
    """Within the block, every linear layer is what ``make`` makes of it."""

    def __init__(
        self,
        layers: Sequence[TransformerBlock],
        start: int,
        make: Callable[[tuple[int, str], nn.Linear], Callable[..., mx.array]],
    ) -> None:
        self.plain = [(layer, linears(layer)) for layer in layers]
        self.start, self.make = start, make

    def __enter__(self) -> None:
        for i, (layer, found) in enumerate(self.plain):
            taps = [
                (n, _Tap(self.make((self.start + i, n), linear))) for n, linear in found.items()
            ]
            layer.update_modules(tree_unflatten(taps))

    def __exit__(self, *_: object) -> None:
        for layer, found in self.plain:
            layer.update_modules(tree_unflatten(list(found.items())))


@dataclass
class _Moments:
    """Sums over batches for the linear layers of a piece."""

    hessian: dict[Any, mx.array] = field(default_factory=dict)
    peak: dict[Any, mx.array] = field(default_factory=dict)
    guided: dict[Any, mx.array] = field(default_factory=dict)
    fisher: dict[Any, mx.array] = field(default_factory=dict)
    reads: dict[Any, Any] = field(default_factory=dict)

    def add(self, name: Any, source: Any, x: mx.array, d: mx.array, real: mx.array) -> None:
        """Inputs ``x [B, L, K]`` and gradients ``d [B, L, N]`` of a batch."""
        x = mx.where(real, x.reshape(-1, x.shape[-1]).astype(mx.float32), 0.0)
        squares = mx.square(d.reshape(-1, d.shape[-1]).astype(mx.float32))
        self.reads[name] = source
        if source == name:
            _add(self.hessian, name, x.T @ x)
            top = mx.max(mx.abs(x), axis=0)
            self.peak[name] = mx.maximum(self.peak[name], top) if name in self.peak else top
        _add(self.guided, name, (x * mx.mean(squares, axis=1, keepdims=True)).T @ x)
        _add(self.fisher, name, squares.T @ mx.square(x))

    def arrays(self) -> list[mx.array]:
        sums = (self.hessian, self.peak, self.guided, self.fisher)
        return [a for part in sums for a in part.values()]

    def finish(self, tokens: int) -> dict[int, dict[str, Statistics]]:
        """Means, by the number of the block and the name in it."""
        hessian = {n: np.array(h) / tokens for n, h in self.hessian.items()}
        peak = {n: np.array(p) for n, p in self.peak.items()}
        out: dict[int, dict[str, Statistics]] = {}
        for (number, name), source in self.reads.items():
            at = (number, name)
            out.setdefault(number, {})[name] = Statistics(
                hessian[source],
                np.array(self.guided[at]) / tokens,
                np.array(self.fisher[at]) / tokens,
                peak[source],
            )
        return out


def _add(sums: dict[Any, mx.array], name: Any, value: mx.array) -> None:
    sums[name] = sums[name] + value if name in sums else value


def _loss_gradient(model: Model, h: mx.array, batch: Batch, key: mx.array) -> mx.array:
    """Gradient of the summed cross-entropy at the last block's output ``[B, L, D]``, with labels
    drawn from the model's own distribution."""

    def normed(h: mx.array) -> mx.array:
        return model.model.norm(h)

    rows = normed(h).reshape(-1, h.shape[-1])
    weight = model.head_weight
    back = []
    for start in range(0, len(rows), CHUNK):  # never all logits at once
        logits = (rows[start : start + CHUNK] @ weight.T).astype(mx.float32)
        p = exp(logits - logsumexp(logits)[:, None])
        key, drawn = mx.random.split(key)
        label = draw(p, drawn)
        d = mx.put_along_axis(p, label, mx.take_along_axis(p, label, axis=-1) - 1, axis=-1)
        back.append(d.astype(weight.dtype) @ weight)
        mx.eval(back)
    real = mx.array(batch.segments.reshape(-1) > 0)[:, None]
    _, found = mx.vjp(normed, [h], [mx.where(real, mx.concatenate(back), 0.0).reshape(h.shape)])
    return found[0]


def draw(p: mx.array, key: mx.array) -> mx.array:
    """A token ``[T, 1]`` from each row of probabilities ``[T, V]``."""
    cumulative = mx.cumsum(p, axis=-1)
    drawn = mx.random.uniform(shape=(len(p), 1), key=key) * cumulative[:, -1:]
    return mx.sum(cumulative < drawn, axis=-1, keepdims=True)
