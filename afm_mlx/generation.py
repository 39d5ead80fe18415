"""Autoregressive generation in small pieces: prefill, decode, sample, measure.

Beside tokens per second it reports the bytes of weights and KV cache that each decoded token
reads: decoding is bound by memory, so bytes per second tell how near the machine's limit it is
(after gpt-fast). A shared prompt prefix is prefilled once and kept (:class:`PrefixCache`).
"""

import copy
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from afm_mlx.errors import ExceededContextWindowSizeError, InputError
from afm_mlx.model import Model, named_weights
from afm_mlx.tokenizer import Tokenizer

import mlx.core as mx
from mlx.utils import tree_map, tree_reduce
from mlx_lm.sample_utils import make_sampler

PREFILL_STEP = 256
"""Prompt tokens per forward pass; between two passes a request can be cancelled."""

PREFIX_BUDGET = 256 * 2**20
"""Bytes of KV cache kept for prompt prefixes."""

Sampler = Callable[[mx.array], mx.array]
Cancelled = Callable[[], bool]
MakeCache = Callable[[Model], list[Any]]
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
    """

    sampling: SamplingMode = SamplingMode()
    temperature: float = 1.0
    maximum_response_tokens: int = 512

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
        stop: the answer ends before the first of these strings.
    """

    tokens: Sequence[int]
    options: GenerationOptions = GenerationOptions()
    keep: int = 0
    keep_answer: bool = False
    choices: tuple[tuple[int, ...], ...] = ()
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Metrics:
    """What one request cost. Times in seconds, sizes in bytes.

    Attributes:
        requests: how many requests these are the metrics of, see ``+``.
        time_to_first_token: from the start of the work, waiting in the queue not counted.
        prefill_time: the same, summed over all requests.
        queued: waiting in the queue.
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


class PrefixCache:
    """KV caches of prompt prefixes, least recently used out first, under a byte budget.

    The longest common prefix of a prompt with any entry is reused, whole or in part.

    Args:
        make_cache: gives an empty KV cache for a request, one per layer that writes to it; its
            members hold trees of arrays ``[B, heads, positions, ...]`` as ``keys`` and ``values``.
    """

    def __init__(
        self, budget: int = PREFIX_BUDGET, make_cache: MakeCache = Model.make_cache
    ) -> None:
        self.budget, self._make_cache = budget, make_cache
        self._entries: OrderedDict[tuple[int, ...], list[Any]] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes held at present."""
        return sum(c.nbytes for cache in self._entries.values() for c in cache)

    def fetch(self, model: Model, tokens: Sequence[int]) -> tuple[list[Any], int]:
        """A cache that may be written to, and how many leading ``tokens`` it holds.

        At least one token is always left to run, since its logits are needed.
        """
        best, length = None, 0
        for entry in self._entries:
            common = min(_common(entry, tokens), len(tokens) - 1)
            if common > length:
                best, length = entry, common
        if best is None:
            return self._make_cache(model), 0
        self._entries.move_to_end(best)
        return [_copy(c, length) for c in self._entries[best]], length

    def store(self, tokens: Sequence[int], cache: list[Any]) -> None:
        """Keep what ``cache`` holds for ``tokens``; entries that it extends are replaced."""
        key = tuple(tokens)
        copies = [_copy(c, len(key)) for c in cache]
        if sum(c.nbytes for c in copies) > self.budget:
            return  # it would drive out all others, and then itself
        mx.eval([c.state for c in copies])
        for entry in [e for e in self._entries if _common(e, key) == len(e)]:
            del self._entries[entry]
        self._entries[key] = copies
        while self.nbytes > self.budget and self._entries:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        self._entries.clear()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def _copy(cache: Any, length: int) -> Any:
    """First ``length`` positions as a cache of its own: arrays are copied, since mlx-lm's
    caches write into theirs in place."""
    twin = copy.copy(cache)
    twin.keys, twin.values = tree_map(
        lambda x: mx.contiguous(x[..., :length, :]), (cache.keys, cache.values)
    )
    twin.offset = length
    return twin


@dataclass
class _Clock:
    """Collects the metrics of a running request."""

    model: Model
    cache: list[Any]
    metrics: Metrics
    started: float = field(default_factory=time.perf_counter)
    first: float | None = None

    def token(self) -> None:
        now = time.perf_counter()
        if self.first is None:
            self.first = now
        self.metrics = replace(
            self.metrics,
            generated_tokens=self.metrics.generated_tokens + 1,
            time_to_first_token=self.first - self.started,
            prefill_time=self.first - self.started,
            decode_time=now - self.first,
        )

    def total(self) -> Metrics:
        weights = sum(v.nbytes for _, v in named_weights(self.model))
        if not self.model.args.tie_word_embeddings:  # the input table is read by row only
            weights -= self.model.model.embed_tokens.weight.nbytes
        kv = sum(_used_bytes(c) for c in self.cache)
        return replace(self.metrics, bytes_per_token=weights + kv, peak_memory=mx.get_peak_memory())


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
) -> Iterator[Snapshot]:
    """Answer ``request`` as a stream of growing snapshots; the last has a finish reason.

    Raises:
        ExceededContextWindowSizeError: no room for the prompt and one token of answer.
    """
    tokens = list(request.tokens)
    limit = model.args.max_position_embeddings - 1
    if len(tokens) > limit:
        raise ExceededContextWindowSizeError(len(tokens), limit)
    prefixes = prefixes if prefixes is not None else PrefixCache()
    budget = min(request.options.maximum_response_tokens, limit + 1 - len(tokens))
    mx.reset_peak_memory()
    if request.options.sampling.seed is not None:
        mx.random.seed(request.options.sampling.seed)

    cache, cached = prefixes.fetch(model, tokens)
    clock = _Clock(model, cache, Metrics(prompt_tokens=len(tokens), cached_tokens=cached))
    keep = min(request.keep, len(tokens) - 1)
    if keep > cached:
        if prefill(model, tokens[cached:keep], cache, cancelled) is not None:
            prefixes.store(tokens[:keep], cache)
        cached = keep
    logits = prefill(model, tokens[cached:], cache, cancelled)
    if logits is None:
        yield Snapshot("", clock.total(), "cancelled")
        return

    if request.choices:
        steps = choose(model, logits, cache, request.choices)
    else:
        steps = decode(model, logits, cache, sampler(request.options), budget)
    detokenizer = tokenizer.detokenizer()
    written: list[int] = []
    reason: FinishReason = "stop" if request.choices else "length"
    for token in steps:
        clock.token()
        if cancelled():
            reason = "cancelled"
            break
        if token in tokenizer.eos_token_ids:
            reason = "stop"
            break
        written.append(token)
        detokenizer.add_token(token)
        if _find(request.stop, detokenizer.text) is not None:
            reason = "stop"
            break
        yield Snapshot(detokenizer.text, clock.metrics)
    detokenizer.finalize()  # shows what was held back for half a character or word
    text = detokenizer.text[: _find(request.stop, detokenizer.text)]
    if request.keep_answer:
        prefixes.store([*tokens, *written][: cache[0].offset], cache)
    yield Snapshot(text, clock.total(), reason)


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


def choose(
    model: Model, logits: mx.array, cache: list[Any], choices: Sequence[Sequence[int]]
) -> Iterator[int]:
    """The tokens of one of ``choices``, the likelier branch at every fork."""
    branches, n = list(choices), 0
    while True:
        allowed = sorted({b[n] for b in branches})
        token = allowed[int(mx.argmax(logits[mx.array(allowed)]))]
        yield token
        n += 1
        branches = [b for b in branches if b[n - 1] == token]
        if any(len(b) == n for b in branches):
            return
        logits = decode_one(model, mx.array(token), cache)
