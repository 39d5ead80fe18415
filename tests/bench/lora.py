"""Training speed and memory of an adapter beside mlx-lm's own trainer, in turns.

uv run python tests/bench/lora.py DATA [--model MODEL] [--steps 12] [--rounds 2]

DATA holds conversations, one a line. Both train the same rank on the same layers of the same
weights, in steps of as many samples, on the answers alone (``--mask-prompt`` there); every turn is
a process of its own. Tokens are those of samples, padding aside; ours computes what samples begin
with once a window, and it counts for each. Of mlx-lm's steps only those
count whose shape it has compiled before, of ours all but the first. mlx-lm computes with the BLAS
and the memory settings of afm-mlx.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from afm_mlx import checkpoint
from afm_mlx.adapters.adapter import LoRAOptions
from afm_mlx.adapters.data import DataOptions
from afm_mlx.adapters.formats import keys_of
from afm_mlx.adapters.lora import targets
from afm_mlx.adapters.train import AdapterSteps, AdapterTraining, Planned, train_adapter
from afm_mlx.data.sources import Source, read
from afm_mlx.training import Step

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import tyro
from mlx_lm.tuner.datasets import CacheDataset, ChatDataset
from mlx_lm.tuner.trainer import TrainingArgs, iterate_batches
from mlx_lm.tuner.trainer import train as train_in_mlx_lm
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load as load_in_mlx_lm
from tyro.conf import Positional

RATE = 1e-4


@dataclass(frozen=True)
class Options:
    data: Positional[Path]
    model: str | None = None
    steps: int = 12
    rounds: int = 2
    rank: int = 16
    num_layers: int = -1
    batch_size: int = 4
    """Samples in a step."""
    window: int = 1024
    """Longest sample."""
    side: Literal["", "mlx-lm", "afm"] = ""
    """Run one turn only."""
    result: Path = Path("result.json")
    """Where a turn writes its figures."""


@dataclass(frozen=True)
class Turn:
    """Figures of one process; sizes in MB."""

    tokens_per_second: float
    peak: float
    weights: float
    tokens_per_step: float
    padding: float
    first_step: float


def ours(options: Options) -> Turn:
    base = checkpoint.load(options.model)
    weights = mx.get_active_memory() / 1e6
    schedule = AdapterSteps(
        steps=options.steps, epochs=1e6, batch_size=options.batch_size, learning_rate=RATE,
        save_every=10**6,
    )  # fmt: skip
    lora = LoRAOptions(options.rank, num_layers=options.num_layers)
    with tempfile.TemporaryDirectory() as folder:
        training = AdapterTraining(
            "bench", out=f"{folder}/out", cache=folder, lora=lora, training=schedule,
            data=DataOptions(held_out=0, window=options.window),
        )  # fmt: skip
        steps: list[tuple[int, float]] = []
        padding = first = 0.0
        shared = 1.0  # tokens of samples for each position that is computed
        seen = 0
        mx.reset_peak_memory()
        for event in train_adapter(base, [str(options.data)], training):
            if isinstance(event, Planned):
                data, windows = event.data, event.windows
                padding = data.padding
                positions = windows * data.window * (1 - padding)
                shared = event.samples * data.tokens / data.samples / positions
            elif isinstance(event, Step):
                new = event.tokens - seen
                steps.append((round(new * shared), new / event.tokens_per_second))
                seen = event.tokens
                first = first or steps[0][1]
    return Turn(*_speed(steps[1:]), weights, seen * shared / len(steps), padding, first)


def theirs(options: Options) -> Turn:
    loaded: Any = load_in_mlx_lm(str(options.model))
    model, tokenizer = loaded[:2]
    model.set_dtype(checkpoint.default_dtype())
    mx.eval(model.parameters())
    weights = mx.get_active_memory() / 1e6
    model.freeze()
    config = {
        "rank": options.rank, "scale": LoRAOptions.scale, "dropout": 0.0,
        "keys": list(keys_of(targets(model, LoRAOptions()))),
    }  # fmt: skip
    layers = len(model.layers)
    linear_to_lora_layers(model, options.num_layers if options.num_layers > 0 else layers, config)
    rows: list[Any] = [
        {"messages": [{"role": m.role, "content": m.content} for m in sample.messages]}
        for sample in read(Source(str(options.data)), skip_bad=True)
    ]
    dataset = CacheDataset(ChatDataset(rows, tokenizer, mask_prompt=True))
    begun: list[float] = []
    dealt: list[tuple[int, tuple[int, ...]]] = []

    def batches(*given: Any, **named: Any) -> Iterator[Any]:
        for tokens, lengths in iterate_batches(*given, **named):
            begun.append(time.perf_counter())
            dealt.append((int(np.array(lengths)[:, 1].sum()), tokens.shape))
            yield tokens, lengths

    np.random.seed(0)
    mx.reset_peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        train_in_mlx_lm(
            model,
            optim.AdamW(RATE),
            dataset,
            args=TrainingArgs(
                batch_size=options.batch_size, iters=options.steps, steps_per_report=10**6,
                steps_per_save=10**6, max_seq_length=options.window,
                adapter_file=f"{folder}/adapters.safetensors",
            ),
            iterate_batches=batches,
        )  # fmt: skip
    ends = [*begun[1:], time.perf_counter()]
    steps: list[tuple[int, float]] = []
    shapes: set[tuple[int, ...]] = set()
    for (tokens, shape), start, end in zip(dealt, begun, ends, strict=True):
        if shape in shapes:
            steps.append((tokens, end - start))
        shapes.add(shape)
    if not steps:
        sys.exit("no shape came twice: raise --steps")
    used = sum(tokens for tokens, _ in dealt)
    padding = 1 - used / sum(shape[0] * shape[1] for _, shape in dealt)
    return Turn(*_speed(steps), weights, used / len(dealt), padding, ends[0] - begun[0])


def _speed(steps: list[tuple[int, float]]) -> tuple[float, float]:
    """Tokens per second over some steps, and the peak of memory."""
    tokens, seconds = (sum(values) for values in zip(*steps, strict=True))
    return tokens / seconds, mx.get_peak_memory() / 1e6


def turn(options: Options, side: str, folder: Path) -> Turn:
    """Figures of a fresh process."""
    result = folder / "result.json"
    names = ("model", "steps", "rank", "num_layers", "batch_size", "window")
    given = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
    command = [sys.executable, __file__, str(options.data), *given, f"--side={side}"]
    subprocess.run([*command, f"--result={result}"], check=True, stdout=subprocess.DEVNULL)
    return Turn(**json.loads(result.read_text()))


def main(options: Options) -> None:
    if options.side:
        found = ours(options) if options.side == "afm" else theirs(options)
        options.result.write_text(json.dumps(found.__dict__))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        base = checkpoint.load(options.model)
        if base.path.is_file():  # mlx-lm reads no GGUF
            checkpoint.save(folder / "model", base.model, base.tokenizer, base=base.name)
        model = str(base.path if base.path.is_dir() else folder / "model")
        del base
        given = Options(**{**options.__dict__, "model": model})
        runs: dict[str, list[Turn]] = {"mlx-lm": [], "afm": []}
        print(
            f"{'':8} {'tok/s':>8} {'MB':>7} {'tokens/step':>12} {'padding':>8} {'first step':>11}"
        )
        for _ in range(options.rounds):
            for side, done in runs.items():
                t = turn(given, side, folder)
                done.append(t)
                print(
                    f"{side:8} {t.tokens_per_second:8.1f} {t.peak:7.0f} {t.tokens_per_step:9.0f}"
                    f" {t.padding:8.1%} {t.first_step:9.1f} s",
                    flush=True,
                )
    for name, what in (("tokens_per_second", "tokens/s"), ("peak", "memory")):
        a, b = (statistics.median(getattr(t, name) for t in runs[s]) for s in ("afm", "mlx-lm"))
        print(f"{what}: {a / b:.2f} x mlx-lm")


if __name__ == "__main__":
    main(tyro.cli(Options))
