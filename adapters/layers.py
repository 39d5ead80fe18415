"""LoRA and DoRA: low-rank changes beside frozen layers, in slots that are filled and emptied.

LoRA (arXiv 2106.09685) adds ``s B A x`` to ``W x``; DoRA (arXiv 2402.09353) also learns the
length ``m`` of each row: ``m (W + s B A) x / |W + s B A|``. Names and shapes are mlx-lm's:
``lora_a`` ``[K, r]`` and ``lora_b`` ``[r, N]``. The layer itself is called, never changed or
copied: it may be dense, quantised or palettised, and with an empty slot its output is its own.

DoRA needs the rows' lengths of the changed weights. With ``d = s B A`` they follow from
``|W + d|^2 = |W|^2 + 2 W.d + |d|^2``, where ``W A`` is the layer's output for ``A``: weights are
decoded only once, for ``|W|``.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from afm_mlx.adapters.adapter import LEAVES

import mlx.core as mx
from mlx import nn


@runtime_checkable
class LowBit(Protocol):
    """A layer that decodes its weights itself; with ``as_linear`` it is an embedding."""

    def dense(self) -> mx.array:
        """The weights ``[rows, columns]``."""

    def hold_dense(self, held: bool) -> None:
        """Keep a dense copy to compute with, or drop it."""


@runtime_checkable
class LowBitEmbedding(LowBit, Protocol):
    """An embedding that is an output table too."""

    def as_linear(self, x: mx.array) -> mx.array:
        """Logits of hidden states."""


class Filling(NamedTuple):
    """What is put into a slot.

    Attributes:
        lora_a, lora_b: one pair, or ``[n, K, r]`` and ``[n, r, N]`` for the rows of a batch.
        gain: DoRA's ``m / |W + s B A|`` ``[N]``, or ``[n, 1, N]``.
        rows: which pair each row of the batch takes, ``[B]``.
    """

    lora_a: mx.array
    lora_b: mx.array
    scale: float
    m: mx.array | None = None
    gain: mx.array | None = None
    rows: mx.array | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(x.nbytes for x in self if isinstance(x, mx.array))


class Slot(nn.Module):
    """A frozen layer, and room for an adapter's matrices beside it."""

    _use: tuple[float, mx.array | None, mx.array | None]
    """Scale, gain and rows of the filling."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.0)
        self._lengths: mx.array | None = None
        self.empty()

    @property
    def scale(self) -> float:
        """What the product of the matrices is multiplied by."""
        return self._use[0]

    @property
    def base(self) -> nn.Module:
        """The layer itself."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs K and outputs N; of an embedding its rows and columns."""
        raise NotImplementedError

    def fill(self, filling: Filling) -> None:
        """Take matrices by reference."""
        lora_a, lora_b, scale, m, gain, rows = filling
        self["lora_a"], self["lora_b"] = lora_a, lora_b  # a swap has no time for __setattr__
        if m is None:
            self.pop("m", None)
        else:
            self["m"] = m
        object.__setattr__(self, "_use", (scale, gain, rows))

    def take_rows(self, rows: mx.array) -> None:
        """Say anew which pair each row of the batch takes."""
        scale, gain, _ = self._use
        object.__setattr__(self, "_use", (scale, gain, rows))

    def empty(self) -> None:
        """Drop the matrices."""
        for leaf in LEAVES:
            self.pop(leaf, None)
        object.__setattr__(self, "_use", (1.0, None, None))

    def _plus(self, y: mx.array, x: mx.array, lora_a: mx.array, lora_b: mx.array) -> mx.array:
        """``y + scale * x @ lora_a @ lora_b`` for a batch ``[B, L, ...]`` of rows or any ``x``."""
        scale, _, rows = self._use
        x, lora_a, lora_b = x.astype(y.dtype), lora_a.astype(y.dtype), lora_b.astype(y.dtype)
        if rows is None:
            return mx.addmm(y, x @ lora_a, lora_b, alpha=scale)
        z = mx.gather_mm(x, lora_a, rhs_indices=rows)
        return y + scale * mx.gather_mm(z, lora_b, rhs_indices=rows)


class LoRALinear(Slot):
    """A linear layer with a slot; inputs ``[..., K]``, outputs ``[..., N]``."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    @property
    def base(self) -> nn.Module:
        return self.linear

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = _shape(self.linear)
        return columns, rows

    def gain(self) -> mx.array:
        """``m / |W + s B A|`` ``[N]``; no gradient goes through the lengths."""
        lengths = mx.stop_gradient(self.lengths(self.lora_a, self.lora_b, self.scale))
        return self.m / lengths

    def lengths(self, lora_a: mx.array, lora_b: mx.array, scale: float) -> mx.array:
        """Euclidean lengths ``[N]`` of the rows of ``W + s B A``, float32."""
        a, b = lora_a.astype(mx.float32), scale * lora_b.astype(mx.float32)
        if self._lengths is None:
            self._lengths = mx.linalg.norm(_decoded(self.linear).astype(mx.float32), axis=1)
            mx.eval(self._lengths)
        crossed = self.linear(a.T) - self._bias
        squared = self._lengths**2 + mx.sum((2 * crossed + a.T @ a @ b) * b, axis=0)
        return mx.sqrt(mx.maximum(squared, 0))

    def dense(self) -> mx.array:
        """The weights ``[N, K]`` as the slot changes them."""
        weight = _decoded(self.linear)
        if "lora_b" not in self:
            return weight
        weight = weight + self.scale * (self.lora_a @ self.lora_b).T.astype(weight.dtype)
        return self._gains(weight.dtype)[:, None] * weight if "m" in self else weight

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        if "lora_b" not in self:
            return y
        if "m" not in self and self._use[1] is None:
            return self._plus(y, self.dropout(x), self.lora_a, self.lora_b)
        bias = self._bias
        changed = self._plus(y - bias, self.dropout(x), self.lora_a, self.lora_b)
        return self._gains(y.dtype) * changed + bias

    def _gains(self, dtype: mx.Dtype) -> mx.array:
        _, gain, rows = self._use
        if gain is None:
            gain = self.gain()
        return (gain if rows is None else gain[rows]).astype(dtype)

    @property
    def _bias(self) -> Any:
        return self.linear.bias if "bias" in self.linear else 0


class LoRAEmbedding(Slot):
    """An embedding with a slot; its table may be the output table too."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    @property
    def base(self) -> nn.Module:
        return self.embedding

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = _shape(self.embedding)
        return rows, columns

    def dense(self) -> mx.array:
        """The table ``[V, D]`` as the slot changes it."""
        weight = _decoded(self.embedding)
        if "lora_b" not in self:
            return weight
        return weight + self.scale * (self.lora_a @ self.lora_b).astype(weight.dtype)

    def __call__(self, tokens: mx.array) -> mx.array:
        y = self.embedding(tokens)
        if "lora_b" not in self:
            return y
        scale, _, rows = self._use
        own = tokens if rows is None else (rows[:, None], tokens)
        picked, lora_b = self.lora_a[own].astype(y.dtype), self.lora_b.astype(y.dtype)
        if rows is not None:
            return y + scale * mx.gather_mm(picked, lora_b, rhs_indices=rows)
        return y + scale * self.dropout(picked @ lora_b)

    def as_linear(self, x: mx.array) -> mx.array:
        """Logits ``[..., V]`` of hidden states ``[..., D]``."""
        y = self.embedding.as_linear(x)
        if "lora_b" not in self:
            return y
        back, out = self.lora_b.swapaxes(-1, -2), self.lora_a.swapaxes(-1, -2)
        return self._plus(y, self.dropout(x), back, out)


def _shape(layer: nn.Module) -> tuple[int, int]:
    """Rows and columns of a layer's weights; packed ones tell less than their scales."""
    if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
        rows, groups = layer.scales.shape
        return rows, groups * layer.group_size
    rows, columns = _decoded(layer).shape  # nothing is computed for it
    return rows, columns


def _decoded(layer: nn.Module) -> mx.array:
    if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
        grid = (layer.scales, layer.get("biases"), layer.group_size, layer.bits, layer.mode)
        return mx.dequantize(layer.weight, *grid)
    return layer.weight if isinstance(layer, nn.Linear | nn.Embedding) else layer.dense()


def slot_of(layer: nn.Module) -> Slot | None:
    """The slot that a layer is, or a new one around it; ``None`` for kinds that take none."""
    if isinstance(layer, Slot):
        return layer
    if isinstance(layer, nn.Embedding | nn.QuantizedEmbedding | LowBitEmbedding):
        return LoRAEmbedding(layer)
    if isinstance(layer, nn.Linear | nn.QuantizedLinear | LowBit):
        return LoRALinear(layer)
    return None
