"""``afm bench``: this package beside mlx-lm, on the same weights, in the same run.

mlx-lm's own llama class gets the same arrays and runs in turn with ours; what counts is the
median of each and their ratio. On Linux a second process measures mlx-lm without the OpenBLAS
that this package loads. The cached prefix is measured on two requests of one feature.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import resources
from importlib.metadata import version
from typing import Any

from afm_mlx import blas
from afm_mlx.checkpoint import Checkpoint, load
from afm_mlx.cli.commands import Bench
from afm_mlx.cli.output import errors, print_json, show_table
from afm_mlx.errors import InputError, ModelError
from afm_mlx.features import NOTIFICATION_SUMMARY, NotificationStack
from afm_mlx.features.run import make_request
from afm_mlx.generation import (
    GenerationOptions,
    PrefixCache,
    decode,
    generate,
    prefill,
    sampler,
)
from afm_mlx.model import named_weights

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models import llama
from rich.progress import Progress
from rich.table import Table

STOCK = "AFM_BENCH_STOCK"  # set in the process that measures mlx-lm as installed

Result = dict[str, float]  # prefill and decode in tokens/s, peak in bytes


def run(command: Bench) -> int:
    if min(command.prompt_tokens, command.generate_tokens - 1, command.repeats) < 1:
        raise InputError("prompt and repeats need at least 1, generate_tokens at least 2")
    checkpoint = load(command.model)
    if not checkpoint.model.args.is_llama:
        raise InputError("mlx-lm has no class for this model's shape: name a llama model")
    tokens = _prompt(checkpoint, command.prompt_tokens)
    if os.environ.get(STOCK):
        print_json(_peer(_twin(checkpoint), tokens, command.generate_tokens))
        return 0
    stock = blas.preload().kind in ("system", "numpy")
    with Progress(console=errors, transient=True) as bar:
        task = bar.add_task("measuring", total=command.repeats * 2 + 2 + stock)
        report = _measure(checkpoint, tokens, command, lambda: bar.advance(task))
        report["prefix"] = _prefix(checkpoint, lambda: bar.advance(task))
        if stock:
            report["mlx_lm_as_installed"] = _as_installed(command)
            bar.advance(task)
    report["machine"] = {
        "device": str(mx.default_device()),
        "blas": asdict(blas.preload()),
        "mlx": version("mlx"),
    }
    if command.json:
        print_json(report)
    else:
        show_table(_table(report))
    return 0


def _prompt(checkpoint: Checkpoint, length: int) -> list[int]:
    """``length`` tokens of ordinary English."""
    demo = resources.files("afm_mlx.cli").joinpath("demo.json").read_text("utf-8")
    tokens = checkpoint.tokenizer.encode(demo)
    return (tokens * (length // len(tokens) + 1))[:length]


def _twin(checkpoint: Checkpoint) -> llama.Model:
    """mlx-lm's llama around the very same arrays."""
    model = llama.Model(llama.ModelArgs.from_dict(checkpoint.model.args.to_dict()))
    model.load_weights(named_weights(checkpoint.model))
    model.eval()
    return model


def _timed(steps: Iterator[Any], prompt: int) -> Result:
    mx.reset_peak_memory()
    started = time.perf_counter()
    next(steps)
    first = time.perf_counter()
    count = sum(1 for _ in steps)
    ended = time.perf_counter()
    return {
        "prefill": prompt / (first - started),
        "decode": count / (ended - first),
        "peak": mx.get_peak_memory(),
    }


def _peer(model: llama.Model, tokens: list[int], count: int) -> Result:
    return _timed(generate_step(mx.array(tokens), model, max_tokens=count), len(tokens))


def _ours(checkpoint: Checkpoint, tokens: list[int], count: int) -> Result:
    def steps() -> Iterator[int]:
        cache = checkpoint.model.make_cache()
        logits = prefill(checkpoint.model, tokens, cache)
        assert logits is not None
        yield from decode(checkpoint.model, logits, cache, sampler(GenerationOptions()), count)

    return _timed(steps(), len(tokens))


def _measure(
    checkpoint: Checkpoint, tokens: list[int], command: Bench, advance: Callable[[], None]
) -> dict[str, Any]:
    twin = _twin(checkpoint)
    count = command.generate_tokens
    _peer(twin, tokens[:8], 2)  # compile what both share
    _ours(checkpoint, tokens[:8], 2)
    runs: dict[str, list[Result]] = {"afm": [], "mlx_lm": []}
    for _ in range(command.repeats):
        runs["afm"].append(_ours(checkpoint, tokens, count))
        advance()
        runs["mlx_lm"].append(_peer(twin, tokens, count))
        advance()
    return {
        name: {key: statistics.median(r[key] for r in results) for key in results[0]}
        for name, results in runs.items()
    }


def _prefix(checkpoint: Checkpoint, advance: Callable[[], None]) -> dict[str, float]:
    """Time to first token of a feature's first and second request, in seconds."""
    demo = json.loads(resources.files("afm_mlx.cli").joinpath("demo.json").read_text("utf-8"))
    prefixes = PrefixCache()
    times = []
    for item in demo["inbox"][:2]:
        stack = NotificationStack.from_json(item)
        request = make_request(NOTIFICATION_SUMMARY, stack, checkpoint.tokenizer)
        *_, last = generate(checkpoint.model, checkpoint.tokenizer, request, prefixes)
        times.append(last.metrics.time_to_first_token)
        advance()
    return {"first": times[0], "second": times[1]}


def _as_installed(command: Bench) -> Result:
    """mlx-lm with the BLAS of MLX's own wheel, on a quarter of the prompt (it is slow)."""
    arguments = ["bench", f"--prompt-tokens={max(command.prompt_tokens // 4, 1)}"]
    arguments += [f"--model={command.model}"] if command.model else []
    done = subprocess.run(
        [sys.executable, "-m", "afm_mlx", *arguments, "--generate-tokens=8"],
        env={**os.environ, "AFM_BLAS": "off", STOCK: "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ModelError(f"mlx-lm as installed failed: {done.stderr.strip().splitlines()[-1]}")
    result: Result = json.loads(done.stdout)
    return result


def _table(report: dict[str, Any]) -> Table:
    ours, peer, stock = report["afm"], report["mlx_lm"], report.get("mlx_lm_as_installed")
    table = Table(box=None)
    for name in ("", "afm", "mlx-lm", "ratio") + (("mlx-lm as installed", "ratio") * bool(stock)):
        table.add_column(name, justify="right" if name else "left")
    for label, key in (("prefill, tok/s", "prefill"), ("decode, tok/s", "decode")):
        row = [label, f"{ours[key]:.1f}", f"{peer[key]:.1f}", f"{ours[key] / peer[key]:.2f}"]
        if stock:
            row += [f"{stock[key]:.1f}", f"{ours[key] / stock[key]:.2f}"]
        table.add_row(*row)
    table.add_row(
        "peak memory, MB",
        f"{ours['peak'] / 2**20:.0f}",
        f"{peer['peak'] / 2**20:.0f}",
        f"{ours['peak'] / peer['peak']:.2f}",
    )
    first, second = report["prefix"]["first"], report["prefix"]["second"]
    table.add_row("first token, ms", f"{first * 1000:.0f}")
    table.add_row("same, prefix cached", f"{second * 1000:.0f}", "", f"{second / first:.2f}")
    return table
