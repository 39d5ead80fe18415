"""Before a run begins: shapes, amounts, and whether it fits into memory, with the arithmetic."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from afm_mlx.distill.logits import cache_size
from afm_mlx.distill.recipe import Recipe
from afm_mlx.losses import CHUNK
from afm_mlx.model_args import ModelArgs

import mlx.core as mx

TIGHT, FULL = 0.75, 0.95
"""Shares of the memory at hand from which a run is tight, and from which it will not fit."""
# Numbers kept for each token and layer: in the residual stream, and in the FFN; attention
# weights count apart. Fitted to one measured peak: 2.24 GB for 94.7 M parameters and 2 x 256
# tokens in float32 on a CPU; this gives 2.21 GB.
_STREAM, _FFN, _SCORES = 6, 2, 1


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        before: the teacher's shape, if it is of this package's kind.
        memory: bytes by purpose, at the peak of training.
        available: bytes that this process may use.
        disk: bytes of the teacher's cached logits; 0 without a cache.
    """

    teacher: str
    teacher_parameters: int
    before: ModelArgs | None
    after: ModelArgs
    tokens: int
    train_windows: int
    epochs: float
    memory: dict[str, int]
    available: int
    disk: int

    @property
    def needed(self) -> int:
        return sum(self.memory.values())

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
        return (
            "lower micro_batch or window, set gradient_checkpointing, or choose a smaller student"
        )


def available_memory() -> int:
    """Bytes that MLX may still use: of the GPU's working set, or of the system's memory."""
    if mx.default_device() != mx.cpu:
        info = mx.device_info()
        for name in ("max_recommended_working_set_size", "free_memory", "memory_size"):
            size = info.get(name)
            if isinstance(size, int) and size:
                return size - mx.get_active_memory()
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text("ascii"))
    except OSError:  # no Linux
        found = None
    if found:
        return int(found[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory(
    recipe: Recipe, student: ModelArgs, teacher_bytes: int, world: int = 1
) -> dict[str, int]:
    """Bytes at the peak of training, by purpose."""
    training = recipe.training
    mixed = training.mixed_precision
    if mixed is None:
        mixed = mx.default_device() != mx.cpu
    size = 2 if mixed else 4
    parameters = student.num_parameters
    batch = -(-training.batch_size // world)
    rows = min(training.micro_batch or batch, batch)
    tokens = rows * recipe.data.window
    moments = 8 if training.optimizer == "adamw" else 5
    stream = _STREAM * student.hidden_size * student.num_hidden_layers
    inner = _FFN * sum(student.ffn_sizes)
    scores = _SCORES * student.num_attention_heads * recipe.data.window * student.num_hidden_layers
    if training.gradient_checkpointing:
        layers = student.num_hidden_layers
        stream = student.hidden_size * layers + stream // layers
        inner, scores = inner // layers, scores // layers
    live = recipe.loss.needs_teacher and not recipe.cache.top_k
    return {
        "weights": parameters * (4 + (2 if mixed else 0)),
        "gradients": parameters * (4 if rows == batch else 8),  # with the sums so far
        "optimizer": parameters * moments,
        "activations": tokens * (stream + inner + scores) * size,
        "logits": CHUNK * student.vocab_size * 4 * 5 + student.vocab_size * student.hidden_size * 4,
        "teacher": teacher_bytes if live else 0,
    }


def disk(recipe: Recipe, windows: int, vocabulary: int) -> int:
    """Bytes of the teacher's cached logits."""
    if not (recipe.cache.top_k and recipe.loss.needs_teacher):
        return 0
    return cache_size(windows * recipe.data.window, recipe.cache.top_k, vocabulary)
