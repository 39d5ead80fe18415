"""KV cache with fewer bits: keys and values rounded in groups within each head, token by token.

8 bits for both cost next to nothing in quality, 4 bits for the values alone little; keys want 8.
The format is that of ``mx.quantize``. Differences from mlx-lm's quantised cache: keys and values
have widths of their own, and widths that do not divide 32 work. Attention over it is
:func:`afm_mlx.ops.attention`, which chooses how to read it by device and number of queries.
"""

from dataclasses import dataclass
from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.model import Model

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_reduce
from mlx_lm.models.cache import QuantizedKVCache

NONE = 16
"""Bits that leave keys or values as they are, whatever type the model computes in."""
WIDTHS = (2, 3, 4, 5, 6, 8, NONE)
GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True)
class KVOptions:
    """Bits of keys and values; 16 leaves them as they are.

    Attributes:
        group_size: numbers of a head with one scale and bias; smaller where a head is.
    """

    key_bits: int = 8
    value_bits: int = 8
    group_size: int = 64

    def __post_init__(self) -> None:
        if self.key_bits not in WIDTHS or self.value_bits not in WIDTHS:
            raise InputError(f"keys and values have {_listed(WIDTHS)} bits: 8 for both, or 8 and 4")
        if self.group_size not in GROUP_SIZES:
            raise InputError(f"group_size of a KV cache must be {_listed(GROUP_SIZES)}")

    @classmethod
    def parse(cls, text: str) -> "KVOptions":
        """Options written as ``8``, or as ``8/4`` for keys and values."""
        keys, _, values = text.partition("/")
        try:
            return cls(int(keys), int(values or keys))
        except ValueError as error:
            raise InputError(f"{text!r} is no width of a KV cache: write 16, 8 or 8/4") from error

    def group_in(self, head_dim: int) -> int:
        """The largest group that divides a head."""
        for size in GROUP_SIZES:
            if size <= self.group_size and head_dim % size == 0:
                return size
        raise InputError(
            f"a KV cache with fewer bits needs heads of a multiple of {GROUP_SIZES[-1]} numbers,"
            f" this model's have {head_dim}: leave it at {NONE} bits"
        )


def make_cache(model: Model, options: KVOptions | None = None) -> list[Any]:
    """An empty cache for each layer that owns keys and values.

    Raises:
        InputError: the heads are of a size that cannot be quantised.
    """
    if options is None or options.key_bits == options.value_bits == NONE:
        return model.make_cache()
    group_size = options.group_in(model.args.head_dim)
    return [
        QuantizedCache(options.key_bits, options.value_bits, group_size) for _ in model.make_cache()
    ]


class QuantizedCache(QuantizedKVCache):
    """mlx-lm's quantised cache with a width for keys and one for values.

    Attributes:
        keys, values: codes, scales and biases ``[B, heads, room, ...]``, or the plain array
            where nothing is to be rounded; room grows by ``step`` positions at a time.
        bits: width of the keys.
    """

    offset: int
    group_size: int
    bits: int

    def __init__(self, key_bits: int, value_bits: int, group_size: int) -> None:
        super().__init__(group_size, key_bits)
        self.value_bits = value_bits

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """Add keys and values ``[B, heads, L, head_dim]``; all there are now."""
        start, end = self.offset, self.offset + keys.shape[2]
        new = (self._rounded(keys, self.bits), self._rounded(values, self.value_bits))
        if end > self._room():
            self._grow(new, end - start)
        for whole, part in zip(_arrays((self.keys, self.values)), _arrays(new), strict=True):
            whole[..., start:end, :] = part
        self.offset = end
        return self.keys_and_values()

    def keys_and_values(self) -> Any:
        return tree_map(lambda x: x[..., : self.offset, :], (self.keys, self.values))

    def _rounded(self, x: mx.array, bits: int) -> Any:
        return x if bits == NONE else mx.quantize(x, group_size=self.group_size, bits=bits)

    def _room(self) -> int:
        return 0 if self.empty() else _arrays(self.keys)[0].shape[2]

    def _grow(self, new: Any, positions: int) -> None:
        """Make room for ``positions`` more of what is like ``new``."""
        steps = -(-positions // self.step) * self.step
        room = tree_map(lambda x: mx.zeros((*x.shape[:2], steps, x.shape[3]), x.dtype), new)
        if not self.empty():
            room = tree_map(lambda x, y: mx.concatenate([x, y], 2), self.keys_and_values(), room)
        self.keys, self.values = room

    def size(self) -> int:
        return self.offset

    @property
    def state(self) -> Any:
        widths = self.group_size, self.bits, self.value_bits
        return self.keys, self.values, self.offset, *widths

    @state.setter
    def state(self, state: Any) -> None:
        self.keys, self.values, self.offset, self.group_size, self.bits, self.value_bits = state

    @property
    def nbytes(self) -> int:
        """Bytes of all there is room for."""
        if self.empty():
            return 0
        return int(tree_reduce(lambda total, x: total + x.nbytes, (self.keys, self.values), 0))


def _arrays(tree: Any) -> list[mx.array]:
    found: Any = tree_flatten(tree)
    return [x for _, x in found]


def _listed(numbers: tuple[int, ...]) -> str:
    *most, last = map(str, sorted(numbers))
    return f"{', '.join(most)} or {last}"
