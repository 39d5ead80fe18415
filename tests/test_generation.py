"""Generation: same tokens as mlx-lm, prefix reuse, cancelling, stopping, measuring."""

from collections.abc import Iterator
from dataclasses import replace

from afm_mlx.errors import ExceededContextWindowSizeError, InputError
from afm_mlx.generation import (
    PREFILL_STEP,
    GenerationOptions,
    Metrics,
    PrefixCache,
    Request,
    SamplingMode,
    Snapshot,
    Writer,
    generate,
    sampler,
)
from afm_mlx.model import PRESETS, Model
from afm_mlx.tokenizer import Tokenizer
from tests.conftest import number, random_model

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step

PROMPT = list(range(3, 43))


def last(snapshots: Iterator[Snapshot]) -> Snapshot:
    *_, final = snapshots
    return final


def options(count: int = 12, **sampling: int) -> GenerationOptions:
    mode = SamplingMode.random(**sampling) if sampling else SamplingMode.greedy()
    return GenerationOptions(mode, maximum_response_tokens=count)


def mlx_lm_tokens(model: Model, tokens: list[int], count: int) -> list[int]:
    return [int(t) for t, _ in generate_step(mx.array(tokens), model, max_tokens=count)]


def text_of(tokenizer: Tokenizer, tokens: list[int]) -> str:
    """Streamed, as generation does: random bytes are rarely UTF-8 and the ways differ."""
    detokenizer = tokenizer.detokenizer()
    for token in tokens:
        detokenizer.add_token(token)
    detokenizer.finalize()
    return detokenizer.text


def expected_text(model: Model, tokenizer: Tokenizer, tokens: list[int], count: int) -> str:
    return text_of(tokenizer, mlx_lm_tokens(model, tokens, count))


@pytest.mark.parametrize("length", [1, 40, PREFILL_STEP, 2 * PREFILL_STEP + 3])
def test_greedy_equals_mlx_lm(model: Model, tokenizer: Tokenizer, length: int) -> None:
    tokens = [3 + i % 200 for i in range(length)]
    final = last(generate(model, tokenizer, Request(tokens, options())))
    assert final.text == expected_text(model, tokenizer, tokens, 12)
    assert final.finish_reason == "length"
    assert final.metrics.generated_tokens == 12
    assert final.metrics.prompt_tokens == length


def test_snapshots_grow(model: Model, tokenizer: Tokenizer) -> None:
    texts = [s.text for s in generate(model, tokenizer, Request(PROMPT, options()))]
    assert len(texts) == 13
    for earlier, later in zip(texts, texts[1:], strict=False):
        assert later.startswith(earlier)


def test_cached_prefix_changes_nothing(model: Model, tokenizer: Tokenizer) -> None:
    prefixes = PrefixCache()
    first = Request([*PROMPT, 50, 51], options(), keep=len(PROMPT))
    second = Request([*PROMPT, 60, 61, 62], options(), keep=len(PROMPT))
    plain = [last(generate(model, tokenizer, r)) for r in (first, second, first)]
    cached = [last(generate(model, tokenizer, r, prefixes)) for r in (first, second, first)]
    assert [c.text for c in cached] == [p.text for p in plain]
    assert [c.metrics.cached_tokens for c in cached] == [0, len(PROMPT), len(PROMPT)]


def test_whole_prompt_cached_leaves_one_token(model: Model, tokenizer: Tokenizer) -> None:
    prefixes = PrefixCache()
    request = Request(PROMPT, options(), keep=len(PROMPT))
    texts = {last(generate(model, tokenizer, request, prefixes)).text for _ in range(3)}
    assert texts == {expected_text(model, tokenizer, PROMPT, 12)}


def test_kept_answer_serves_the_next_turn(model: Model, tokenizer: Tokenizer) -> None:
    prefixes = PrefixCache()
    request = Request(PROMPT, options(), keep_answer=True)
    first = last(generate(model, tokenizer, request, prefixes))
    answer = mlx_lm_tokens(model, PROMPT, 12)
    assert first.text == text_of(tokenizer, answer)
    longer = [*PROMPT, *answer, 2, 70, 71]
    second = last(generate(model, tokenizer, Request(longer, options()), prefixes))
    assert second.metrics.cached_tokens >= len(PROMPT) + 11
    assert second.text == expected_text(model, tokenizer, longer, 12)


def test_kv_reuse_model_with_prefix(tokenizer: Tokenizer) -> None:
    model = random_model(replace(PRESETS["tiny"], num_kv_reuse_layers=2))
    prefixes = PrefixCache()
    request = Request(PROMPT, options(), keep=20)
    texts = [last(generate(model, tokenizer, request, prefixes)).text for _ in range(2)]
    assert texts == [expected_text(model, tokenizer, PROMPT, 12)] * 2


def test_prefix_cache_holds_its_budget(model: Model) -> None:
    cache = model.make_cache()
    mx.eval(model(mx.array([PROMPT]), cache=cache))
    one = PrefixCache(10**9)
    one.store(PROMPT, cache)
    prefixes = PrefixCache(int(one.nbytes * 2.5))
    starts = [[k, *PROMPT[1:]] for k in (200, 201, 202)]
    for tokens in starts:
        prefixes.store(tokens, cache)
    assert prefixes.nbytes <= prefixes.budget
    found = [prefixes.fetch(model, [*tokens, 9])[1] for tokens in starts]
    assert found == [0, len(PROMPT), len(PROMPT)]
    prefixes.store(starts[0], cache)  # the least recently used is now the second
    assert prefixes.fetch(model, [*starts[1], 9])[1] == 0
    prefixes.clear()
    assert prefixes.nbytes == 0


def test_entry_over_the_budget_drives_out_nothing(model: Model) -> None:
    cache = model.make_cache()
    mx.eval(model(mx.array([PROMPT]), cache=cache))
    prefixes = PrefixCache(10**9)
    prefixes.store(PROMPT[:5], cache)
    prefixes.budget = prefixes.nbytes
    prefixes.store([9, *PROMPT[1:]], cache)
    assert prefixes.fetch(model, PROMPT)[1] == 5


def test_entry_that_grows_is_replaced(model: Model) -> None:
    prefixes = PrefixCache()
    cache = model.make_cache()
    mx.eval(model(mx.array([PROMPT]), cache=cache))
    prefixes.store(PROMPT[:10], cache)
    prefixes.store(PROMPT, cache)
    small = PrefixCache()
    small.store(PROMPT, cache)
    assert prefixes.nbytes == small.nbytes


@pytest.mark.parametrize("after", [0, 1, 3])
def test_cancelled_within_two_tokens(model: Model, tokenizer: Tokenizer, after: int) -> None:
    seen: list[Snapshot] = []
    request = Request(PROMPT, options(50))
    for snapshot in generate(model, tokenizer, request, cancelled=lambda: len(seen) > after):
        seen.append(snapshot)
    assert seen[-1].finish_reason == "cancelled"
    assert seen[-1].metrics.generated_tokens <= after + 2


def test_cancelled_while_prefilling(model: Model, tokenizer: Tokenizer) -> None:
    request = Request([5] * 900, options())
    snapshots = list(generate(model, tokenizer, request, cancelled=lambda: True))
    assert [s.finish_reason for s in snapshots] == ["cancelled"]


def test_seed_repeats_and_varies(model: Model, tokenizer: Tokenizer) -> None:
    def text(seed: int) -> str:
        return last(generate(model, tokenizer, Request(PROMPT, options(20, seed=seed)))).text

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_top_one_is_greedy(model: Model, tokenizer: Tokenizer) -> None:
    request = Request(PROMPT, options(12, top=1, seed=0))
    assert last(generate(model, tokenizer, request)).text == expected_text(
        model, tokenizer, PROMPT, 12
    )


def test_sampler_follows_the_distribution() -> None:
    logits = mx.log(mx.array([0.5, 0.3, 0.15, 0.05]))
    mx.random.seed(1)
    draw = sampler(GenerationOptions(SamplingMode.random()))
    counts = [0] * 4
    for _ in range(4000):
        counts[int(number(draw(logits)))] += 1
    for count, p in zip(counts, (0.5, 0.3, 0.15, 0.05), strict=True):
        assert count / 4000 == pytest.approx(p, abs=0.03)
    narrow = sampler(GenerationOptions(SamplingMode.random(probability_threshold=0.6)))
    assert {int(number(narrow(logits))) for _ in range(200)} == {0, 1}


@pytest.mark.parametrize("choice", range(4))
def test_choice_is_the_likeliest_branch(model: Model, tokenizer: Tokenizer, choice: int) -> None:
    choices = ((40, 41), (40, 42, 43), (50,), (60, 61))
    request = Request([*PROMPT, choice], choices=choices)
    final = last(generate(model, tokenizer, request))
    logits = model(mx.array([request.tokens]))[0, -1]
    first = max((40, 50, 60), key=lambda t: number(logits[t]))
    if first == 40:
        logits = model(mx.array([[*request.tokens, 40]]))[0, -1]
        likelier = number(logits[41]) > number(logits[42])
        branch: tuple[int, ...] = (40, 41) if likelier else (40, 42, 43)
    else:
        branch = {50: (50,), 60: (60, 61)}[first]
    assert final.text == tokenizer.decode(branch)
    assert final.finish_reason == "stop"


@pytest.mark.parametrize(
    ("lines", "written", "kept"),
    [
        (0, "a\nb\nc\n", "a\nb\nc\n"),
        (2, "a\nb\nc", "a\nb"),
        (2, "\n a\n\n \nb\n", "\n a\n\n \nb"),  # blank lines are none
        (2, "a\nb", "a\nb"),  # its last line may go on
        (1, "a\nb\nc", "a"),
    ],
)
def test_lines_end_the_answer(tokenizer: Tokenizer, lines: int, written: str, kept: str) -> None:
    writer = Writer(tokenizer, Request(PROMPT, lines=lines))
    taken = [writer.take(token) for token in tokenizer.encode(written)]
    whole = lines == 0 or written == kept
    assert all(taken) == whole
    assert writer.end("stop", 0).text == kept


def test_stop_string_ends_the_answer(model: Model, tokenizer: Tokenizer) -> None:
    full = expected_text(model, tokenizer, PROMPT, 30)
    stop = full[7:9]
    final = last(generate(model, tokenizer, Request(PROMPT, options(30), stop=(stop,))))
    assert final.text == full[: full.index(stop)]
    assert final.finish_reason == "stop"
    assert final.metrics.generated_tokens < 30


def test_end_of_text_token_ends_the_answer(model: Model, tokenizer: Tokenizer) -> None:
    tokens = mlx_lm_tokens(model, PROMPT, 12)
    place = next(i for i in range(3, 12) if tokens[i] not in tokens[:i])
    tokenizer.eos_token_ids = frozenset({tokens[place]})
    final = last(generate(model, tokenizer, Request(PROMPT, options())))
    assert (final.text, final.finish_reason) == (text_of(tokenizer, tokens[:place]), "stop")


def test_context_window(model: Model, tokenizer: Tokenizer) -> None:
    window = model.args.max_position_embeddings
    with pytest.raises(ExceededContextWindowSizeError, match="2 too many .* shorten it") as error:
        list(generate(model, tokenizer, Request([5] * (window + 1))))
    assert (error.value.excess, error.value.limit) == (2, window - 1)
    final = last(generate(model, tokenizer, Request([5] * (window - 3), options(99))))
    assert final.metrics.generated_tokens == 3


def test_metrics_count_what_moves(model: Model, tokenizer: Tokenizer) -> None:
    final = last(generate(model, tokenizer, Request(PROMPT, options(5))))
    args = model.args
    kv = 2 * args.num_hidden_layers * args.num_key_value_heads * args.head_dim * 4
    weights = model.args.num_parameters * 4
    positions = len(PROMPT) + 4
    assert final.metrics.bytes_per_token == weights + kv * positions
    assert final.metrics.peak_memory > weights
    assert final.metrics.bytes_per_second > 0


def test_metrics_add_up() -> None:
    a = Metrics(10, 4, 5, 0.1, 0.5, 2.0, 100, 7, prefill_time=0.5)
    b = Metrics(20, 0, 3, 0.2, 0.3, 1.0, 90, 9, prefill_time=0.3)
    both = a + b
    assert (both.prompt_tokens, both.cached_tokens, both.generated_tokens) == (30, 4, 8)
    assert (both.time_to_first_token, both.decode_time, both.peak_memory) == (0.5, 3.0, 9)
    assert a.prompt_tokens_per_second == 12 and a.tokens_per_second == 2
    assert both.tokens_per_second == 2 and both.prompt_tokens_per_second == pytest.approx(32.5)
    assert Metrics().tokens_per_second == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: GenerationOptions(temperature=-1),
        lambda: GenerationOptions(maximum_response_tokens=0),
        lambda: SamplingMode.random(top=0),
        lambda: SamplingMode.random(probability_threshold=1.5),
        lambda: SamplingMode.random(seed=-1),
        lambda: GenerationOptions(temperature=float("nan")),
    ],
)
def test_bad_options(make: object) -> None:
    with pytest.raises(InputError):
        make()  # type: ignore[operator]
