"""Whether training an adapter fits into memory, with the arithmetic.

Weights are counted as they lie there, and what a layer keeps for its gradients array by array:
frozen weights need none of it, the adapter's matrices need the input of every product. What is
alive beside is fitted to measured peaks.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from afm_mlx.adapters.data import Lessons
from afm_mlx.adapters.lora import compute_type
from afm_mlx.adapters.objective import ROWS, STATES, Answers
from afm_mlx.saves import weights_of
from afm_mlx.training import TrainingOptions

import mlx.core as mx
from mlx import nn

TIGHT, FULL = 0.75, 0.95
"""Shares of the memory at hand from which a run is tight, and from which it will not fit."""
# Numbers for each token, as multiples of the widths of stream, queries, FFN and attention scores:
# what a layer that learns keeps until its gradients are made (the stream twice, normed twice;
# queries, scaled, and what they read; gate, up and product), and what else is alive in the one
# that is at work. Keys and values come on top.
_KEPT = (4, 3, 3, 1)
_AT_WORK = (2, 0, 6, 7)
_LOGITS = 6
"""Arrays of the size of the logits of :data:`ROWS` positions at the peak."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of training by purpose, and bytes that MLX may use in all."""

    parts: dict[str, int]
    available: int

    @property
    def needed(self) -> int:
        return sum(self.parts.values())

    @property
    def verdict(self) -> str:
        """``fits``, ``tight`` or ``will not fit``."""
        share = self.needed / self.available
        return "fits" if share < TIGHT else "tight" if share < FULL else "will not fit"

    @property
    def advice(self) -> str:
        """What to do if it does not fit."""
        if self.verdict == "fits":
            return ""
        return "set micro_batch 1 or gradient_checkpointing, or lower window, rank or num_layers"


def available() -> int:
    """Bytes that MLX may use: of the GPU's working set, or of the system's memory."""
    if mx.default_device() != mx.cpu:
        info = mx.device_info()
        for name in ("max_recommended_working_set_size", "free_memory", "memory_size"):
            size = info.get(name)
            if isinstance(size, int) and size:
                return size
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text("ascii"))
    except OSError:  # no Linux
        found = None
    if found:
        return int(found[1]) * 1024 + mx.get_active_memory()
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def estimate(answers: Answers, training: TrainingOptions, lessons: Lessons, windows: int) -> Memory:
    """Memory that training will take.

    Args:
        windows: how many this process has in a step, before micro-batches.
    """
    model, args, window = answers.model, answers.model.args, lessons.report.window
    learnt = sum(w.size for w in weights_of(model).values())
    size = compute_type(model).size
    rows = min(training.micro_batch or windows, windows)
    queries, scores = args.num_attention_heads * args.head_dim, args.num_attention_heads * window
    keys = 2 * args.num_key_value_heads * args.head_dim
    layers = [
        keys + _dot(_KEPT, args.hidden_size, queries, width, scores)
        for width in args.ffn_sizes[answers.first :]
    ]
    at_work = _dot(_AT_WORK, args.hidden_size, queries, max(args.ffn_sizes), scores)
    if training.gradient_checkpointing:
        at_work, layers = at_work + max(layers), [args.hidden_size] * len(layers)
    all_windows = len(lessons.train) + (len(lessons.held_out) if lessons.held_out else 0)
    states = all_windows * window * args.hidden_size * size
    head = model.model.embed_tokens if args.tie_word_embeddings else model.lm_head
    decoded = not isinstance(head, nn.Embedding | nn.Linear)
    return Memory(
        {
            "weights": held(model) - 4 * learnt,
            "adapter": learnt * (16 + 4 * (rows < windows)),
            "activations": rows * window * (sum(layers) + at_work) * size,
            "logits": args.vocab_size * (_LOGITS * ROWS * 4 + decoded * args.hidden_size * size),
            "frozen states": min(states, STATES) if answers.first else 0,
        },
        available(),
    )


def _dot(factors: tuple[int, ...], *sizes: int) -> int:
    return sum(f * s for f, s in zip(factors, sizes, strict=True))


def held(model: nn.Module) -> int:
    """Bytes of all arrays of a model, dense copies of low-bit layers too."""
    arrays = [x for m in model.modules() for x in m.values() if isinstance(x, mx.array)]
    return sum(x.nbytes for x in {id(x): x for x in arrays}.values())
