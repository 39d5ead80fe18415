"""Nothing is lost or seen twice, windows are full, and batches depend on seed and step alone."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from afm_mlx.data.bins import best_fit, fewest, spread
from afm_mlx.data.packing import Batches, Windows, join, pack
from afm_mlx.data.tokens import TokenStore
from afm_mlx.errors import InputError

import numpy as np
import pytest

Array = np.ndarray[Any, Any]


def make_store(
    lengths: Sequence[int] | Array, splittable: Sequence[bool] | Array, first: int = 0
) -> TokenStore:
    """Tokens count up from ``first``, so that each tells where it comes from."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.arange(first, first + offsets[-1], dtype=np.uint32)
    learn = np.repeat(np.asarray(splittable), lengths) | (tokens % 3 == 0)
    return TokenStore(tokens, learn, offsets, np.asarray(splittable, np.bool_))


def mixed_lengths(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    """Conversations of some hundred tokens, texts up to many windows, as data sets have them."""
    lengths = np.exp(rng.normal(5.3, 0.9, n)).astype(np.int64) + 2
    splittable = rng.random(n) < 0.3
    lengths[splittable] *= 3
    return lengths, splittable


@pytest.mark.parametrize("seed", range(30))
def test_every_token_is_predicted_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, size = int(rng.integers(1, 40)), int(rng.integers(2, 30))
    lengths, splittable = rng.integers(0, 60, n), rng.random(n) < rng.random()
    if not (lengths > 1).any():
        lengths[0] = 2
    store = make_store(lengths, splittable)
    windows = Windows.of(store, size)
    batch = windows.batch(np.arange(len(windows)))

    expected: list[tuple[int, int]] = []  # each token with the one before it
    for i in range(n):
        tokens, learn = store.sample(i)
        stop = len(tokens) if splittable[i] else size
        expected += [(int(tokens[t - 1]), int(tokens[t])) for t in range(1, min(len(tokens), stop))
                     if learn[t]]  # fmt: skip
    rows, columns = np.nonzero(batch.learn)
    found = zip(batch.tokens[rows, columns].tolist(), batch.labels[rows, columns].tolist())  # noqa: B905
    assert sorted(found) == sorted(expected)
    assert not batch.learn[:, -1].any() and not batch.labels[~batch.learn].any()

    # Segments are whole pieces of one sample, numbered from 1 without gaps, padding last.
    sample = np.repeat(np.arange(n), lengths)
    for row in range(len(windows)):
        segments = batch.segments[row]
        used = segments[segments > 0]
        assert (segments[: len(used)] > 0).all() and (np.diff(used) >= 0).all()
        for segment in range(1, used.max() + 1):
            piece = batch.tokens[row][segments == segment]
            assert len(piece) > 1 and (np.diff(piece) == 1).all()
            assert len(set(sample[piece])) == 1
    assert batch.num_tokens == windows.num_tokens == windows.reports[0].tokens


def test_conversations_stay_whole() -> None:
    lengths, splittable = mixed_lengths(np.random.default_rng(0), 2000)
    packing = pack(lengths, splittable, 512)
    pieces = Counter(packing.sample.tolist())
    talks = np.flatnonzero(~splittable)
    assert all(pieces[i] == 1 for i in talks.tolist())
    where = np.isin(packing.sample, talks)
    assert not packing.start[where].any()
    np.testing.assert_array_equal(
        packing.stop[where], np.minimum(lengths[packing.sample[where]], 512)
    )
    assert packing.report.truncated == int((lengths[talks] > 512).sum()) > 0


@pytest.mark.parametrize(("size", "n"), [(512, 3000), (2048, 6000), (4096, 8000)])
def test_padding(size: int, n: int) -> None:
    rng = np.random.default_rng(1)
    lengths, splittable = mixed_lengths(rng, n)
    short = np.minimum(lengths, size // 4)
    for packing in (
        pack(lengths, splittable, size),
        pack(lengths, np.ones(n, np.bool_), size),
        pack(short, np.zeros(n, np.bool_), size),
    ):
        assert packing.report.padding < 0.02
        assert packing.tokens.max() <= size
        used = packing.tokens.sum()
        assert packing.report.tokens == used
        assert packing.report.padding == pytest.approx(1 - used / (size * packing.report.windows))
        assert packing.tokens.tolist() == [
            int((packing.stop - packing.start)[a:b].sum())
            for a, b in zip(packing.first[:-1], packing.first[1:], strict=True)
        ]


@pytest.mark.parametrize("seed", range(10))
def test_best_fit_is_that_of_the_textbook(seed: int) -> None:
    rng = np.random.default_rng(seed)
    window = int(rng.integers(2, 100))
    sizes = np.sort(rng.integers(1, window + 1, rng.integers(0, 300)))[::-1]
    rooms: list[int] = []
    for size in sizes.tolist():
        fitting = [(room, i) for i, room in enumerate(rooms) if room >= size]
        if fitting:
            rooms[min(fitting)[1]] -= size
        else:
            rooms.append(window - size)
    bins, left = best_fit(sizes, window)
    assert sorted(left.tolist()) == sorted(rooms)
    np.testing.assert_array_equal(np.bincount(bins, sizes, len(left)), window - left)


@pytest.mark.parametrize("seed", range(10))
def test_an_even_spread_never_runs_over_and_never_needs_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    window = int(rng.integers(60, 400))
    sizes = np.sort(rng.integers(window // 9, window // 5, 200))[::-1]
    for bins, left in (best_fit(sizes, window), fewest(sizes, window)):
        np.testing.assert_array_equal(np.bincount(bins, sizes, len(left)), window - left)
        assert left.min() >= 0
    needed = -(-int(sizes.sum()) // window)
    assert needed <= len(left) <= len(best_fit(sizes, window)[1])
    assert spread(sizes, window, needed - 1) is None


def test_a_few_like_samples_fill_their_windows() -> None:
    # Best fit leaves 3.3 % of these windows empty: six samples and a bit would fit into each.
    sizes = np.sort(np.random.default_rng(0).integers(60, 128, 418))[::-1]
    assert len(best_fit(sizes, 572)[1]) == 72 and len(fewest(sizes, 572)[1]) == 70
    assert pack(sizes, np.zeros(418, np.bool_), 572).report.padding < 0.01


def test_held_out_windows_are_the_last_samples() -> None:
    # In the order of best fit the last windows would hold the shortest conversations.
    rng = np.random.default_rng(2)
    store = make_store(rng.integers(10, 200, 1000), np.zeros(1000, np.bool_))
    train, held = Windows.of(store, 512).split(0.1)
    packing = train.packings[0]
    heads = packing.sample[packing.first[:-1]]
    assert (np.diff(heads) > 0).all()
    lengths = (packing.stop - packing.start)[packing.first[:-1]]
    last = lengths[held.numbers[0]].mean() / lengths.mean()
    assert 0.7 < last < 1.3
    assert len(train) + len(held) == len(packing.tokens)
    assert held.numbers[0].tolist() == list(range(len(train), len(train) + len(held)))


def two_sources() -> Windows:
    texts = make_store([700] * 30, [True] * 30)
    talks = make_store([15] * 40, [False] * 40, first=100_000)
    return join([Windows.of(texts, 64), Windows.of(talks, 64)])


def test_join_and_split_keep_numbers() -> None:
    union = two_sources()
    first, second = union.per_source
    assert len(first) + len(second) == len(union)
    assert second.numbers[1].tolist() == list(range(len(first), len(union)))
    assert (second.batch(second.numbers[1]).tokens.max(axis=1) >= 100_000).all()
    train, held = union.split(2)
    assert [len(n) for n in held.numbers] == [2, 2]
    number = int(held.numbers[0][0])
    np.testing.assert_array_equal(held.batch([number]).tokens, union.batch([number]).tokens)
    assert held.batch([number]).window.tolist() == [number]
    assert not set(np.concatenate(train.numbers)) & set(np.concatenate(held.numbers))
    again = join([held, train])  # stores of parts already joined
    offset = len(union)
    assert again.batch([number + offset]).tokens.tolist() == union.batch([number]).tokens.tolist()
    assert len(again) == len(union)
    np.testing.assert_array_equal(second.split(2)[1].numbers[1], held.numbers[1])
    for share, count in ((0, 0), (0.0, 0), (0.1, 1), (1e-9, 1)):
        assert len(union.per_source[1].numbers[1]) == 10
        assert len(union.split(share)[1].numbers[1]) == count


def test_bad_windows() -> None:
    union = two_sources()
    for wrong in (-1, 1.0, -0.5):
        with pytest.raises(InputError, match="cannot hold out"):
            union.split(wrong)
    with pytest.raises(InputError, match="has 10 windows, and 10 to hold out: *|leave none"):
        union.split(10)
    with pytest.raises(InputError, match="only one window"):
        Windows.of(make_store([5], [True]), 8).split(0.5)
    for numbers in ([-1], [len(union)]):
        with pytest.raises(InputError, match="belong to other data"):
            union.batch(numbers)
    with pytest.raises(InputError, match=r"windows of \[8, 16\]: choose one length"):
        join([Windows.of(make_store([5], [True]), n) for n in (8, 16)])
    with pytest.raises(InputError, match="nothing can be predicted"):
        Windows.of(make_store([1, 1], [True, False]), 8)
    with pytest.raises(InputError, match="choose at least 2"):
        Windows.of(make_store([5], [True]), 1)


def stream(batches: Batches, items: int) -> list[int]:
    steps = items // batches.batch_size
    return [int(n) for step in range(steps) for n in batches.batch(step).window]


def test_one_source_is_seen_once_an_epoch_in_new_orders() -> None:
    windows = Windows.of(make_store([100] * 50, [True] * 50), 32)
    batches = Batches([windows], [1.0], batch_size=4, seed=3)
    n = len(windows)
    seen = stream(batches, 3 * n + 4)
    epochs = [seen[i * n : (i + 1) * n] for i in range(3)]
    assert [sorted(e) for e in epochs] == [list(range(n))] * 3
    assert len({tuple(e) for e in epochs}) == 3
    assert batches.epoch_steps == -(-n // 4)
    assert seen != stream(Batches([windows], [1.0], 4, seed=4), 3 * n + 4)
    used = [batches.batch(step).num_tokens for step in range(batches.epoch_steps)]
    assert batches.tokens_per_step == pytest.approx(np.mean(used), rel=0.02)


def test_mixture() -> None:
    union = two_sources()
    train, _ = union.split(2)
    batches = Batches(train.per_source, [0.7, 0.3], batch_size=10, seed=0)
    seen = stream(batches, 3000)
    first = len(union.numbers[0])
    for block in range(3):
        assert sum(n < first for n in seen[block * 1000 : (block + 1) * 1000]) == 700
    # ... and they are mixed: no long run of one source (0.7 ** 60 is 5e-10)
    assert "1" * 60 not in "".join("1" if n < first else "0" for n in seen)
    for source, numbers in enumerate(train.numbers):
        own = [n for n in seen if (n >= first) == bool(source)]
        for epoch in range(len(own) // len(numbers)):
            part = own[epoch * len(numbers) : (epoch + 1) * len(numbers)]
            assert sorted(part) == numbers.tolist()
    shares = np.array([0.7, 0.3])
    means = [w.num_tokens / len(w) for w in train.per_source]
    assert batches.tokens_per_step == round(10 * float(shares @ means))


def test_small_shares_are_not_rounded_away() -> None:
    batches = Batches(two_sources().per_source, [3000, 1], batch_size=1)
    assert batches.counts[1] == 10
    assert batches.counts[1] / sum(batches.counts) == pytest.approx(1 / 3001, rel=0.05)


@pytest.mark.parametrize("step", [0, 7, 123, 10**6])
def test_resumed_runs_and_ranks_see_the_same(step: int) -> None:
    union = two_sources()
    weights = [0.6, 0.4]
    batch = Batches(union.per_source, weights, batch_size=12, seed=5).batch(step)
    again = Batches(two_sources().per_source, weights, batch_size=12, seed=5)
    for other in range(3):  # what was asked for before does not matter
        again.batch(other)
    for size in (1, 2, 3, 4, 12):
        parts = [again.batch(step, rank, size) for rank in range(size)]
        for name in ("tokens", "segments", "learn", "window"):
            whole = np.empty_like(getattr(batch, name))
            for rank, part in enumerate(parts):
                assert len(part.window) == 12 // size
                whole[rank::size] = getattr(part, name)
            np.testing.assert_array_equal(whole, getattr(batch, name))


def test_the_stream_is_pinned() -> None:
    # A run of an earlier version is resumed by a later one: the order must never change.
    batches = Batches(two_sources().per_source, [0.6, 0.4], batch_size=12, seed=5)
    assert batches.batch(1000).window.tolist() == [
        142,
        334,
        306,
        341,
        335,
        128,
        15,
        165,
        301,
        44,
        235,
        337,
    ]


def test_bad_batches() -> None:
    sources = two_sources().per_source
    with pytest.raises(InputError, match="a batch of 12 cannot be divided among 5 processes"):
        Batches(sources, [1, 1], batch_size=12).batch(0, 0, 5)
    for weights in ([1, 0], [1, -1], [1, float("nan")], [1, float("inf")], [1, 1e-9], [0, 0]):
        with pytest.raises(InputError, match="weights"):
            Batches(sources, weights, batch_size=1)
    with pytest.raises(InputError, match="2 sources have 1 weights"):
        Batches(sources, [1], batch_size=1)
    for size, seed in ((0, 0), (1, -1)):
        with pytest.raises(InputError, match="choose at least 1"):
            Batches(sources, [1, 1], size, seed)
    with pytest.raises(InputError, match="join them first"):
        Batches([two_sources(), two_sources()], [1, 1], batch_size=1)
    with pytest.raises(InputError, match="no windows left"):
        Batches([sources[0], sources[1].split(0)[1]], [1, 1], batch_size=1)
