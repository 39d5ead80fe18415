"""Text that a model is calibrated on: the product's own kinds of text, or yours."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afm_mlx.data.packing import Batch, Windows, join
from afm_mlx.data.sources import Source, read
from afm_mlx.data.tokens import cache_key, tokenize
from afm_mlx.errors import InputError
from afm_mlx.tokenizer import Tokenizer

import numpy as np

Array = np.ndarray[Any, Any]

SHIPPED = Path(__file__).parent / "text" / "calibration.jsonl"
"""Requests and answers of the features, chats, and encyclopedia text."""


@dataclass(frozen=True)
class CalibrationOptions:
    """What the model is calibrated on."""

    data: tuple[str, ...] = ()
    """JSONL, text files or folders; the text that comes along if left out."""
    tokens: int = 32_768
    """Tokens taken from them, about."""
    window: int = 512
    """Tokens that are read at a time."""
    seed: int = 0
    """Which of the text is taken."""

    def __post_init__(self) -> None:
        if self.tokens < self.window or self.window < 2:
            raise InputError(
                f"{self.tokens} tokens hold no window of {self.window}: give more tokens"
            )
        if self.seed < 0:
            raise InputError(f"seed must not be below 0: {self.seed}")

    @property
    def sources(self) -> tuple[str, ...]:
        return self.data or (str(SHIPPED),)

    def order(self, numbers: Array) -> Array:
        """The windows of these numbers in the order in which they are taken."""
        return np.random.default_rng(self.seed).permutation(numbers)

    @property
    def count(self) -> int:
        """How many windows are taken."""
        return max(self.tokens // self.window, 1)

    def left_out(self, numbers: Array) -> Array:
        """Those of a source's windows that are not taken."""
        return self.order(numbers)[self.count :]


def windows(
    options: CalibrationOptions, tokenizer: Tokenizer, folder: Path
) -> tuple[str, list[Batch]]:
    """A name for the text as it is used, and batches of one window.

    Args:
        folder: tokens are kept there.

    Raises:
        InputError: a file cannot be used.
    """
    sources: Sequence[Source] = [Source.parse(d) for d in options.sources]
    keys, parts = [], []
    for source in sources:
        keys.append(cache_key(tokenizer, [source]))
        store = tokenize(read(source), tokenizer, folder / "tokens", keys[-1])
        parts.append(Windows.of(store, options.window))
    whole = join(parts)
    taken = options.order(np.concatenate(whole.numbers))[: options.count]
    return " ".join([*keys, repr(replace(options, data=()))]), [whole.batch([n]) for n in taken]
