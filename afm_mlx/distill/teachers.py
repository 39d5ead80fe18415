"""White-box teachers: any mlx-lm model, or a committee of several, giving logits and states.

A model is split into its trunk (ids to hidden states) and its head (hidden states to logits),
so that logits are made for a few rows at a time. Where a class hides the two, which a probe
finds out, whole logits are used.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from afm_mlx import checkpoint, hub
from afm_mlx.data.packing import Batch, PackedCache
from afm_mlx.errors import InputError, ModelError, first_line
from afm_mlx.losses import log_softmax
from afm_mlx.model import Model
from afm_mlx.tokenizer import Tokenizer

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model

PROBE = [0, 1, 2]
"""Tokens that every vocabulary has."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """A model to learn from.

    Attributes:
        trunk: (ids ``[B, L]``, cache) to what ``head`` takes, ``[B, L, D]``.
        head: ``[N, D]`` to logits ``[N, V]``; no other function of the model is run on rows.
    """

    name: str
    model: Any
    tokenizer: Tokenizer
    trunk: Callable[[mx.array, Any], mx.array]
    head: Callable[[mx.array], mx.array]

    @cached_property
    def fingerprint(self) -> str:
        """Tells models apart by what they say, on one machine."""
        logits = self.head(self.trunk(mx.array([PROBE]), None)[0]).astype(mx.float32)
        rounded = np.round(np.array(logits), 2) + 0.0  # no -0
        return hashlib.sha256(
            f"{self.name}{rounded.shape}".encode() + rounded.tobytes()
        ).hexdigest()

    def states(self, batch: Batch, seen: list[mx.array] | None = None) -> mx.array:
        """What the head takes, ``[B, L, D]``; the input of each block is appended to ``seen``."""
        if isinstance(self.model, Model):
            return self._states(batch.tokens, batch.segments, seen)
        # mlx-lm's gemma takes no mask that differs between the rows of a batch.
        found: list[mx.array] = []
        rows: list[list[mx.array]] = []
        for i in range(len(batch.tokens)):
            rows.append([])
            at = slice(i, i + 1)
            into = None if seen is None else rows[-1]
            found.append(self._states(batch.tokens[at], batch.segments[at], into))
        if seen is not None:
            seen += [mx.concatenate(list(layer)) for layer in zip(*rows, strict=True)]
        return mx.concatenate(found)

    def _states(self, tokens: Any, segments: Any, seen: list[mx.array] | None) -> mx.array:
        cache = [PackedCache(segments)] * len(self.model.layers)
        if seen is None:
            return mx.stop_gradient(self.trunk(mx.array(tokens), cache))
        inner = self.model.model
        layers = inner.layers
        inner.layers = [_Recorder(layer, seen) for layer in layers]
        try:
            return mx.stop_gradient(self.trunk(mx.array(tokens), cache))
        finally:
            inner.layers = layers

    @cached_property
    def width(self) -> int:
        """How many logits there are; some models pad their vocabulary."""
        return self.head(self.trunk(mx.array([PROBE]), None)[0]).shape[-1]

    def head_only(self) -> "Teacher":
        """The same teacher without its trunk, whose memory is free then."""
        return replace(self, model=None, trunk=_gone)


def _gone(*_: Any) -> mx.array:
    raise RuntimeError("this teacher was let go; only its head is left")


class _Recorder:
    """A block that notes what goes into it."""

    def __init__(self, layer: Any, seen: list[mx.array]) -> None:
        self._layer, self._seen = layer, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __call__(self, h: mx.array, *arguments: Any, **named: Any) -> Any:
        self._seen.append(h)
        return self._layer(h, *arguments, **named)


def load(source: str | None) -> Teacher:
    """A teacher from the embedded default, a folder, a GGUF file or the Hub.

    Types that this package has no class for, and quantised models, run in mlx-lm's classes.

    Raises:
        ModelError: nothing readable there; the message says what to do.
    """
    path = hub.resolve(source)
    if path.is_file() or _is_ours(path):
        loaded = checkpoint.load(source)
        return wrap(loaded.name, loaded.model, loaded.tokenizer)
    try:
        model, config = load_model(path)
    except Exception as error:  # whatever mlx-lm raises for a type or file it cannot read
        raise ModelError(
            f"mlx-lm cannot load the teacher in {path} ({first_line(error)}): choose another one"
        ) from error
    tokenizer = Tokenizer.load(path, config.get("eos_token_id"))
    return wrap(str(source), model, tokenizer)


def _is_ours(path: Path) -> bool:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # the loader says what is wrong
    return config.get("model_type") in hub.MODEL_TYPES and "quantization" not in config


def wrap(name: str, model: Any, tokenizer: Tokenizer) -> Teacher:
    """A loaded model as a teacher; a probe of three tokens decides how its head is reached."""
    probe = mx.array([PROBE])
    whole = model(probe)
    inner = getattr(model, "model", None)
    table = getattr(inner, "embed_tokens", None)
    for head in (getattr(model, "lm_head", None), getattr(table, "as_linear", None)):
        if inner is None or head is None:
            continue
        made = head(inner(probe))
        if made.shape == whole.shape and mx.allclose(made, whole, rtol=1e-3, atol=1e-3).item():
            return Teacher(name, model, tokenizer, inner, head)
    return Teacher(name, model, tokenizer, model, lambda logits: logits)


@dataclass(frozen=True, eq=False)
class Committee:
    """Teachers of one vocabulary who vote with ``weights``; usually a single one."""

    teachers: tuple[Teacher, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        weights = self.weights or (1.0,) * len(self.teachers)
        if not self.teachers or len(weights) != len(self.teachers) or min(weights) <= 0:
            raise InputError("give one weight above 0 for each teacher")
        object.__setattr__(self, "weights", tuple(w / sum(weights) for w in weights))
        first, *others = (vocabulary(t.tokenizer) for t in self.teachers)
        if any(other != first for other in others):
            raise InputError(
                "these teachers have different vocabularies: teach with one at a time, or let"
                " them answer --prompts"
            )

    @property
    def name(self) -> str:
        return " + ".join(t.name for t in self.teachers)

    def states(self, batch: Batch) -> list[mx.array]:
        """For each member what its head takes, flat ``[B * L, D]``."""
        found = [t.states(batch) for t in self.teachers]
        return [s.reshape(-1, s.shape[-1]) for s in found]

    def heads_only(self) -> "Committee":
        """The same committee without its trunks, for states at hand."""
        return replace(self, teachers=tuple(t.head_only() for t in self.teachers))

    def log_probabilities(self, states: Sequence[mx.array], temperature: float = 1.0) -> mx.array:
        """Log of the members' mixed probabilities ``[N, V]`` for some rows of their states."""
        logs = [
            log_softmax(t.head(s).astype(mx.float32), temperature)
            for t, s in zip(self.teachers, states, strict=True)
        ]
        if len(logs) == 1:
            return logs[0]
        return mx.log(
            sum((w * mx.exp(x) for w, x in zip(self.weights, logs, strict=True)), mx.array(1e-30))
        )


def vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    """Tokens and their ids."""
    return tokenizer.backend.get_vocab(with_added_tokens=True)
