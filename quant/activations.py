"""What 8-bit activations would cost: inputs of linear layers rounded and given back as floats.

Each token gets a scale of its own, its largest magnitude, found as it comes (dynamic, symmetric,
per token). Nothing gets smaller or faster by it: it shows, and lets training get used to, the
error of hardware that multiplies integers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.quant.layers import PalettizedLinear

import mlx.core as mx
from mlx import nn
from mlx_lm.tuner.lora import LoRALinear

LINEAR = (nn.Linear, nn.QuantizedLinear, PalettizedLinear, LoRALinear)


def fake_quantize(x: mx.array, bits: int = 8) -> mx.array:
    """Round each row of the last axis to ``2^bits - 1`` values, evenly spaced about 0.

    Gradients pass as if nothing were rounded: the scale is the largest magnitude, so no number
    lies outside the range.

    Args:
        x: ``[..., D]`` of any floating-point type, which the result has too.

    Raises:
        InputError: ``bits`` is not between 2 and 16.
    """
    return _rounding(bits)(x)


@lru_cache(maxsize=16)
def _rounding(bits: int) -> Callable[[mx.array], mx.array]:
    if not 2 <= bits <= 16:
        raise InputError("activations can have 2 to 16 bits")
    levels = 2 ** (bits - 1) - 1

    @mx.custom_function
    def rounded(x: mx.array) -> mx.array:
        wide = x.astype(mx.float32)
        scale = mx.max(mx.abs(wide), axis=-1, keepdims=True) / levels
        scale = mx.where(scale == 0, 1.0, scale)  # a token of nothing, or next to nothing
        return (mx.round(wide / scale) * scale).astype(x.dtype)

    @rounded.vjp
    def _vjp(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        return cotangent

    found: Any = rounded
    return found


@contextmanager
def quantized_inputs(model: nn.Module, bits: int = 8) -> Iterator[None]:
    """Within it, all linear layers of the model's blocks read rounded inputs; the head does not.

    A layer stays the same object under the same name, of a class derived from its own, so
    training, saving and adapters see no difference. In a layer with an adapter both parts read
    rounded inputs; rounding twice is rounding once.

    Args:
        model: has ``layers``, as mlx-lm's models do.
    """
    fake_quantize(mx.zeros((1,)), bits)  # a bad width is reported before anything changes
    layers = [x for block in model.layers for x in block.modules() if isinstance(x, LINEAR)]
    kinds: list[Any] = [type(layer) for layer in layers]
    for layer, kind in zip(layers, kinds, strict=True):
        layer.__class__ = _reading_rounded(kind, bits)
    try:
        yield
    finally:
        for layer, kind in zip(layers, kinds, strict=True):
            layer.__class__ = kind


@lru_cache(maxsize=16)
def _reading_rounded(kind: Any, bits: int) -> Any:
    def call(self: Any, x: mx.array) -> mx.array:
        return kind.__call__(self, fake_quantize(x, bits))

    return type(kind.__name__, (kind,), {"__call__": call})
