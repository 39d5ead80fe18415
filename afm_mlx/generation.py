"""Autoregressive generation in small pieces: prefill, decode, sample, measure.

Beside tokens per second it reports the bytes of weights and KV cache that each decoded token
reads: decoding is bound by memory, so bytes per second tell how near the machine's limit it is
(after gpt-fast). A shared prompt prefix is prefilled once and kept (:mod:`afm_mlx.prefixes`).
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from afm_mlx.constraints import Among, Constraint, restricted
from afm_mlx.errors import ExceededContextWindowSizeError, InputError
from afm_mlx.model import Model, named_weights
from afm_mlx.prefixes import PREFIX_BUDGET as PREFIX_BUDGET
from afm_mlx.prefixes import PrefixCache as PrefixCache
from afm_mlx.tokenizer import Tokenizer

import mlx.core as mx
from mlx.utils import tree_reduce
from mlx_lm.sample_utils import make_sampler

PREFILL_STEP = 256
"""Prompt tokens per forward pass; between two passes a request can be cancelled."""

Sampler = Callable[[mx.array], mx.array]
Cancelled = Callable[[], bool]
FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class SamplingMode:
    """How the next token is chosen; made by :meth:`greedy` or :meth:`random`."""

    kind: Literal["greedy", "random"] = "greedy"
    top: int | None = None
    probability_threshold: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.top is not None and self.top < 1:
            raise InputError("top must be at least 1: it counts the tokens to choose from")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise InputError("seed must be between 0 and 2**64 - 1")
        if self.probability_threshold is not None and not 0 < self.probability_threshold <= 1:
            raise InputError("probability_threshold must lie above 0 and at most at 1")

    @classmethod
    def greedy(cls) -> "SamplingMode":
        """Always the most probable token."""
        return cls("greedy")

    @classmethod
    def random(
        cls,
        *,
        top: int | None = None,
        probability_threshold: float | None = None,
        seed: int | None = None,
    ) -> "SamplingMode":
        """Draw from the ``top`` most probable tokens, or from the smallest set of them that
        holds ``probability_threshold`` of the mass; the same ``seed`` draws the same text."""
        return cls("random", top, probability_threshold, seed)


@dataclass(frozen=True)
class GenerationOptions:
    """Options of one request, with the names of Apple's SDK.

    Attributes:
        temperature: flattens (> 1) or sharpens (< 1) random sampling; 0 is greedy.
        maximum_response_tokens: the answer ends there at the latest.
        grounded: features that retell a text may only write names and numbers that it has.
    """

    sampling: SamplingMode = SamplingMode()
    temperature: float = 1.0
    maximum_response_tokens: int = 512
    grounded: bool = True

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise InputError("temperature must be 0 or above")
        if self.maximum_response_tokens < 1:
            raise InputError("maximum_response_tokens must be at least 1")


@dataclass(frozen=True)
class Request:
    """One prompt, ready to run.

    Attributes:
        tokens: prompt token ids.
        keep: that many leading tokens stay cached for later requests.
        keep_answer: the whole exchange stays cached too (for the next turn of a chat).
        choices: if given, the answer is one of these token sequences, chosen greedily.
        favours: nats by which each choice is favoured.
        stop: the answer ends before the first of these strings.
        lines: the answer ends with that many lines that are not blank; 0 is no limit.
        adapter: name of the adapter to answer with; ``None`` is the engine's default, and an
            empty name the bare model.
        constraint: makes what restricts the answer (:mod:`afm_mlx.grounding`).
    """

    tokens: Sequence[int]
    options: GenerationOptions = GenerationOptions()
    keep: int = 0
    keep_answer: bool = False
    choices: tuple[tuple[int, ...], ...] = ()
    favours: tuple[float, ...] = ()
    stop: tuple[str, ...] = ()
    lines: int = 0
    adapter: str | None = None
    constraint: Callable[[], Constraint] | None = None

    def within(self) -> Constraint | None:
        """What restricts the answer, choices or else the constraint, made anew."""
        if self.choices:
            return Among(self.choices, self.favours)
        return self.constraint() if self.constraint is not None else None


@dataclass(frozen=True)
class Metrics:
    """What one request cost. Times in seconds, sizes in bytes.

    Attributes:
        requests: how many requests these are the metrics of, see ``+``.
        time_to_first_token: from the start of the work, waiting in the queue not counted.
        prefill_time: the same, summed over all requests.
        queued: waiting in the queue.
        swap: putting the adapter in, from memory or from its folder.
        bytes_per_token: weights and KV cache read for the last decoded token.
        peak_memory: of MLX's allocator during the request.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    queued: float = 0.0
    time_to_first_token: float = 0.0
    decode_time: float = 0.0
    bytes_per_token: int = 0
    peak_memory: int = 0
    prefill_time: float = 0.0
    requests: int = 1
    swap: float = 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prompt tokens that were computed, not found in the cache, over the time taken."""
        return _rate(self.prompt_tokens - self.cached_tokens, self.prefill_time)

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed after the first token."""
        return _rate(self.generated_tokens - self.requests, self.decode_time)

    @property
    def bytes_per_second(self) -> float:
        """Memory traffic of decoding."""
        return self.tokens_per_second * self.bytes_per_token

    def __add__(self, other: "Metrics") -> "Metrics":
        """Two requests one after the other; the first one's time to first token counts."""
        return Metrics(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.generated_tokens + other.generated_tokens,
            self.queued + other.queued,
            self.time_to_first_token or other.time_to_first_token,
            self.decode_time + other.decode_time,
            max(self.bytes_per_token, other.bytes_per_token),
            max(self.peak_memory, other.peak_memory),
            self.prefill_time + other.prefill_time,
            self.requests + other.requests,
            self.swap + other.swap,
        )


@dataclass(frozen=True)
class Snapshot:
    """The answer so far; the last one of a request has a ``finish_reason``."""

    text: str
    metrics: Metrics = Metrics()
    finish_reason: FinishReason | None = None


def prefill(
    model: Model, tokens: Sequence[int], cache: list[Any], cancelled: Cancelled = lambda: False
) -> mx.array | None:
    """Run ``tokens`` through the model; logits ``[vocab]`` of the last one, or ``None`` if
    cancelled. Memory stays bounded by ``PREFILL_STEP``."""
    logits = None
    for start in range(0, len(tokens), PREFILL_STEP):
        if cancelled():
            return None
        chunk = mx.array(list(tokens[start : start + PREFILL_STEP]))[None]
        logits = model(chunk, cache=cache, last=1)[0, -1]
        if start + PREFILL_STEP < len(tokens):
            mx.eval([c.state for c in cache])  # the logits of inner chunks are never computed
    return logits


def decode_one(model: Model, token: mx.array, cache: list[Any]) -> mx.array:
    """Logits ``[vocab]`` after one more ``token`` (a scalar array)."""
    return model(token.reshape(1, 1), cache=cache)[0, -1]


def sampler(options: GenerationOptions) -> Sampler:
    """Function from logits ``[vocab]`` to a token id (scalar array, lazy)."""
    mode = options.sampling
    if mode.kind == "greedy" or options.temperature == 0:
        return lambda logits: mx.argmax(logits, axis=-1)

    def sample(logits: mx.array) -> mx.array:
        draw = make_sampler(
            temp=options.temperature,
            top_k=mode.top if mode.top and mode.top < logits.size else 0,
            top_p=mode.probability_threshold or 0.0,
        )
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return draw(logprobs[None])[0]

    return sample


class Writer:
    """Writes the answer to a request, token by token, and measures it from its making on.

    Attributes:
        tokens: written so far.
        metrics: so far.
    """

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        self.tokens: list[int] = []
        self.metrics = Metrics(prompt_tokens=len(request.tokens))
        self._ends, self._stop, self._lines = tokenizer.eos_token_ids, request.stop, request.lines
        self._detokenizer = tokenizer.detokenizer()
        self._started, self._first = time.perf_counter(), 0.0

    def take(self, token: int) -> bool:
        """Write one more token; false if the answer ends with it."""
        now = time.perf_counter()
        self._first = self._first or now
        self.metrics = replace(
            self.metrics,
            generated_tokens=self.metrics.generated_tokens + 1,
            time_to_first_token=self._first - self._started,
            prefill_time=self._first - self._started,
            decode_time=now - self._first,
        )
        if token in self._ends:
            return False
        self.tokens.append(token)
        self._detokenizer.add_token(token)
        return self._end() is None

    def _end(self) -> int | None:
        """Where what was written goes beyond the answer."""
        text = self._detokenizer.text
        ends = [m.end() - 1 for m in re.finditer(r"\S.*\n", text)] if self._lines else []
        found = [_find(self._stop, text), *ends[self._lines - 1 :][:1]]
        return min((place for place in found if place is not None), default=None)

    def snapshot(self) -> Snapshot:
        """The answer so far."""
        return Snapshot(self._detokenizer.text, self.metrics)

    def end(self, reason: FinishReason, bytes_per_token: int) -> Snapshot:
        """The whole answer, without the string that stopped it."""
        self._detokenizer.finalize()  # shows what was held back for half a character or word
        text = self._detokenizer.text[: self._end()]
        cost = {"bytes_per_token": bytes_per_token, "peak_memory": mx.get_peak_memory()}
        return Snapshot(text, replace(self.metrics, **cost), reason)


def bytes_per_token(model: Model, cache: list[Any]) -> int:
    """Weights and KV cache that one step of decoding reads."""
    weights = sum(v.nbytes for _, v in named_weights(model))
    if not model.args.tie_word_embeddings:  # the input table is read by row only
        weights -= sum(v.nbytes for _, v in named_weights(model.model.embed_tokens))
    return weights + sum(_used_bytes(c) for c in cache)


def _used_bytes(cache: Any) -> int:
    if cache.empty():
        return 0
    return int(tree_reduce(lambda total, x: total + x.nbytes, cache.keys_and_values(), 0))


def _rate(count: int, seconds: float) -> float:
    return max(count, 0) / seconds if seconds > 0 else 0.0


def generate(
    model: Model,
    tokenizer: Tokenizer,
    request: Request,
    prefixes: PrefixCache | None = None,
    cancelled: Cancelled = lambda: False,
    adapter: int = 0,
) -> Iterator[Snapshot]:
    """Answer ``request`` as a stream of growing snapshots; the last has a finish reason.

    Args:
        adapter: number of the adapter that the model runs with, for ``prefixes``.

    Raises:
        ExceededContextWindowSizeError: no room for the prompt and one token of answer.
    """
    budget = answer_budget(model, request)
    prefixes = prefixes if prefixes is not None else PrefixCache()
    mx.reset_peak_memory()
    if request.options.sampling.seed is not None:
        mx.random.seed(request.options.sampling.seed)
    writer = Writer(tokenizer, request)
    logits, cache = read_prompt(model, request, writer, prefixes, cancelled, adapter)
    if logits is None:
        yield writer.end("cancelled", bytes_per_token(model, cache))
        return

    sample = sampler(GenerationOptions() if request.choices else request.options)
    within = request.within()
    if within is not None:
        steps = decode_within(model, logits, cache, sample, budget, within)
    else:
        steps = decode(model, logits, cache, sample, budget)
    reason: FinishReason = "length"
    for token in steps:
        if cancelled():
            reason = "cancelled"
            break
        if not writer.take(token):
            reason = "stop"
            break
        yield writer.snapshot()
    if within is not None and within.ended and reason == "length":
        reason = "stop"
    if request.keep_answer:
        known = [*request.tokens, *writer.tokens][: cache[0].offset]
        prefixes.store(known, cache, adapter)
    yield writer.end(reason, bytes_per_token(model, cache))


def answer_budget(model: Model, request: Request) -> int:
    """The most tokens that an answer can have.

    Raises:
        ExceededContextWindowSizeError: not even one.
    """
    limit = model.args.max_position_embeddings - 1
    if len(request.tokens) > limit:
        raise ExceededContextWindowSizeError(len(request.tokens), limit)
    longest = max(map(len, request.choices), default=request.options.maximum_response_tokens)
    return min(longest, limit + 1 - len(request.tokens))


def read_prompt(
    model: Model,
    request: Request,
    writer: Writer,
    prefixes: PrefixCache,
    cancelled: Cancelled = lambda: False,
    adapter: int = 0,
) -> tuple[mx.array | None, list[Any]]:
    """Logits ``[vocab]`` after the prompt, ``None`` if cancelled, and its KV cache."""
    tokens = list(request.tokens)
    cache, cached = prefixes.fetch(model, tokens, adapter)
    writer.metrics = replace(writer.metrics, cached_tokens=cached)
    keep = min(request.keep, len(tokens) - 1)
    if keep > cached:
        if prefill(model, tokens[cached:keep], cache, cancelled) is not None:
            prefixes.store(tokens[:keep], cache, adapter)
        cached = keep
    return prefill(model, tokens[cached:], cache, cancelled), cache


def _find(needles: Sequence[str], text: str) -> int | None:
    return min((i for n in needles if (i := text.find(n)) >= 0), default=None)


def decode(
    model: Model, logits: mx.array, cache: list[Any], sample: Sampler, budget: int
) -> Iterator[int]:
    """At most ``budget`` sampled tokens; the next is computed while one is used."""
    token = sample(logits)
    mx.async_eval(token)
    for n in range(1, budget + 1):
        current = token
        if n < budget:
            token = sample(decode_one(model, current, cache))
            mx.async_eval(token)
        yield int(current)
        if n % 256 == 0:
            mx.clear_cache()


def decode_within(
    model: Model,
    logits: mx.array,
    cache: list[Any],
    sample: Sampler,
    budget: int,
    constraint: Constraint,
) -> Iterator[int]:
    """The same with each token among those that ``constraint`` allows; one is known before the
    next can be computed."""
    for n in range(1, budget + 1):
        token = int(sample(restricted(logits, [constraint])))
        constraint.advance(token)
        yield token
        if constraint.ended:
            return
        if n < budget:
            logits = decode_one(model, mx.array(token), cache)
