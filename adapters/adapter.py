"""What an adapter is: its matrices under mlx-lm's names, their options, and what is known of it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from afm_mlx.errors import InputError

import mlx.core as mx

LEAVES = ("lora_a", "lora_b", "m")
"""Names of an adapter's matrices within a layer; ``m`` is DoRA's."""


@dataclass(frozen=True)
class LoRAOptions:
    """Shape of an adapter; the numbers have the meanings of mlx-lm."""

    rank: int = 16
    """Rank of each pair of matrices."""
    scale: float = 2.0
    """What their product is multiplied by."""
    dropout: float = 0.0
    """Share of the inputs that training leaves out."""
    keys: tuple[str, ...] = ()
    """Layers by their names in a block, such as self_attn.q_proj; all linear ones if left out."""
    num_layers: int = -1
    """How many of the last blocks have it; -1 is all."""
    rank_stabilised: bool = False
    """Divide the scale by the root of the rank, so that high ranks learn as fast."""
    dora: bool = False
    """Learn the length of each row of the weights too."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.scale < 1e4:
            raise InputError("rank must be at least 1, and scale above 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is a share below 1, not {self.dropout}")
        if self.num_layers < -1 or self.num_layers == 0:
            raise InputError("num_layers counts the blocks with an adapter, -1 is all")

    @property
    def multiplier(self) -> float:
        """What the product is multiplied by in the end (arXiv 2312.03732 if rank-stabilised)."""
        return self.scale / math.sqrt(self.rank) if self.rank_stabilised else self.scale


@dataclass(frozen=True)
class About:
    """Where an adapter comes from.

    Attributes:
        feature: name of the feature that it was made for.
        base_signature: of the model that it belongs to (:func:`afm_mlx.checkpoint.signature`).
        data_hash: of what it was trained on.
        metrics: figures on held-out data.
        licence: as the Hub names it.
    """

    feature: str = ""
    base_signature: str = ""
    data_hash: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    licence: str = ""


class Matrices(NamedTuple):
    """What one layer gets: ``[K, r]``, ``[r, N]``, and DoRA's lengths of rows ``[N]``."""

    lora_a: mx.array
    lora_b: mx.array
    m: mx.array | None = None


@dataclass(frozen=True, eq=False)
class Adapter:
    """A set of low-rank changes to one model.

    Attributes:
        weights: by name, such as ``model.layers.0.self_attn.q_proj.lora_a``.
    """

    name: str
    weights: Mapping[str, mx.array]
    options: LoRAOptions
    about: About = About()

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices."""
        return sum(w.nbytes for w in self.weights.values())

    @cached_property
    def places(self) -> dict[str, Matrices]:
        """Matrices by the dotted name of their layer.

        Raises:
            InputError: there are others than an adapter has, or one of a pair is missing, or they
                are not of one rank.
        """
        found: dict[str, dict[str, mx.array]] = {}
        for name, weight in self.weights.items():
            place, _, leaf = name.rpartition(".")
            found.setdefault(place, {})[leaf] = weight
        wanted = set(LEAVES if self.options.dora else LEAVES[:2])
        places = {}
        for place, leaves in found.items():
            if set(leaves) != wanted:
                raise InputError(
                    f"adapter {self.name} has {_listed(leaves)} at {place or 'its root'}, not"
                    f" {_listed(wanted)}: it is damaged, or no {_kind(self.options)} adapter"
                )
            if any(leaf.ndim != (1 if name == "m" else 2) for name, leaf in leaves.items()):
                raise InputError(
                    f"adapter {self.name} has matrices of another form at {place}: it is damaged"
                )
            places[place] = made = Matrices(**leaves)
            ranks = (made.lora_a.shape[1], made.lora_b.shape[0])
            if ranks != (self.options.rank,) * 2:
                raise InputError(
                    f"adapter {self.name} says rank {self.options.rank} and has"
                    f" {made.lora_a.shape} by {made.lora_b.shape} at {place}: train it again"
                )
        return places


def _kind(options: LoRAOptions) -> str:
    return "DoRA" if options.dora else "LoRA"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
