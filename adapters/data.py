"""Samples for an adapter: read, tokenised once, split by sample, packed with hardly any padding.

All but the split and the choice of the window is :mod:`afm_mlx.data`'s. Conversations are never
cut, since their answers stand at the end: longer ones are left out, and counted. What they begin
with alike stands in a window once. Of the windows in which they pack with at most :data:`PADDING`
empty, the one is taken that costs least: larger ones share more, and attention costs more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afm_mlx.data.beginnings import Beginnings, beginnings, no_beginnings
from afm_mlx.data.packing import Batches, Windows, join, pack_after
from afm_mlx.data.sources import Source, read
from afm_mlx.data.tokens import TokenStore, cache_key, tokenize
from afm_mlx.errors import InputError
from afm_mlx.tokenizer import Tokenizer

import numpy as np

Array = np.ndarray[Any, Any]

PADDING = 0.02
"""Share of all positions that may stay empty, if there is a window for it."""
STEP = 8
"""Windows are multiples of it."""
LOOKS = 60
"""How many windows are tried, about."""
ATTENTION = 1100
"""Positions of a window at which attention costs as much as all else: embedded model, CPU."""


@dataclass(frozen=True)
class DataOptions:
    """What of the data is learnt."""

    held_out: float = 0.1
    """Share of the samples to look at, never trained on; 0 trains on all, to the last step."""
    held_out_data: tuple[str, ...] = ()
    """Files to look at in place of that share."""
    window: int = 1024
    """Tokens of the longest sample; longer conversations are left out."""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise InputError(f"held_out is a share from 0 to below 1, not {self.held_out}")
        if self.window < STEP:
            raise InputError(f"window must be at least {STEP} tokens, not {self.window}")


@dataclass(frozen=True)
class DataReport:
    """What was found.

    Attributes:
        rows: usable samples in the files to train on.
        bad: one line for each that cannot be used, and was skipped, in all files.
        too_long: conversations longer than the window allowed, left out, in all files.
        samples, held_out: how many are trained on and looked at.
        tokens, learnt: of the samples to train on, and how many of them count.
        shared: tokens of the beginnings that samples share, each once.
        longest: tokens of the longest sample.
        window, padding: positions of a window, and the share of all that stays empty.
    """

    rows: int
    bad: tuple[str, ...]
    too_long: int
    samples: int
    held_out: int
    tokens: int
    learnt: int
    shared: int
    longest: int
    window: int
    padding: float


@dataclass(frozen=True, eq=False)
class Lessons:
    """Packed samples; ``key`` names them, their tokens and how they were split and packed."""

    key: str
    train: Windows
    held_out: Windows | None
    report: DataReport

    def batches(self, samples: int, seed: int, processes: int = 1) -> Batches:
        """Batches of whole windows, with about ``samples`` samples each."""
        share = samples / self.report.samples
        windows = max(round(share * len(self.train) / processes), 1) * processes
        return Batches([self.train], [1.0], windows, seed)


def prepare(
    data: Sequence[str],
    options: DataOptions,
    tokenizer: Tokenizer,
    folder: Path,
    limit: int,
    samples: int = 4,
    seed: int = 0,
) -> Lessons:
    """Read ``data``, JSONL, JSON, text files or folders of them, and pack it.

    Args:
        folder: where tokens are kept between runs.
        limit: positions that the model has.
        samples: in a step; no window holds more on average.
        seed: decides which samples are held out.

    Raises:
        InputError: nothing usable is there, or too little to hold any out.
        ModelError: the chat template is missing or refuses a conversation; the line names it.
    """
    if not data:
        raise InputError("there is nothing to learn from: name a file, e.g. chat.jsonl")
    most = min(options.window, limit)
    bad: list[str] = []
    key, store, rows = _tokens(data, tokenizer, folder, bad)
    taught, long = _fitting(store, most)
    watched: TokenStore | None = None
    if options.held_out_data:
        other, watched, _ = _tokens(options.held_out_data, tokenizer, folder, bad)
        watched, more = _fitting(watched, most)
        key, long = f"{key} {other}", long + more
    elif options.held_out:
        taught, watched = _split(taught, options.held_out, seed)
    shared = [_shared(part, samples, most) for part in (taught, watched) if part is not None]
    window = best_window(taught, most, samples, shared[0])
    packed = [Windows.of(taught, window, shared[0])]
    if watched is not None:
        window = max(window, _least(watched, shared[1], most))
        packed = [Windows.of(taught, window, shared[0]), Windows.of(watched, window, shared[1])]
    train, *held_out = join(packed).per_source  # no two windows share a number
    report = train.reports[0]
    learnt = int(taught.learn.sum()) - int(taught.learn[taught.offsets[:-1]].sum())
    found = DataReport(
        rows=rows,
        bad=tuple(bad),
        too_long=long,
        samples=len(taught),
        held_out=0 if watched is None else len(watched),
        tokens=taught.num_tokens,
        learnt=learnt,
        shared=shared[0].positions,
        longest=int(taught.lengths.max()),
        window=window,
        padding=report.padding,
    )
    key = f"{key} {options.held_out} {seed} {window} {shared[0].positions}"
    return Lessons(key, train, held_out[0] if held_out else None, found)


def best_window(
    store: TokenStore, most: int, samples: int = 4, shared: Beginnings | None = None
) -> int:
    """The window, up to ``most``, that costs least and pads at most :data:`PADDING`; or the one
    that pads least. It holds the longest sample, and on average no more than ``samples``."""
    shared = shared or no_beginnings(store)
    first = _least(store, shared, most)
    rest = store.lengths - shared.lengths[shared.of]
    last = min(max(first, int(samples * rest.mean()) + shared.positions + STEP), most)
    found = []
    step = STEP * max((last - first) // (STEP * LOOKS), 1)
    for window in range(first, last + 1, step):
        report = pack_after(store, window, shared).report
        cost = report.windows * window * (ATTENTION + window)
        found.append((max(report.padding, PADDING), cost, window))
    return min(found)[2]


def _least(store: TokenStore, shared: Beginnings, most: int) -> int:
    """The smallest window that holds the longest conversation, or text if there is none."""
    rest = store.lengths - shared.lengths[shared.of] + shared.positions
    whole = rest[~store.splittable]
    longest = int(whole.max() if len(whole) else rest.max())
    return min(max(-(-longest // STEP), 1) * STEP, most)


def _shared(store: TokenStore, samples: int, most: int) -> Beginnings:
    """What samples begin with alike, if the longest one fits beside it."""
    shared = beginnings(store, samples)
    whole = (store.lengths - shared.lengths[shared.of])[~store.splittable]
    fits = whole.max(initial=0) + shared.positions <= most
    return shared if fits else no_beginnings(store)


def _tokens(
    data: Sequence[str], tokenizer: Tokenizer, folder: Path, bad: list[str]
) -> tuple[str, TokenStore, int]:
    """A name for the files, their tokens, and how many usable samples there are."""
    sources = [Source(path) for path in data]
    samples = [s for source in sources for s in read(source, skip_bad=True, report=bad)]
    key = cache_key(tokenizer, sources, {"adapter": True})
    return key, tokenize(iter(samples), tokenizer, folder, key), len(samples)


def _fitting(store: TokenStore, most: int) -> tuple[TokenStore, int]:
    """The samples that fit, and how many do not."""
    fits = store.splittable | (store.lengths <= most)
    if not fits.any():
        raise InputError(
            f"all samples are longer than {most} tokens: raise window, if the model allows it, or"
            " shorten them"
        )
    return _some(store, np.flatnonzero(fits)), int((~fits).sum())


def _split(store: TokenStore, share: float, seed: int) -> tuple[TokenStore, TokenStore]:
    """Samples to train on, and a share of them, at least one, to look at."""
    if len(store) < 2:
        raise InputError("one sample cannot be split: give more, held_out_data, or held_out 0")
    # numpy promises that raw streams never change with its version.
    bits = np.random.PCG64(np.random.SeedSequence(seed))
    order = np.argsort(bits.random_raw(len(store)), kind="stable")
    held = min(max(round(share * len(store)), 1), len(store) - 1)
    return _some(store, np.sort(order[held:])), _some(store, np.sort(order[:held]))


def _some(store: TokenStore, which: Array) -> TokenStore:
    """Some samples of a store, in memory."""
    at = np.concatenate([np.arange(store.offsets[i], store.offsets[i + 1]) for i in which])
    offsets = np.concatenate([[0], np.cumsum(store.lengths[which])]).astype(np.int64)
    return TokenStore(store.tokens[at], store.learn[at], offsets, store.splittable[which])
