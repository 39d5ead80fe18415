"""The likeliest next tokens of two models after one text, as bars of text beside each other.

A run's events say nothing of tokens, so the saved models are loaded, one after the other, each by
an engine of its own.
"""

import asyncio
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from afm_mlx.checkpoint import Checkpoint
from afm_mlx.engine import Engine
from afm_mlx.errors import InputError
from afm_mlx.generation import Request, Writer, read_prompt
from afm_mlx.prefixes import PrefixCache

from rich.cells import cell_len, set_cell_size

COUNT = 5
"""Tokens of each model."""
TEXT = "The sea is salty because"


@dataclass(frozen=True)
class Next:
    """A token that may follow, and how likely it is."""

    token: str
    probability: float


async def likeliest(source: str | None, text: str, count: int = COUNT) -> list[Next]:
    """The likeliest tokens of a model after ``text``.

    Raises:
        AFMError: the model cannot be loaded, or the text is empty.
    """
    if not text:
        raise InputError("there is no text for the models to go on with: type some")
    engine = Engine.open(source)
    try:
        return await asyncio.wrap_future(engine.call(lambda base: _likeliest(base, text, count)))
    finally:
        await asyncio.to_thread(engine.close)


def _likeliest(base: Checkpoint, text: str, count: int) -> list[Next]:
    request = Request(base.tokenizer.encode(text))
    logits, _ = read_prompt(
        base.model, request, Writer(base.tokenizer, request), PrefixCache(budget=0)
    )
    assert logits is not None  # nobody cancels it
    found = top(cast(list[float], logits.tolist()), count)
    return [Next(base.tokenizer.decode([i]), p) for i, p in found]


def top(logits: Sequence[float], count: int) -> list[tuple[int, float]]:
    """Places and probabilities of the ``count`` largest logits."""
    largest = max(logits)
    total = math.fsum(math.exp(x - largest) for x in logits)
    places = heapq.nlargest(count, range(len(logits)), key=logits.__getitem__)
    return [(i, math.exp(logits[i] - largest) / total) for i in places]


def bars(models: Sequence[tuple[str, Sequence[Next]]], width: int) -> list[str]:
    """The models beside each other, a token a line: its text, a bar, its probability."""
    column = max((width - 2 * (len(models) - 1)) // max(len(models), 1), 16)
    lines = ["  ".join(set_cell_size(name, column) for name, _ in models)]
    for row in range(max((len(tokens) for _, tokens in models), default=0)):
        cells = [_bar(tokens[row], column) if row < len(tokens) else "" for _, tokens in models]
        lines.append("  ".join(set_cell_size(cell, column) for cell in cells))
    return [line.rstrip() for line in lines]


def _bar(token: Next, width: int) -> str:
    name = set_cell_size(repr(token.token), max(width // 3, 8))
    room = width - cell_len(name) - 6
    filled = round(token.probability * room)
    return f"{name} {'█' * filled}{'·' * (room - filled)} {token.probability:.2f}"
