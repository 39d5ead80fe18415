"""Several requests in one batch, against the same ones alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from afm_mlx.adapters.adapter import LoRAOptions
from afm_mlx.adapters.batch import PaddedCache, generate_batch
from afm_mlx.adapters.formats import write
from afm_mlx.adapters.store import BARE, Store
from afm_mlx.errors import ExceededContextWindowSizeError, InputError
from afm_mlx.generation import (
    PREFILL_STEP,
    GenerationOptions,
    Request,
    SamplingMode,
    Snapshot,
    generate,
)
from afm_mlx.model import PRESETS, Model
from afm_mlx.prefixes import PrefixCache
from afm_mlx.quant.kv import KVOptions, make_cache
from afm_mlx.tokenizer import Tokenizer
from tests.adapters.made import random_adapter
from tests.conftest import random_model

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step

TINY = PRESETS["tiny"]
NAMES = ["one", "two", BARE, "three", "one", None]
PROMPTS = [list(range(3 + i, 20 + 9 * i)) for i in range(6)]
COUNTS = [12, 7, 12, 1, 12, 2]


def open_store(model: Model, folder: Path) -> Store:
    kinds = {
        "one": LoRAOptions(4),
        "two": LoRAOptions(8, keys=("self_attn.q_proj", "model.embed_tokens")),
        "three": LoRAOptions(2, dora=True),
    }
    store = Store(model, str)
    for seed, (name, options) in enumerate(kinds.items()):
        made = random_adapter(random_model(model.args), name, options, seed=seed)
        write(made, folder / name)
        store.add(name, folder / name)
    store.default = "two"
    return store


def requests(**given: Any) -> list[Request]:
    return [
        Request(prompt, GenerationOptions(maximum_response_tokens=count), adapter=name, **given)
        for prompt, count, name in zip(PROMPTS, COUNTS, NAMES, strict=True)
    ]


def alone(
    model: Model, tokenizer: Tokenizer, store: Store, request: Request, prefixes: PrefixCache
) -> Snapshot:
    number = store.put(request.adapter)
    *_, last = generate(model, tokenizer, request, prefixes, adapter=number)
    return last


def together(
    model: Model,
    tokenizer: Tokenizer,
    store: Store,
    given: Sequence[Request],
    prefixes: PrefixCache | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[int, list[Snapshot]]:
    found: dict[int, list[Snapshot]] = {i: [] for i in range(len(given))}
    prefixes = prefixes or PrefixCache()
    for index, snapshot in generate_batch(model, tokenizer, given, store, prefixes, cancelled):
        found[index].append(snapshot)
    return found


SHAPES = {
    "regular": TINY,
    "shared": replace(TINY, num_kv_reuse_layers=2, qk_norm=True),
    "apart": replace(TINY, tie_word_embeddings=False, rope_traditional=True),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kv", [None, KVOptions(8, 4, 32)])
def test_each_row_is_answered_as_alone(
    tmp_path: Path, tokenizer: Tokenizer, shape: str, kv: KVOptions | None
) -> None:
    model = random_model(SHAPES[shape])
    store = open_store(model, tmp_path)
    caches = partial(make_cache, options=kv)
    wanted = [alone(model, tokenizer, store, r, PrefixCache(make_cache=caches)) for r in requests()]
    found = together(model, tokenizer, store, requests(), PrefixCache(make_cache=caches))
    for index, last in enumerate(wanted):
        snapshots = found[index]
        assert snapshots[-1].text == last.text, index
        assert [s.finish_reason for s in snapshots[:-1]] == [None] * (len(snapshots) - 1)
        assert snapshots[-1].finish_reason == last.finish_reason
        assert snapshots[-1].metrics.generated_tokens == last.metrics.generated_tokens
        for earlier, later in zip(snapshots, snapshots[1:], strict=False):
            assert later.text.startswith(earlier.text)
    assert len({s.text for s in wanted}) == len(wanted)  # or equal answers would prove little


def test_steps_of_a_batch_are_close_to_those_alone(tmp_path: Path) -> None:
    # Rows that ended leave, and the rows behind them move up with their cache and adapter.
    model = random_model(TINY)
    store = open_store(model, tmp_path)
    names, following = NAMES[:4], mx.array([[5, 6, 7], [8, 9, 10], [11, 12, 13], [14, 15, 16]])
    caches, wanted = [], []
    for row, name in enumerate(names):
        store.put(name)
        cache = model.make_cache()
        model(mx.array([PROMPTS[row]]), cache=cache)
        caches.append(cache)
        again: list[Any] = model.make_cache()
        whole = mx.array([[*PROMPTS[row], *following[row].tolist()]])  # type: ignore[misc]
        wanted.append(model(whole, cache=again)[0, -3:])
    joined = [PaddedCache.join(layer) for layer in zip(*caches, strict=True)]
    store.use_rows([store.get(name) for name in names])
    first = model(following[:, :1], cache=joined)
    kept = mx.array([3, 1])
    store.keep_rows(kept)
    joined = [c.keep(kept) for c in joined]
    rest = model(following[kept, 1:], cache=joined)
    for row in range(4):
        assert mx.abs(first[row, 0] - wanted[row][0]).max() < 1e-4
    for place, row in enumerate((3, 1)):
        assert mx.abs(rest[place] - wanted[row][1:]).max() < 1e-4


def test_answers_end_at_stops_and_ends(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_model(TINY)
    store = open_store(model, tmp_path)
    store.put("one")
    tokens = [int(t) for t, _ in generate_step(mx.array(PROMPTS[0]), model, max_tokens=12)]
    text = alone(model, tokenizer, store, requests()[0], PrefixCache()).text
    given = [replace(r, stop=(text[3:5],)) for r in requests()[:3]]
    found = together(model, tokenizer, store, given)
    assert (found[0][-1].text, found[0][-1].finish_reason) == (text[:3], "stop")
    assert found[2][-1].finish_reason == "length"
    tokenizer.eos_token_ids = frozenset({tokens[4]})
    found = together(model, tokenizer, store, requests()[:3])
    for index, request in enumerate(requests()[:3]):
        last = alone(model, tokenizer, store, request, PrefixCache())
        assert found[index][-1].text == last.text
        assert found[index][-1].finish_reason == last.finish_reason
    assert found[0][-1].finish_reason == "stop"


def test_prefixes_are_shared_with_requests_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_model(TINY)
    store, prefixes = open_store(model, tmp_path), PrefixCache()
    given = requests(keep=10)
    wanted = [alone(model, tokenizer, store, r, prefixes).text for r in given]
    found = together(model, tokenizer, store, given, prefixes)
    assert [found[i][-1].text for i in range(6)] == wanted
    assert [found[i][-1].metrics.cached_tokens for i in range(6)] == [10] * 6


def test_batch_of_one_and_of_equal_lengths(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_model(TINY)
    store = open_store(model, tmp_path)
    for given in (requests()[:1], [replace(r, tokens=PROMPTS[2]) for r in requests()]):
        found = together(model, tokenizer, store, given)
        for index, request in enumerate(given):
            last = alone(model, tokenizer, store, request, PrefixCache())
            assert found[index][-1].text == last.text
    assert together(model, tokenizer, store, []) == {}


@pytest.mark.parametrize("after", [0, 2, 9])
def test_cancelled_batch_ends_every_row(tmp_path: Path, tokenizer: Tokenizer, after: int) -> None:
    model = random_model(TINY)
    store = open_store(model, tmp_path)
    left = [after]

    def cancelled() -> bool:
        left[0] -= 1
        return left[0] < 0

    given = requests()[:3]
    found = together(model, tokenizer, store, given, cancelled=cancelled)
    reasons = [found[i][-1].finish_reason for i in range(3)]
    assert "cancelled" in reasons
    assert all(reasons)


class Turns:
    """A constraint that every token changes: low and high ids in turns, four of them in all."""

    def __init__(self) -> None:
        self.written: list[int] = []

    def allowed(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        low = np.arange(TINY.vocab_size) < 130
        return low if len(self.written) % 2 else ~low

    def advance(self, token: int) -> None:
        assert self.allowed()[token]
        self.written.append(token)

    @property
    def ended(self) -> bool:
        return len(self.written) == 4


def test_rows_keep_to_their_constraints(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """An inbox's summary and its urgency are written together."""
    model = random_model(TINY)
    store = open_store(model, tmp_path)
    given = requests()
    given[1] = replace(given[1], choices=((40, 41, 42), (40, 43), (44, 45)))
    given[2] = replace(given[2], constraint=Turns)
    given[4] = replace(given[4], constraint=Turns)
    given[5] = replace(given[5], choices=((60,), (61,)))
    found = together(model, tokenizer, store, given)
    for index, request in enumerate(given):
        last = alone(model, tokenizer, store, request, PrefixCache())
        assert found[index][-1].text == last.text, index
        assert found[index][-1].finish_reason == last.finish_reason
    assert found[1][-1].finish_reason == found[2][-1].finish_reason == "stop"
    assert found[2][-1].metrics.generated_tokens == 4
    free = alone(model, tokenizer, store, requests()[2], PrefixCache())
    assert free.text[:4] != found[2][-1].text  # or nothing was held


def test_requests_that_cannot_be_batched(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_model(TINY)
    store = open_store(model, tmp_path)
    drawn = GenerationOptions(SamplingMode.random(seed=1))
    good = requests()[0]
    bad: list[tuple[Request, type[Exception], str]] = [
        (replace(good, options=drawn), InputError, "greedily"),
        (replace(good, adapter="four"), InputError, "no adapter 'four'"),
        (replace(good, tokens=[5] * 5000), ExceededContextWindowSizeError, "shorten"),
    ]
    for request, kind, message in bad:
        with pytest.raises(kind, match=message):
            together(model, tokenizer, store, [good, request])
    cold = replace(good, options=replace(drawn, temperature=0.0))
    assert together(model, tokenizer, store, [cold])[0][-1].finish_reason


def test_budget_smaller_than_the_adapters_of_a_batch(tmp_path: Path, tokenizer: Tokenizer) -> None:
    # Each one drives out the one before while the batch still needs it.
    model = random_model(TINY)
    store = open_store(model, tmp_path)
    wanted = [alone(model, tokenizer, store, r, PrefixCache()).text for r in requests()]
    store.budget = 1
    found = together(model, tokenizer, store, requests())
    assert [found[i][-1].text for i in range(6)] == wanted


def test_prompts_longer_than_a_step(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_model(TINY)
    store = open_store(model, tmp_path)
    long = [3 + i % 200 for i in range(PREFILL_STEP + 7)]
    given = [replace(requests()[0], tokens=long), requests()[1]]
    found = together(model, tokenizer, store, given)
    for index, request in enumerate(given):
        last = alone(model, tokenizer, store, request, PrefixCache())
        assert found[index][-1].text == last.text
