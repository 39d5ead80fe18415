"""Perplexity of a model on windows of a text file, as an import check.

uv run python tests/bench/perplexity.py FILE [--model MODEL] [--windows 64] [--size 256]

The text is tokenised whole; the first ``windows`` windows of ``size`` tokens follow each other
without overlap, and in each the tokens 1 to ``size - 1`` are predicted from those before them.
The blanks of WikiText's own tokenisation (`` @-@ `` and the like) are undone first.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from afm_mlx import load

import mlx.core as mx
import numpy as np
import tyro
from tyro.conf import Positional


@dataclass(frozen=True)
class Options:
    file: Positional[Path]
    model: str | None = None
    windows: int = 64
    size: int = 256


def clean(text: str) -> str:
    for mark, plain in ((" <unk> ", " "), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")):
        text = text.replace(mark, plain)
    return text


def main(options: Options) -> None:
    checkpoint = load(options.model, dtype=mx.float32)
    tokens = checkpoint.tokenizer.encode(clean(options.file.read_text("utf-8")))
    total = 0.0
    for start in range(0, options.windows * options.size, options.size):
        window = tokens[start : start + options.size]
        logits = np.array(checkpoint.model(mx.array([window[:-1]]))[0], np.float64)
        peak = logits.max(-1)
        # In float64: over 49,152 numbers mx.logsumexp is 1.4e-4 too small.
        norm = np.log(np.exp(logits - peak[:, None]).sum(-1)) + peak
        total += (norm - logits[np.arange(len(window) - 1), window[1:]]).sum()
    mean = total / (options.windows * (options.size - 1))
    print(f"{checkpoint.name}: NLL {mean:.6f}, perplexity {math.exp(mean):.4f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
