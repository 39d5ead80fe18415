"""Speed and memory of a low-bit model beside its dense source and MLX's 4-bit layers.

uv run python tests/bench/low_bit_speed.py QUANTIZED [--model SOURCE] [--rounds 5]

QUANTIZED is what ``afm quantize`` made of SOURCE. All run in one process and take turns; shown are
medians. ``memory`` is what a model's arrays take once it has answered, dense copies included. The
LoRA step is forward, backward and AdamW with rank 16 on every linear layer; ``quantized, decoding``
holds no dense copies, as where they do not fit.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from afm_mlx import checkpoint, load
from afm_mlx.generation import GenerationOptions, decode, prefill, sampler
from afm_mlx.losses import CHUNK
from afm_mlx.model import Model
from afm_mlx.quant.layers import make_ready
from afm_mlx.recover import AdapterOptions, attach

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import tyro
from mlx import nn
from tyro.conf import Positional


@dataclass(frozen=True)
class Options:
    quantized: Positional[str]
    model: str | None = None
    prompt: int = 256
    generate: int = 32
    rounds: int = 5
    batch_size: int = 2
    window: int = 256
    training: bool = True
    """Whether to time the LoRA step too."""


def stock(source: str | None) -> Model:
    """The source with 4 bits in MLX's own layers, whose quantised product runs."""
    model = load(source, dtype=mx.float32).model
    nn.quantize(model, 64, 4, class_predicate=lambda _, layer: isinstance(layer, nn.Linear))
    return model


def models(options: Options) -> dict[str, Callable[[], Model]]:
    def quantized(dense: float) -> Model:
        model = load(options.quantized, dtype=mx.float32).model
        make_ready(model, dense)
        return model

    return {
        "dense": lambda: load(options.model, dtype=mx.float32).model,
        "quantized": lambda: quantized(checkpoint.dense_bytes()),
        "quantized, decoding": lambda: quantized(0.0),
        "MLX 4 bits": lambda: stock(options.model),
    }


def answer(model: Model, tokens: list[int], count: int) -> tuple[float, float]:
    """Prefill and decode, tokens/s."""
    cache = model.make_cache()
    started = time.perf_counter()
    logits = prefill(model, tokens, cache)
    assert logits is not None
    mx.eval(logits)
    first = time.perf_counter()
    made = sum(1 for _ in decode(model, logits, cache, sampler(GenerationOptions()), count))
    return len(tokens) / (first - started), made / (time.perf_counter() - first)


class Lora:
    """Training steps of a fresh adapter."""

    def __init__(self, model: Model, options: Options) -> None:
        model.freeze()
        attach(model, AdapterOptions())
        self.model, self.optimizer = model, optim.AdamW(1e-4)
        shape = (options.batch_size, options.window)
        self.tokens = mx.array(np.random.default_rng(0).integers(0, 40_000, shape))

    def _loss(self, model: Model) -> mx.array:
        hidden = model.model(self.tokens)[:, :-1].reshape(-1, model.args.hidden_size)
        labels, total = self.tokens[:, 1:].reshape(-1), mx.array(0.0)
        for start in range(0, len(labels), CHUNK):
            part = slice(start, start + CHUNK)
            logits = hidden[part] @ model.head_weight.T
            total = total + nn.losses.cross_entropy(logits, labels[part]).sum()
        return total / len(labels)

    def step(self) -> float:
        started = time.perf_counter()
        loss, gradients = nn.value_and_grad(self.model, self._loss)(self.model)
        self.optimizer.update(self.model, gradients)
        mx.eval(loss, self.model.trainable_parameters(), self.optimizer.state)
        return time.perf_counter() - started


def main(options: Options) -> None:
    made: dict[str, Model] = {}
    memory: dict[str, int] = {}
    tokens = np.random.default_rng(0).integers(0, 40_000, options.prompt).tolist()
    for name, make in models(options).items():
        before = mx.get_active_memory()
        made[name] = make()
        answer(made[name], tokens, 2)
        memory[name] = mx.get_active_memory() - before
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for _ in range(options.rounds):
        for name, model in made.items():
            speeds[name].append(answer(model, tokens, options.generate))
    for name, found in speeds.items():
        prefilled, decoded = (statistics.median(column) for column in zip(*found, strict=True))
        print(
            f"{name}: prefill {prefilled:.1f} tok/s, decode {decoded:.2f} tok/s,"
            f" memory {memory[name] / 1e6:.0f} MB"
        )
    if not options.training:
        return
    steps = {n: Lora(m, options) for n, m in made.items() if n != "MLX 4 bits"}  # minutes a step
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds + 1):
        for name, lora in steps.items():
            times[name].append(lora.step())
    dense = statistics.median(times["dense"][1:])
    for name, seconds in times.items():
        median = statistics.median(seconds[1:])
        print(f"{name}: LoRA step {median:.2f} s, {median / dense:.2f} of the dense one's")


if __name__ == "__main__":
    main(tyro.cli(Options))
