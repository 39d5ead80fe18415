"""On-policy distillation, GKD (arXiv 2306.13649): learn from what the student says itself.

For a share lambda of the conversations, the student writes the last answer anew, at its present
weights, and the objective compares student and teacher at each of its tokens. For the others
the answer of the data is taken. No gradient goes through the sampling.

    batches = OnPolicyBatches(student, store, tokenizer.eos_token_ids, window=256, ...)
    train(learner, Objective(learner, committee, LossOptions("reverse-kl")), batches, ...)

What a batch holds follows from the seed, the step and the weights, so a resumed run goes on as
it would have. Windows have no numbers (-1): what a teacher says of them cannot be cached.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from afm_mlx.data.packing import Batch, items_of
from afm_mlx.data.tokens import TokenStore
from afm_mlx.distill.answers import drawing, sample
from afm_mlx.errors import InputError
from afm_mlx.generation import GenerationOptions, SamplingMode

import mlx.core as mx
import numpy as np

Array = np.ndarray[Any, Any]

_ORDER, _COIN, _DRAW = range(3)  # streams of random numbers


@dataclass(frozen=True)
class OnPolicyOptions:
    """How much of the training is on the student's own answers."""

    on_policy: float = 0.0
    """Share of the conversations whose last answer the student writes itself (lambda of GKD)."""
    own_tokens: int = 128
    """Longest answer of the student; the window may leave less room."""
    own_temperature: float = 1.0
    """Temperature of its sampling; at 1 the answers come from the student's own distribution."""

    def __post_init__(self) -> None:
        if not 0 <= self.on_policy <= 1:
            raise InputError(f"on_policy is a share from 0 to 1, not {self.on_policy}")
        if self.own_tokens < 1:
            raise InputError(f"own_tokens must be at least 1, not {self.own_tokens}")
        if not 0 <= self.own_temperature < float("inf"):
            raise InputError(f"own_temperature must be 0 or above, not {self.own_temperature}")


class OnPolicyBatches:
    """An endless stream of conversations, one a window, in batches.

    Gone through in a new order every time, as :class:`~afm_mlx.data.packing.Batches` does it.
    """

    def __init__(
        self,
        student: Any,
        store: TokenStore,
        ends: frozenset[int],
        window: int,
        batch_size: int,
        options: OnPolicyOptions,
        seed: int = 0,
    ) -> None:
        """
        Args:
            student: the model that is trained, which writes the answers.
            store: conversations; texts in it, and prompts that fill a window, are left out.
            ends: token ids that end an answer.
            batch_size: conversations in a batch, over all ranks.

        Raises:
            InputError: an option is out of range, or no conversation is left.
        """
        if window < 2 or batch_size < 1 or seed < 0:
            raise InputError(
                f"a batch of {batch_size} windows of {window} tokens with seed {seed}: choose at"
                " least 1 and 2, and a seed from 0 up"
            )
        self.student, self.store, self.ends = student, store, ends
        self.window, self.batch_size, self.options, self.seed = window, batch_size, options, seed
        self.samples, self.prompt_lengths, longest = _answered(store, window)
        self.left_out = len(store) - len(self.samples)
        """Samples that are texts, or have no room for an answer."""
        if not len(self.samples):
            raise InputError(
                f"no conversation has a prompt under {window} tokens and an answer: choose a"
                " larger window, or other data"
            )
        self.tokens_per_step = round(batch_size * float(np.minimum(longest, window).mean()))
        """Tokens in a batch on average, with the answers of the data."""
        self.epoch_steps = -(-len(self.samples) // batch_size)
        """Steps that deal out as many conversations as there are."""

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        """Rows ``rank::size`` of batch ``step``, counted from 0; the student answers now."""
        items = items_of(step, self.batch_size, rank, size)
        shape = len(items), self.window
        tokens, used = np.zeros(shape, np.int32), np.zeros(shape, np.bool_)
        wanted, learn = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        own: dict[int, list[int]] = {}
        for row, item in enumerate(items):
            place = self._place(item)
            ids, learnt = self.store.sample(int(self.samples[place]))
            if _uniform(self.seed, _COIN, item) < self.options.on_policy:
                own[row] = ids[: self.prompt_lengths[place]].tolist()
                continue
            stop = min(len(ids), self.window)
            tokens[row, :stop], wanted[row, :stop] = ids[:stop], learnt[:stop]
            used[row, :stop] = True
        key = mx.random.key(_bits(self.seed, _DRAW, step, rank))
        for (row, prompt), answer in zip(own.items(), self._sampled(own, key), strict=True):
            stop = len(prompt) + len(answer)
            tokens[row, :stop], used[row, :stop] = [*prompt, *answer], True
            wanted[row, len(prompt) : stop] = True
        learn[:, :-1] = wanted[:, 1:]
        return Batch(tokens, used.astype(np.int32), learn, np.full(len(items), -1))

    def _sampled(self, prompts: dict[int, list[int]], key: mx.array) -> list[list[int]]:
        """The student's answers to some prompts."""
        if not prompts:
            return []
        options = GenerationOptions(SamplingMode.random(), self.options.own_temperature)
        was_training = self.student.training
        self.student.eval()  # no dropout, and no checkpointing of layers that have a cache
        try:
            return sample(
                self.student,
                list(prompts.values()),
                [min(self.options.own_tokens, self.window - len(p)) for p in prompts.values()],
                self.ends,
                drawing(options),
                key,
            )
        finally:
            self.student.train(was_training)

    def _place(self, item: int) -> int:
        """Which of the conversations item ``item`` of the stream is."""
        epoch, place = divmod(item, len(self.samples))
        return int(_order(self.seed, epoch, len(self.samples))[place])


def _answered(store: TokenStore, window: int) -> tuple[Array, Array, Array]:
    """Conversations with room for an answer: number, length of the prompt, whole length.

    The prompt is all before the last run of tokens to be learnt.
    """
    found = []
    for i in np.flatnonzero(~store.splittable).tolist():
        learn = store.sample(i)[1]
        begins = np.flatnonzero(learn & ~np.concatenate([[False], learn[:-1]]))
        if len(begins) and 0 < begins[-1] < window:
            found.append((i, begins[-1], len(learn)))
    numbers, prompts, lengths = np.array(found, np.int64).reshape(-1, 3).T
    return numbers, prompts, lengths


def _bits(*mark: int) -> int:
    """64 random bits that follow from ``mark``; numpy promises that they never change."""
    return int(np.random.PCG64(np.random.SeedSequence(mark)).random_raw())


def _uniform(*mark: int) -> float:
    return _bits(*mark) / 2**64


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> Array:
    """A random order of ``n``."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, _ORDER, epoch]))
    return np.argsort(bits.random_raw(n), kind="stable")
