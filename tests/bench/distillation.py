"""Training speed and memory beside a plain distillation loop made of mlx-lm's parts.

uv run python tests/bench/distillation.py [--steps 4] [--rounds 2]

Both teach the same student (FFN cut to half) with the same teacher on the same batches by
forward KL and AdamW. The plain loop runs the teacher in every step, and mlx-lm's llama and
``kl_div_loss``; ours reads the teacher's 64 likeliest tokens from the cache. They take turns,
each set up anew; the first step of a turn is not counted. The plain loop needs the teacher's
weights in memory, ours does not. mlx-lm computes with the BLAS and the memory settings of afm-mlx.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afm_mlx import load
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.data.packing import Batches, Windows
from afm_mlx.data.sources import Source, read
from afm_mlx.data.tokens import tokenize
from afm_mlx.distill import teachers
from afm_mlx.distill.logits import LogitCache
from afm_mlx.distill.objective import Learner, LossOptions, Objective, wanted
from afm_mlx.distill.recipe import SHIPPED
from afm_mlx.distill.shape import PruneOptions, choose_shape
from afm_mlx.model import Model, named_weights
from afm_mlx.model_args import ModelArgs
from afm_mlx.saves import Saves
from afm_mlx.training import Step, TrainingOptions, train

import mlx.core as mx
import mlx.optimizers as optim
import tyro
from mlx import nn
from mlx_lm.models import llama
from mlx_lm.tuner.losses import kl_div_loss


@dataclass(frozen=True)
class Options:
    steps: int = 4
    """Steps of a turn, the first of which is not counted."""
    rounds: int = 2
    batch_size: int = 2
    window: int = 256
    micro_batch: int = 0
    """Windows that ours computes at a time; 0 is the whole batch."""
    gradient_checkpointing: bool = False
    """Whether ours computes each layer twice."""


def student_weights(model: Model, shape: ModelArgs) -> list[tuple[str, mx.array]]:
    """The first dimensions of each FFN: what is kept does not matter here."""
    size = shape.ffn_sizes[0]
    return [
        (n, w[:size] if "gate" in n or "up_proj" in n else w[:, :size] if "down" in n else w)
        for n, w in named_weights(model)
    ]


def peer(model: Model, shape: ModelArgs, batches: Batches, options: Options) -> Iterator[int]:
    """The plain loop; yields tokens of each step."""
    make = llama.ModelArgs.from_dict
    teacher, student = (llama.Model(make(a.to_dict())) for a in (model.args, shape))
    teacher.load_weights(named_weights(model))
    student.load_weights(student_weights(model, shape))
    optimizer = optim.AdamW(1e-5)

    def loss(tokens: mx.array) -> mx.array:
        return kl_div_loss(student(tokens), mx.stop_gradient(teacher(tokens))).mean()

    step: Any = nn.value_and_grad(student, loss)
    for i in range(options.steps):
        tokens = mx.array(batches.batch(i).tokens)
        value, gradients = step(tokens)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(student, gradients)
        mx.eval(value, student.parameters(), optimizer.state)
        yield tokens.size


def ours(
    model: Model, shape: ModelArgs, batches: Batches, cache: LogitCache, options: Options
) -> Iterator[int]:
    student = Model(shape)
    student.load_weights(student_weights(model, shape))
    objective = Objective(Learner(student), None, LossOptions(), cache)
    training = TrainingOptions(
        steps=options.steps, learning_rate=1e-5, micro_batch=options.micro_batch,
        batch_size=options.batch_size, gradient_checkpointing=options.gradient_checkpointing,
    )  # fmt: skip
    nowhere = Saves(Path("nowhere"), writes=False)
    for event in train(objective.learner, objective, batches, training, nowhere):
        if isinstance(event, Step):
            yield options.batch_size * options.window


def turn(steps: Iterator[int]) -> tuple[float, float]:
    """Tokens per second after the first step, and peak memory in MB beyond what was there."""
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    next(steps)
    started, tokens = time.perf_counter(), 0
    for count in steps:
        tokens += count
    return tokens / (time.perf_counter() - started), (mx.get_peak_memory() - before) / 1e6


def main(options: Options) -> None:
    checkpoint: Checkpoint = load(dtype=mx.float32)
    model = checkpoint.model
    shape = choose_shape(model.args, PruneOptions())
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        source = Source(str(SHIPPED))
        store = tokenize(read(source), checkpoint.tokenizer, place, "tokens")
        windows = Windows.of(store, options.window)
        batches = Batches([windows], [1.0], options.batch_size)
        committee = teachers.Committee(
            (teachers.wrap(checkpoint.name, model, checkpoint.tokenizer),)
        )
        cache = LogitCache(place / "logits", 64)
        list(cache.fill(committee, windows, list(wanted(batches, options.steps)), 1.0))
        makers: dict[str, Callable[[], Iterator[int]]] = {
            "mlx-lm": lambda: peer(model, shape, batches, options),
            "afm": lambda: ours(model, shape, batches, cache, options),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
        teacher = sum(w.nbytes for _, w in named_weights(model)) / 1e6  # loaded for both
        for _ in range(options.rounds):
            for name, maker in makers.items():
                speed, memory = turn(maker())
                found[name].append((speed, memory + teacher * (name == "mlx-lm")))
                print(f"{name:8} {speed:8.1f} tok/s {found[name][-1][1]:8.0f} MB")
    speeds, sizes = (
        {name: statistics.median(r[i] for r in runs) for name, runs in found.items()}
        for i in (0, 1)
    )
    print(f"tokens/s: {speeds['afm'] / speeds['mlx-lm']:.2f} x mlx-lm")
    print(f"memory:   {sizes['afm'] / sizes['mlx-lm']:.2f} x mlx-lm")


if __name__ == "__main__":
    main(tyro.cli(Options))
