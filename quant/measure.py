"""Measure a model operation by operation, in prefill and in decoding: makes a profile.

Operations of the same kind, shape and form, one in each block, are evaluated together, so that
the start of an evaluation weighs as little as in a whole forward pass, and share the time; what
an empty evaluation takes is taken off. A round goes through the whole model. So a layer's weights
come from memory, as they do when a model decodes: since it was last used, all the others have
passed through the caches. A model that fits into them is measured there, as it runs.

The prompt counts as generation runs it: what follows the last keys and values is computed for
its last position only.
"""

import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

from afm_mlx.errors import InputError
from afm_mlx.model import Model, named_weights
from afm_mlx.ops import attention, swiglu
from afm_mlx.quant.machine import Energy, Machine, meter, survey
from afm_mlx.quant.operations import Part, dtype, notes, parts, weights_read, width
from afm_mlx.quant.profile import Operation, Profile, Whole, Work
from afm_mlx.quant.variants import Row

import mlx.core as mx

TOGETHER = 2**28
"""Bytes that operations evaluated together may move."""
NORM_FLOPS, ROTARY_FLOPS, SWIGLU_FLOPS = 4, 3, 5
"""Operations for a number: square, sum, two products; two products and a sum; exp, sum, quotient,
two products."""
_LEAST = 1e-9  # seconds, where an operation takes no longer than an empty evaluation


@dataclass(frozen=True)
class ProfileOptions:
    """What is measured."""

    tokens: int = 256
    """Length of the prompt, and of what is cached when a token is decoded."""
    repeats: int = 5
    """Rounds of each measurement after one to warm up; the median counts."""

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.repeats < 1:
            raise InputError("tokens and repeats must be at least 1")


@dataclass(frozen=True)
class Round:
    """``done`` of ``total`` rounds of measurements are over."""

    done: int
    total: int


def profile(
    model: Model,
    name: str,
    options: ProfileOptions = ProfileOptions(),  # noqa: B008 - frozen
    choices: Mapping[str, Row] | None = None,
    machine: Machine | None = None,
    energy: Energy = Energy(),  # noqa: B008 - frozen
) -> Iterator[Round | Profile]:
    """Measure ``model``; ends with its profile.

    Args:
        choices: every width of every matrix, for what-if answers.
        machine: ceilings known already; measured if left out.

    Raises:
        InputError: the prompt is longer than the model's window, or ``choices`` are for another
            model.
    """
    window = model.args.max_position_embeddings
    if options.tokens >= window:
        raise InputError(
            f"{options.tokens} tokens and one more exceed the model's window of {window}:"
            " give fewer --tokens"
        )
    total = 1 + 4 * (options.repeats + 1)
    rounds = iter([Round(done, total) for done in range(1, total + 1)])
    machine = machine or survey(dtype(model))
    yield next(rounds)
    found = list(parts(model))
    prefill = yield from _measure(model, found, options.tokens, 0, options.repeats, rounds)
    decode = yield from _measure(model, found, 1, options.tokens, options.repeats, rounds)
    done = Profile(
        name,
        options.tokens,
        machine,
        energy,
        tuple(
            Operation(p.name, p.kind, p.block, p.shape, width(p.layer), p.stored, first, then)
            for p, first, then in zip(found, prefill.works, decode.works, strict=True)
        ),
        prefill.whole,
        decode.whole,
        tuple(notes(found)),
    )
    yield done if choices is None else done.with_choices(choices)


# ---- running it


@dataclass(frozen=True)
class _Run:
    """An operation in one phase, and a call that runs it."""

    tokens: int
    weights: int
    bytes: int
    flops: int
    call: Callable[[], mx.array]


@dataclass(frozen=True)
class _Measured:
    works: list[Work]
    whole: Whole


class _Inputs:
    """Random arrays; those of one shape and use are shared."""

    def __init__(self, dtype: mx.Dtype) -> None:
        self.dtype = dtype
        self.known: dict[tuple[object, ...], mx.array] = {}

    def __call__(self, *shape: int, use: object = "") -> mx.array:
        key = (use, *shape)
        if key not in self.known:
            values = mx.random.normal(shape, key=mx.random.key(len(self.known)))
            self.known[key] = values.astype(self.dtype)
        return self.known[key]


def _measure(
    model: Model,
    found: Sequence[Part],
    length: int,
    past: int,
    repeats: int,
    rounds: Iterator[Round],
) -> Generator[Round, None, _Measured]:
    """Run every part, then the whole model, with ``past`` positions cached."""
    inputs = _Inputs(dtype(model))
    runs = [_prepare(model, part, length, past, inputs) for part in found]
    mx.eval(list(inputs.known.values()))
    groups: dict[object, list[int]] = {}
    for i, (part, run) in enumerate(zip(found, runs, strict=True)):
        groups.setdefault((part.kind, part.shape, run.bytes, run.flops), []).append(i)
    times: dict[object, list[float]] = {key: [] for key in groups}
    empty = _empty()
    for _ in range(repeats + 1):
        for key, members in groups.items():
            times[key].append(_seconds([runs[i] for i in members], empty))
        yield next(rounds)
    seconds = [0.0] * len(runs)
    for key, members in groups.items():
        for i in members:
            seconds[i] = statistics.median(times[key][1:])
    whole = yield from _whole(model, length, past, repeats, rounds)
    works = [
        Work(run.tokens, run.weights, run.bytes, run.flops, s)
        for run, s in zip(runs, seconds, strict=True)
    ]
    return _Measured(works, whole)


def _prepare(model: Model, part: Part, length: int, past: int, inputs: _Inputs) -> _Run:
    tokens, item, layer = (1 if part.late else length), inputs.dtype.size, part.layer
    match part.kind:
        case "embedding":
            rows, dim = part.shape
            weights = tokens * sum(v.nbytes for _, v in named_weights(layer)) // rows
            ids = _ids(model, tokens)
            moved = weights + tokens * dim * item
            return _Run(tokens, weights, moved, 0, lambda: layer(ids))
        case "norm":
            count = tokens * part.rows * part.shape[0]
            x = inputs(1, tokens * part.rows, part.shape[0])
            weights = weights_read(layer, tokens)
            moved = weights + 2 * count * item
            return _Run(tokens, weights, moved, NORM_FLOPS * count, lambda: layer(x))
        case "rotary":
            x = inputs(1, part.shape[0], tokens, part.shape[1])
            moved = 2 * x.nbytes
            return _Run(tokens, 0, moved, ROTARY_FLOPS * x.size, lambda: layer(x, offset=past))
        case "activation":
            count = tokens * part.shape[0]
            gate, up = (inputs(1, tokens, part.shape[0], use=u) for u in ("gate", "up"))
            moved = 3 * count * item
            return _Run(tokens, 0, moved, SWIGLU_FLOPS * count, lambda: swiglu(gate, up))
        case "attention":
            return _attention(model, part, tokens, length + past, inputs)
        case "linear" | "head":
            rows, columns = part.shape
            x = inputs(1, tokens, columns)
            weights = weights_read(layer, tokens)
            moved = weights + tokens * (rows + columns) * item
            product = layer.as_linear if part.tied else layer
            return _Run(tokens, weights, moved, 2 * tokens * rows * columns, lambda: product(x))


def _attention(model: Model, part: Part, tokens: int, keys: int, inputs: _Inputs) -> _Run:
    """Scores and values of the last ``tokens`` of ``keys`` positions, each with those before."""
    heads, kv_heads, dim = part.shape
    assert part.block is not None
    owner = min(part.block, model.model.num_regular - 1)
    queries = inputs(1, heads, tokens, dim)
    k, v = (inputs(1, kv_heads, keys, dim, use=(owner, u)) for u in ("keys", "values"))
    seen = tokens * keys - tokens * (tokens - 1) // 2
    moved = queries.nbytes * 2 + k.nbytes * 2
    mask = "causal" if tokens > 1 else None
    return _Run(
        tokens,
        0,
        moved,
        4 * heads * dim * seen,
        lambda: attention(queries, k, v, None, dim**-0.5, mask),
    )


def _seconds(runs: Sequence[_Run], empty: float) -> float:
    """What each of several runs that are alike takes."""
    size = max(1, TOGETHER // max(runs[0].bytes, 1))
    total = 0.0
    for start in range(0, len(runs), size):
        started = time.perf_counter()
        mx.eval([run.call() for run in runs[start : start + size]])
        total += max(time.perf_counter() - started - empty, _LEAST)
    return total / len(runs)


def _empty() -> float:
    """Seconds of an evaluation with nothing to do, to speak of."""
    x = mx.zeros((1,))
    times = []
    for _ in range(32):
        started = time.perf_counter()
        mx.eval(x + 1)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _whole(
    model: Model, length: int, past: int, repeats: int, rounds: Iterator[Round]
) -> Generator[Round, None, Whole]:
    """All of the model, with the energy that the machine's meter sees."""
    cache = model.make_cache()
    if past:
        mx.eval(model(_ids(model, past), cache, last=1))
    ids, times, joules = _ids(model, length), [], None
    energy = meter()
    for number in range(repeats + 1):
        if number == 1 and energy is not None:
            energy.start()  # after the round that warms up
        started = time.perf_counter()
        mx.eval(model(ids, cache, last=1))
        times.append(time.perf_counter() - started)
        for c in cache:
            c.trim(length)
        if number < repeats:
            yield next(rounds)
    if energy is not None:
        joules = energy.stop() / repeats
    yield next(rounds)
    return Whole(statistics.median(times[1:]), joules)


def _ids(model: Model, count: int) -> mx.array:
    return mx.random.randint(0, model.args.vocab_size, (1, count), key=mx.random.key(0))
