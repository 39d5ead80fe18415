"""Layers that run palettised weights, and the embedding with 8 bits and a scale per row.

A layer computes in one of three ways, chosen when a model is made ready (:func:`make_ready`):
from a dense copy of its weights (CPU, where that fits under a cap), by a kernel that decodes the
weights on the fly (GPUs, few rows), or by decoding them first (everything else).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from afm_mlx.errors import InputError, first_line
from afm_mlx.quant import kernels
from afm_mlx.quant.affine import Affine
from afm_mlx.quant.kernel_source import MOST_VECTORS
from afm_mlx.quant.learning import Codes, LearntNorm, learnt_weight
from afm_mlx.quant.palette import GROUP_SIZE, Palettized
from afm_mlx.quant.planes import PLANES, WORD, look_up, pack, unpack

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRALinear

Array = np.ndarray[Any, Any]

_INT8_GROUP = 64  # columns in a group when MLX's quantised product runs an int8 table


class PalettizedLinear(nn.Module):
    """``y = scales * (x @ lut[codes].T)``; inputs ``[..., K]``, outputs ``[..., N]``.

    Attributes:
        weight, weight_high: bit planes of the codes (:mod:`afm_mlx.quant.planes`), the second
            one for 3 and 6 bits only.
        lut: ``[N / group_size, 2^bits]``.
        scales: ``[N]``.
    """

    def __init__(
        self, input_dims: int, output_dims: int, bits: int, group_size: int = GROUP_SIZE
    ) -> None:
        super().__init__()
        self.bits, self.group_size = bits, group_size
        self.input_dims, self.output_dims = input_dims, output_dims
        low, *high = PLANES[bits]
        self.weight = mx.zeros((output_dims, input_dims * low // WORD), mx.uint32)
        if high:
            self.weight_high = mx.zeros((output_dims, input_dims * high[0] // WORD), mx.uint32)
        self.lut = mx.zeros((output_dims // group_size, 2**bits), mx.float16)
        self.scales = mx.ones((output_dims,), mx.float16)
        self._dense: mx.array | None = None
        self._codes: Codes | None = None
        self.freeze()

    @classmethod
    def of(cls, palettized: Palettized) -> "PalettizedLinear":
        """The layer of a palettised matrix."""
        rows, columns = palettized.codes.shape
        layer = cls(columns, rows, palettized.bits, rows // len(palettized.lut))
        low, *high = pack(palettized.codes, palettized.bits)
        layer.weight = mx.array(low)
        if high:
            layer.weight_high = mx.array(high[0])
        layer.lut, layer.scales = mx.array(palettized.lut), mx.array(palettized.scales)
        return layer

    @property
    def planes(self) -> list[mx.array]:
        return [self.weight, self.weight_high] if "weight_high" in self else [self.weight]

    @property
    def codes(self) -> mx.array:
        """Indices of the tables, uint32 ``[N, K]``."""
        return unpack(self.planes, self.bits)

    def dense(self) -> mx.array:
        """The weights ``[N, K]`` in the tables' type."""
        return look_up(self.codes, self.lut) * self.scales[:, None]

    def hold_dense(self, held: bool) -> None:
        """Keep a dense copy of the weights to compute with, or drop it."""
        self._dense = self.dense() if held else None

    def learn_tables(self) -> None:
        """Let training change tables and row scales; which entry each weight has stays.

        Scales learn as factors ``gain``: an optimiser's steps are alike for all numbers, and
        scales are a hundred times smaller than the entries, which lie around 1.
        """
        self._dense, self._codes = None, Codes.of(self.codes, len(self.lut), self.bits)
        self.gain = mx.ones(self.scales.shape)
        self.unfreeze(keys=["lut", "gain"], recurse=False)

    def settle(self) -> None:
        """End :meth:`learn_tables`."""
        self._codes = None
        self.scales = (self.scales * self.pop("gain")).astype(self.scales.dtype)
        self.freeze()

    def __call__(self, x: mx.array) -> mx.array:
        if self._codes is not None:
            weight: Any = learnt_weight
            dense = weight(self.lut, self.scales * self.gain, *self._codes)
            return x @ dense.T.astype(x.dtype)
        if self._dense is not None:
            return x @ self._dense.T
        rows = x.size // self.input_dims
        few = rows <= MOST_VECTORS and kernels.usable(self.bits, x.dtype)
        product = _product(self.bits, self.group_size, few)
        y = product(x.reshape(rows, self.input_dims), self.lut, *self.planes)
        return (y * self.scales.astype(y.dtype)).reshape(*x.shape[:-1], self.output_dims)

    def to_lora(self, r: int = 8, dropout: float = 0.0, scale: float = 20.0) -> LoRALinear:
        """mlx-lm's LoRA layer on top of this one, which stays as it is."""
        lora = LoRALinear(self.input_dims, self.output_dims, r, dropout, scale)
        lora.linear = self
        return lora


@lru_cache(maxsize=64)
def _product(bits: int, group_size: int, by_kernel: bool) -> Callable[..., mx.array]:
    """``x [M, K] @ lut[codes].T``, differentiable in ``x``."""

    @mx.custom_function
    def product(x: mx.array, lut: mx.array, *planes: mx.array) -> mx.array:
        if by_kernel:
            return kernels.matmul(x, planes, lut, bits, group_size)
        return x @ _decoded(planes, lut, bits, group_size, x.dtype).T

    @product.vjp
    def _vjp(primals: tuple[mx.array, ...], cotangent: mx.array, _: mx.array) -> tuple[Any, ...]:
        _, lut, *planes = primals
        back = cotangent @ _decoded(planes, lut, bits, group_size, cotangent.dtype)
        return (back, *map(mx.zeros_like, (lut, *planes)))

    found: Any = product
    return found


def _decoded(planes: Any, lut: mx.array, bits: int, group_size: int, dtype: mx.Dtype) -> mx.array:
    if kernels.usable(bits, dtype):
        return kernels.dequantize(planes, lut, bits, group_size, dtype)
    return look_up(unpack(planes, bits), lut.astype(dtype))


class RowwiseEmbedding(nn.Module):
    """Token embeddings of 8 bits with a scale for each row; the output table too if tied.

    Attributes:
        weight: codes from 1 to 255, 128 being 0, four in a word: uint32 ``[V, D / 4]``. So MLX's
            own quantised product reads the same array.
        scales: ``[V]``.
    """

    def __init__(self, num_embeddings: int, dims: int) -> None:
        super().__init__()
        self.weight = mx.zeros((num_embeddings, dims // 4), mx.uint32)
        self.scales = mx.ones((num_embeddings,), mx.float16)
        self._dense: mx.array | None = None
        self._grid: tuple[mx.array, mx.array] | None = None
        self.freeze()

    @classmethod
    def of(cls, weight: Array) -> "RowwiseEmbedding":
        """Round a float32 table ``[V, D]``: 127 steps to the largest magnitude of each row."""
        layer = cls(*weight.shape)
        scales = (np.abs(weight).max(1) / 127).astype(np.float16)
        scales = np.where(scales > 0, scales, np.float16(1))
        codes = np.clip(np.rint(weight / scales.astype(np.float32)[:, None]), -127, 127) + 128
        layer.weight = mx.array(np.ascontiguousarray(codes.astype(np.uint8)).view(np.uint32))
        layer.scales = mx.array(scales)
        return layer

    def _decoded(self, words: mx.array, scales: mx.array) -> mx.array:
        return (words.view(mx.uint8).astype(scales.dtype) - 128) * scales[..., None]

    def dense(self) -> mx.array:
        """The table ``[V, D]`` in the scales' type."""
        return self._decoded(self.weight, self.scales) if self._dense is None else self._dense

    def hold_dense(self, held: bool) -> None:
        """Keep a dense copy of the table to compute with, or drop it."""
        self._dense = None
        self._dense = self.dense() if held else None

    def hold_grid(self, held: bool) -> None:
        """Let MLX's quantised product make the logits; every group of a row has its scale."""
        rows, columns = len(self.weight), 4 * self.weight.shape[1]
        self._grid = None
        if held and columns % _INT8_GROUP == 0:
            scales = mx.broadcast_to(self.scales[:, None], (rows, columns // _INT8_GROUP))
            self._grid = (mx.contiguous(scales), mx.contiguous(-128 * scales))

    def __call__(self, tokens: mx.array) -> mx.array:
        return self._decoded(self.weight[tokens], self.scales[tokens])

    def as_linear(self, x: mx.array) -> mx.array:
        """Logits ``[..., V]`` of hidden states ``[..., D]``."""
        if self._grid is None:
            return x @ self.dense().T.astype(x.dtype)
        return mx.quantized_matmul(x, self.weight, *self._grid, True, _INT8_GROUP, 8)


class AffineLinear(nn.QuantizedLinear):
    """MLX's quantised layer, which can compute from a dense copy and train its scales.

    On the CPU ``mx.quantized_matmul`` takes as long for every row, a hundred times what a dense
    product takes for a prompt.
    """

    def __init__(self, layer: nn.QuantizedLinear) -> None:
        nn.Module.__init__(self)
        self.group_size, self.bits, self.mode = layer.group_size, layer.bits, layer.mode
        for name, value in layer.parameters().items():
            self[name] = value
        self._dense: mx.array | None = None
        self._codes: mx.array | None = None
        self.freeze()

    def dense(self) -> mx.array:
        """The weights ``[N, K]`` in the scales' type."""
        return mx.dequantize(self.weight, self.scales, self.biases, self.group_size, self.bits)

    def hold_dense(self, held: bool) -> None:
        """Keep a dense copy of the weights to compute with, or drop it."""
        self._dense = self.dense() if held else None

    def learn_tables(self) -> None:
        """Let training change scales and biases; the code of each weight stays.

        Both learn in units of the scales: as a factor ``gain`` and a number of steps ``shift``.
        """
        one, zero = mx.ones_like(self.scales), mx.zeros_like(self.scales)
        codes = mx.dequantize(self.weight, one, zero, self.group_size, self.bits)
        self._dense, self._codes = None, codes.astype(mx.uint8)
        self.gain, self.shift = mx.ones(self.scales.shape), mx.zeros(self.scales.shape)
        self.unfreeze(keys=["gain", "shift"], recurse=False)

    def _learnt(self) -> tuple[mx.array, mx.array]:
        """Scales and biases as they are learnt."""
        return self.scales * self.gain, self.biases + self.scales * self.shift

    def settle(self) -> None:
        """End :meth:`learn_tables`."""
        self._codes = None
        scales, biases = self._learnt()
        self["scales"], self["biases"] = (a.astype(self.biases.dtype) for a in (scales, biases))
        del self.gain, self.shift
        self.freeze()

    def __call__(self, x: mx.array) -> mx.array:
        if self._codes is not None:
            scales, biases = self._learnt()
            grouped = self._codes.reshape(*self.scales.shape, -1).astype(scales.dtype)
            weight = grouped * scales[..., None] + biases[..., None]
            return x @ weight.reshape(self._codes.shape).T.astype(x.dtype)
        return super().__call__(x) if self._dense is None else x @ self._dense.T

    def to_lora(self, r: int = 8, dropout: float = 0.0, scale: float = 20.0) -> LoRALinear:
        """mlx-lm's LoRA layer on top; its own way there miscounts the inputs of 3, 5 and 6 bits."""
        rows, groups = self.scales.shape
        lora = LoRALinear(groups * self.group_size, rows, r, dropout, scale)
        lora.linear = self
        return lora


# ---- models


def learn_tables(model: nn.Module) -> None:
    """Let training change all numbers of a model that cost no bits: tables and scales of its
    low-bit layers, and norms."""
    model.freeze()
    for _, layer in low_bit_layers(model):
        layer.learn_tables()
    norms = [(n, LearntNorm(m)) for n, m in model.named_modules() if type(m) is nn.RMSNorm]
    model.update_modules(tree_unflatten(norms))


def settle(model: nn.Module) -> None:
    """End :func:`learn_tables`; the layers can be saved then."""
    for _, layer in low_bit_layers(model):
        layer.settle()
    norms = [(n, m.settled()) for n, m in model.named_modules() if isinstance(m, LearntNorm)]
    model.update_modules(tree_unflatten(norms))


@dataclass(frozen=True)
class Layout:
    """What of a model is palettised; ``config.json`` keeps it under ``palettization``.

    Attributes:
        bits: width of each palettised layer by its dotted name.
        embedding: whether the embeddings have 8 bits.
    """

    bits: Mapping[str, int]
    group_size: int = GROUP_SIZE
    embedding: bool = True


def quantized_layer(quantized: Palettized | Affine) -> nn.Module:
    """The layer that runs a quantised matrix."""
    if isinstance(quantized, Palettized):
        return PalettizedLinear.of(quantized)
    rows, columns = quantized.codes.shape
    layer = nn.QuantizedLinear(columns, rows, False, quantized.group_size, quantized.bits)
    layer.weight = mx.array(quantized.packed())
    layer.scales, layer.biases = mx.array(quantized.scales), mx.array(quantized.biases)
    return layer


def configuration(model: nn.Module) -> dict[str, Any]:
    """What ``config.json`` says of a model's low-bit layers, palettes or MLX's own; often {}."""
    layers: list[tuple[str, Any]] = sorted(model.named_modules())
    palettes = {n: x for n, x in layers if isinstance(x, PalettizedLinear)}
    rowwise = any(isinstance(x, RowwiseEmbedding) for _, x in layers)
    if palettes or rowwise:
        group = next((x.group_size for x in palettes.values()), GROUP_SIZE)
        layout = Layout({n: x.bits for n, x in palettes.items()}, group, rowwise)
        return {"palettization": asdict(layout)}
    stock = {
        n: {"group_size": x.group_size, "bits": x.bits, "mode": x.mode}
        for n, x in layers
        if isinstance(x, nn.QuantizedLinear | nn.QuantizedEmbedding)
    }
    if not stock:
        return {}
    common = next(iter(stock.values()))
    return {"quantization": {**common, **stock}, "quantization_config": {**common, **stock}}


def shape_like(model: nn.Module, palettization: Mapping[str, Any]) -> nn.Module:
    """Put palettised layers in the place of dense ones, ready for ``load_weights``.

    Args:
        palettization: as :func:`configuration` gives it.

    Raises:
        InputError: it names layers that are not there, or is damaged.
    """
    layers: dict[str, Any] = dict(model.named_modules())
    made: list[tuple[str, nn.Module]] = []
    try:
        layout = Layout(**palettization)
        for name, bits in layout.bits.items():
            rows, columns = layers[name].weight.shape
            made.append((name, PalettizedLinear(columns, rows, bits, layout.group_size)))
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"config.json describes other palettes than the model has ({first_line(error)}):"
            " download it again"
        ) from error
    if layout.embedding:
        made += [
            (name, RowwiseEmbedding(*layer.weight.shape))
            for name, layer in layers.items()
            if isinstance(layer, nn.Embedding)
        ]
    model.update_modules(tree_unflatten(made))
    return model


def low_bit_layers(model: nn.Module) -> Iterator[tuple[str, PalettizedLinear | AffineLinear]]:
    """Low-bit linear layers of a model (after :func:`make_ready`) and their dotted names."""
    for name, layer in sorted(model.named_modules()):
        if isinstance(layer, PalettizedLinear | AffineLinear):
            yield name, layer


def _is_affine(layer: nn.Module) -> bool:
    stock = isinstance(layer, nn.QuantizedLinear) and "bias" not in layer
    return stock and layer.mode == "affine"


def set_dtype(model: nn.Module, dtype: mx.Dtype) -> None:
    """Compute in ``dtype``; tables stay float16 beside 16-bit types, which kernels read."""
    layers = [m for _, m in model.named_modules() if isinstance(m, PalettizedLinear)]
    tables = [(m.lut, m.scales) for m in layers]
    model.set_dtype(dtype)
    if dtype != mx.float32:
        for layer, (lut, scales) in zip(layers, tables, strict=True):
            layer.lut, layer.scales = lut, scales


def make_ready(model: nn.Module, dense_bytes: float) -> None:
    """Choose how each layer computes here.

    Args:
        dense_bytes: memory for dense copies on the CPU; layers beyond it decode their weights
            every time. GPUs need none.
    """
    on_cpu = mx.default_device() == mx.cpu
    norms = (m.weight.dtype for _, m in model.named_modules() if isinstance(m, nn.RMSNorm))
    dtype = next(norms, mx.float16)
    left = dense_bytes if on_cpu else 0.0
    made: list[tuple[str, nn.Module]] = []
    for name, layer in sorted(model.named_modules()):
        if isinstance(layer, PalettizedLinear):
            size = layer.input_dims * layer.output_dims * layer.lut.itemsize
            layer.hold_dense(size <= left)
            kernels.usable(layer.bits, dtype)  # tried now, not within the first answer
        elif isinstance(layer, RowwiseEmbedding):
            size = 4 * layer.weight.size * layer.scales.itemsize
            layer.hold_dense(size <= left)
            layer.hold_grid(not on_cpu)
        elif _is_affine(layer):
            size = layer.weight.size * 32 // layer.bits * layer.scales.itemsize
            ours = layer if isinstance(layer, AffineLinear) else AffineLinear(layer)
            ours.hold_dense(size <= left)
            made.append((name, ours))
        else:
            continue
        left -= size if size <= left else 0
    if made:
        model.update_modules(tree_unflatten(made))
