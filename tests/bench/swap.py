"""Swaps of adapters and batches of them, beside mlx-lm's reload, in milliseconds.

uv run python tests/bench/swap.py [--model MODEL] [--adapters 10] [--requests 8] [--tiny]

Adapters are random, of rank 16 on every linear layer. ``put`` is a swap from memory, and ``a swap
with its first step`` what it and the token decoded right after it take longer than a token alone;
``disk`` reads, checks, converts to the type computed in, and puts in. mlx-lm's way to another
adapter is to load the model again with it; the files are those of the disk test, and its time
counts no tokenizer.
Requests are answered greedily, one after another and in one batch, with no prompt cached.
``--tiny`` runs all of it on a small random model, as a check of this script.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from afm_mlx import checkpoint
from afm_mlx.adapters.adapter import About, Adapter, LoRAOptions
from afm_mlx.adapters.batch import generate_batch
from afm_mlx.adapters.formats import write
from afm_mlx.adapters.lora import compute_type, prepare, strip, taken
from afm_mlx.adapters.store import BARE, Store
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.generation import GenerationOptions, PrefixCache, Request, generate
from afm_mlx.model import Model

import mlx.core as mx
import tyro
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model

QUESTIONS = [
    "Why is the sea salty?",
    "Write one line that thanks a neighbour for watering the plants while we were away.",
    "Name three things to pack for a walk in the rain.",
    "The meeting moves from Tuesday at ten to Wednesday at two, in the small room on the third"
    " floor; bring the printed plan and the list of open questions. Shorten this.",
]


@dataclass(frozen=True)
class Options:
    model: str | None = None
    adapters: int = 10
    rank: int = 16
    rounds: int = 200
    """Swaps from memory; half as many from disk."""
    reloads: int = 100
    """Reloads by mlx-lm; 0 leaves them out."""
    requests: int = 8
    kinds: int = 4
    """Adapters among the requests."""
    tokens: int = 48
    """Tokens of each answer, if it does not end before."""
    tiny: bool = False


def opened(options: Options, folder: Path) -> tuple[Checkpoint, Path]:
    """The model, and a folder of it that mlx-lm reads."""
    if options.tiny:
        sys.path.insert(0, str(Path(__file__).parents[2]))
        from tests.conftest import tiny_checkpoint

        found = tiny_checkpoint()
    else:
        found = checkpoint.load(options.model)
    path = folder / "model"
    if found.path.is_dir() and not options.tiny:
        return found, found.path
    computed = compute_type(found.model)
    found.model.set_dtype(mx.float16)  # as models are published; float32 files take twice as long
    checkpoint.save(path, found.model, found.tokenizer, base=found.name)
    found.model.set_dtype(computed)
    return found, path


def adapter(model: Model, name: str, rank: int, seed: int) -> Adapter:
    """Small random matrices, as after a short training."""
    options = LoRAOptions(rank)
    prepare(model, options, seed=seed)
    noise = mx.random.split(mx.random.key(seed), len(taken(model)))
    weights = {
        n: (w if n.endswith("lora_a") else 0.01 * mx.random.normal(w.shape, key=key)).astype(
            mx.float16
        )
        for (n, w), key in zip(taken(model).items(), noise, strict=True)
    }
    mx.eval(weights)
    strip(model)
    return Adapter(name, weights, options, About(feature=name))


def timed(job: Callable[[int], object], rounds: int) -> list[float]:
    """Milliseconds of each round, after one that does not count."""
    job(-1)
    found = []
    for i in range(rounds):
        started = time.perf_counter()
        job(i)
        found.append(1000 * (time.perf_counter() - started))
    return found


def show(name: str, found: list[float]) -> None:
    ranked = sorted(found)
    p99 = ranked[min(round(0.99 * len(ranked)), len(ranked) - 1)]
    print(f"{name:<34} {statistics.median(found):>9.2f} {p99:>9.2f} {len(found):>7}", flush=True)


def swaps(model: Model, store: Store, names: list[str], options: Options, files: Path) -> None:
    """Latency of all ways to another adapter."""
    print(f"{'ms':<34} {'p50':>9} {'p99':>9} {'rounds':>7}")
    show("put, from memory", timed(lambda i: store.put(names[i % len(names)]), options.rounds))
    show("put, bare model", timed(lambda i: store.put((BARE, names[0])[i % 2]), options.rounds))

    token, steps = mx.array([[5]]), max(options.rounds // 2, 3)

    def step(i: int) -> None:
        mx.eval(model(token))

    def put_and_step(i: int) -> None:
        store.put(names[i % len(names)])
        step(i)

    again, after = timed(step, steps), timed(put_and_step, steps)
    show("a step", again)
    show("put and a step", after)
    difference = statistics.median(after) - statistics.median(again)
    print(f"{'a swap with its first step':<34} {difference:>9.2f}")

    def from_disk(i: int) -> None:
        name = names[i % len(names)]
        store.add(name, files / name)
        store.put(name)

    show("disk: read, check, put", timed(from_disk, steps))


def reloads(path: Path, files: Path, names: list[str], rounds: int) -> None:
    """mlx-lm's way, with the model's files in the page cache."""

    def reload(i: int) -> None:
        model, _ = load_model(path)
        load_adapters(model, str(files / names[i % len(names)]))
        mx.eval(model.parameters())

    try:
        show("mlx-lm: model and adapter again", timed(reload, rounds))
    except ValueError as error:
        print(f"mlx-lm does not load this model: {error}")


def throughput(found: Checkpoint, store: Store, names: list[str], options: Options) -> None:
    """Requests one after another, and in one batch."""
    wanted = GenerationOptions(maximum_response_tokens=options.tokens)
    requests = [
        Request(
            found.tokenizer.encode(QUESTIONS[i % len(QUESTIONS)]),
            wanted,
            adapter=names[i % options.kinds],
        )
        for i in range(options.requests)
    ]

    def alone() -> int:
        written = 0
        for request in requests:
            number = store.put(request.adapter)
            *_, last = generate(
                found.model, found.tokenizer, request, PrefixCache(), adapter=number
            )
            written += last.metrics.generated_tokens
        return written

    def together() -> int:
        prefixes, written = PrefixCache(), 0
        for _, snapshot in generate_batch(found.model, found.tokenizer, requests, store, prefixes):
            if snapshot.finish_reason:
                written += snapshot.metrics.generated_tokens
        return written

    print(f"\n{options.requests} requests on {options.kinds} adapters")
    print(f"{'':<34} {'seconds':>9} {'tokens':>9} {'a second':>9}")
    rates = []
    for name, job in (("one after another", alone), ("in one batch", together)):
        job()
        started = time.perf_counter()
        written = job()
        seconds = time.perf_counter() - started
        rates.append(written / seconds)
        print(f"{name:<34} {seconds:>9.2f} {written:>9} {rates[-1]:>9.1f}", flush=True)
    print(f"{'times as many tokens a second':<34} {rates[1] / rates[0]:>9.2f}")


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found, path = opened(options, Path(folder))
        files = Path(folder) / "adapters"
        names = [f"a{i}" for i in range(max(options.adapters, options.kinds))]
        for seed, name in enumerate(names):
            write(adapter(found.model, name, options.rank, seed), files / name)
        mx.clear_cache()
        before = mx.get_active_memory()
        store = Store(found.model, lambda: found.signature)
        for name in names:
            store.add(name, files / name)
        held = mx.get_active_memory() - before
        on_disk = sum(p.stat().st_size for p in files.glob("*/adapters.safetensors"))
        store.put(names[0])
        slots = len(store.get(names[0]).fillings)  # type: ignore[union-attr]
        print(f"{found.name}, {mx.default_device()}: rank {options.rank} on {slots} layers")
        print(
            f"{len(names)} adapters: {held / 1e6:.1f} MB in memory,"
            f" {store.nbytes / 1e6:.1f} MB by the store's count, {on_disk / 1e6:.1f} MB on disk\n"
        )
        swaps(found.model, store, names, options, files)
        if options.reloads:
            reloads(path, files, names, options.reloads)
        throughput(found, store, names, options)


if __name__ == "__main__":
    main(tyro.cli(Options))
