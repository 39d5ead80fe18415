"""What one batch costs: the student's logits beside the teacher's, in chunks.

The teacher is either asked in every step, or its likeliest tokens come from the cache.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from afm_mlx.data.packing import Batch, PackedCache, Windows, mask
from afm_mlx.distill.teachers import Committee
from afm_mlx.errors import InputError
from afm_mlx.losses import (
    CHUNK,
    DIVERGENCES,
    bucketed,
    chunked_sum,
    cross_entropy,
    forward_kl,
    hidden_error,
    log_softmax,
    plain_sum,
    relation_error,
    teacher_top1,
)
from afm_mlx.model import Model
from afm_mlx.training import Deals

import mlx.core as mx
import numpy as np
from mlx import nn

Loss = Literal[
    "forward-kl",
    "reverse-kl",
    "skew-kl",
    "skew-reverse-kl",
    "jsd",
    "teacher-top1",
    "cross-entropy",
]
Cached = Callable[[Batch], tuple[mx.array, mx.array]]


@dataclass(frozen=True)
class LossOptions:
    """What the student is told to come close to."""

    loss: Loss = "forward-kl"
    """Divergence from the teacher; teacher-top1 is Apple's target, cross-entropy needs none."""
    temperature: float = 1.0
    """Softens both distributions."""
    label_weight: float = 0.0
    """Share of the cross-entropy to the text itself that is mixed in."""
    hidden_weight: float = 0.0
    """Weight of the distance between hidden states, at four depths."""
    relation_weight: float = 0.0
    """Weight of the difference between attention relations, at four depths."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature must be above 0, not {self.temperature}")
        if not 0 <= self.label_weight <= 1:
            raise InputError(f"label_weight is a share from 0 to 1, not {self.label_weight}")
        if not all(0 <= w < math.inf for w in (self.hidden_weight, self.relation_weight)):
            raise InputError("weights of hidden states and relations must not be below 0")

    @property
    def looks_inside(self) -> bool:
        """Whether hidden states of the teacher are needed."""
        return bool(self.hidden_weight or self.relation_weight)

    @property
    def needs_teacher(self) -> bool:
        return self.loss != "cross-entropy" or self.looks_inside


DEPTHS = 4
"""Places in the stack at which hidden states and relations are compared."""


class Learner(nn.Module):
    """The student and what is learnt along with it: maps of its states to the teacher's width."""

    def __init__(self, student: Model, teacher_width: int = 0) -> None:
        super().__init__()
        self.student = student
        width = student.args.hidden_size
        if teacher_width and teacher_width != width:
            self.maps = [nn.Linear(width, teacher_width, bias=False) for _ in range(DEPTHS)]

    def projection(self, place: int) -> mx.array | None:
        return self.maps[place].weight if "maps" in self else None


def places(layers: int) -> list[int]:
    """Layers whose inputs are compared: evenly spaced, the last one among them."""
    return [max(round((i + 1) * layers / DEPTHS) - 1, 0) for i in range(DEPTHS)]


class Objective:
    """Loss of a batch for :func:`afm_mlx.training.train`."""

    def __init__(
        self,
        learner: Learner,
        committee: Committee | None,
        options: LossOptions,
        cached: Cached | None = None,
        train_head: bool = True,
    ) -> None:
        if options.looks_inside and (committee is None or len(committee.teachers) != 1):
            raise InputError("hidden states can be compared with one teacher that runs along")
        self.learner, self.committee, self.options = learner, committee, options
        self.cached, self.train_head = cached if options.needs_teacher else None, train_head

    def __call__(self, batch: Batch) -> tuple[mx.array, mx.array, dict[str, mx.array]]:
        student, options = self.learner.student, self.options
        seen: list[mx.array] | None = [] if options.looks_inside else None
        cache: list[Any] = [PackedCache(batch.segments)] * len(student.layers)
        hidden = student.model(mx.array(batch.tokens), cache, seen=seen)
        learn = mx.array(batch.learn.astype(np.float32))
        count = mx.sum(learn)
        along = [mx.array(batch.labels), learn]
        parts: dict[str, mx.array] = {}
        inside = mx.array(0.0)
        if self.cached is not None:
            along += self.cached(batch)
        elif options.needs_teacher:
            assert self.committee is not None
            if seen is None:
                along += self.committee.states(batch)
            else:
                states, inside, parts = self._inside(batch, seen, learn)
                along.append(states)
        total, agreed = chunked_sum(
            self._rows,
            hidden.reshape(-1, hidden.shape[-1]),
            student.head_weight,
            [a.reshape(learn.size, -1) for a in along],
            train_head=self.train_head,
        )
        return total + inside, count, {options.loss: total, "agreement": agreed, **parts}

    def _rows(
        self, hidden: mx.array, weight: mx.array, labels: mx.array, learn: mx.array, *said: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Loss and number of agreements of some rows."""
        options = self.options
        logits = (hidden @ weight.T).astype(mx.float32)
        labels, learn = labels[:, 0], learn[:, 0]  # all rows come as matrices
        if self.cached is not None:
            likeliest, losses = said[0][:, 0], self._from_cache(logits, labels, *said)
        elif said:
            assert self.committee is not None
            teacher = mx.stop_gradient(self.committee.log_probabilities(said, options.temperature))
            likeliest, losses = mx.argmax(teacher, -1), self._live(logits, labels, teacher)
        else:
            likeliest, losses = labels, cross_entropy(logits, labels)
        if options.label_weight and options.loss != "cross-entropy":
            own = cross_entropy(logits, labels)
            losses = (1 - options.label_weight) * losses + options.label_weight * own
        agreed = mx.stop_gradient(mx.sum((mx.argmax(logits, -1) == likeliest) * learn))
        return mx.sum(losses * learn), agreed

    def _from_cache(
        self, logits: mx.array, labels: mx.array, indices: mx.array, logs: mx.array
    ) -> mx.array:
        options = self.options
        if options.loss == "teacher-top1":
            return teacher_top1(logits, indices[:, 0], labels)
        if options.loss == "cross-entropy":
            return cross_entropy(logits, labels)
        own = bucketed(logits, indices, options.temperature)
        return DIVERGENCES[options.loss](logs, own) * options.temperature**2

    def _live(self, logits: mx.array, labels: mx.array, teacher: mx.array) -> mx.array:
        options = self.options
        if options.loss == "teacher-top1":
            return teacher_top1(logits, mx.argmax(teacher, -1), labels)
        if options.loss == "cross-entropy":
            return cross_entropy(logits, labels)
        own = log_softmax(logits, options.temperature)
        return DIVERGENCES[options.loss](teacher, own) * options.temperature**2

    def _inside(
        self, batch: Batch, seen: Sequence[mx.array], learn: mx.array
    ) -> tuple[mx.array, mx.array, dict[str, mx.array]]:
        """What the teacher's head takes, and weighted errors of hidden states and relations."""
        assert self.committee is not None
        teacher = self.committee.teachers[0]
        theirs: list[mx.array] = []
        states = teacher.states(batch, theirs)
        mx.eval(states, theirs)
        options, student = self.options, self.learner.student
        allowed = mask(batch.segments)
        total = mx.array(0.0)
        parts: dict[str, mx.array] = {}
        pairs = zip(places(len(student.layers)), places(len(teacher.model.layers)), strict=True)
        for place, (i, j) in enumerate(pairs):
            mine, other = seen[i], mx.stop_gradient(theirs[j])
            if options.hidden_weight:
                error = hidden_error(mine, other, self.learner.projection(place))
                parts["hidden"] = (
                    parts.get("hidden", mx.array(0.0)) + mx.sum(error * learn) / DEPTHS
                )
            if options.relation_weight:
                a, b = student.layers[i], teacher.model.layers[j]
                mine, other = a.input_layernorm(mine), b.input_layernorm(other)
                error = mx.array(0.0)
                for name in ("q_proj", "k_proj", "v_proj"):
                    if name in a.self_attn and name in b.self_attn:
                        error = error + relation_error(
                            a.self_attn[name](mine),
                            mx.stop_gradient(b.self_attn[name](other)),
                            allowed,
                        )
                parts["relations"] = (
                    parts.get("relations", mx.array(0.0)) + mx.sum(error * learn) / DEPTHS
                )
        if "hidden" in parts:
            total = total + options.hidden_weight * parts["hidden"]
        if "relations" in parts:
            total = total + options.relation_weight * parts["relations"]
        return states.reshape(-1, states.shape[-1]), total, parts


class Examination:
    """Perplexity, KL from the teacher and agreement with it on held-out windows.

    What the teacher's trunk says is kept in memory (``D`` numbers a token), so that only its
    head runs again.
    """

    def __init__(self, held_out: Windows, committee: Committee | None, at_once: int = 4) -> None:
        numbers = np.concatenate(held_out.numbers)
        self.committee = committee
        self.batches = [
            held_out.batch(numbers[i : i + at_once]) for i in range(0, len(numbers), at_once)
        ]
        self._states: list[list[mx.array]] = []

    def prepare(self) -> None:
        """Run the teacher's trunk, if that is not done yet; only its head is needed then."""
        if self.committee is not None and not self._states:
            for batch in self.batches:
                self._states.append(self.committee.states(batch))
                mx.eval(self._states[-1])

    def of_committee(self) -> float:
        """Perplexity of the teacher itself."""
        assert self.committee is not None
        self.prepare()
        total = count = 0.0
        for batch, states in zip(self.batches, self._states, strict=True):
            labels, learn = batch.labels.reshape(-1), batch.learn.reshape(-1)
            for start in range(0, len(labels), CHUNK):
                rows = slice(start, start + CHUNK)
                logs = self.committee.log_probabilities([s[rows] for s in states])
                chosen = mx.take_along_axis(logs, mx.array(labels[rows, None]), axis=-1)
                total -= float(np.array(chosen)[:, 0] @ learn[rows])
            count += learn.sum()
        return math.exp(total / count)

    def __call__(self, student: Model) -> dict[str, float]:
        """``perplexity``, ``kl`` and ``agreement`` (share of equal likeliest tokens)."""
        self.prepare()
        sums = np.zeros(4)
        was_training = student.training
        student.eval()
        for i, batch in enumerate(self.batches):
            sums += np.array([np.array(x) for x in self._sums(student, batch, i)])
        student.train(was_training)
        nll, kl, agreed, count = sums
        found = {"perplexity": math.exp(min(float(nll / count), 700.0))}
        if self.committee is not None:
            found |= {"kl": float(kl / count), "agreement": float(agreed / count)}
        return found

    def _sums(self, student: Model, batch: Batch, i: int) -> tuple[mx.array, ...]:
        cache: list[Any] = [PackedCache(batch.segments)] * len(student.layers)
        hidden = student.model(mx.array(batch.tokens), cache)
        learn = mx.array(batch.learn.astype(np.float32)).reshape(-1)
        states = self._states[i] if self.committee is not None else []

        def rows(
            hidden: mx.array, weight: mx.array, labels: mx.array, learn: mx.array, *said: mx.array
        ) -> tuple[mx.array, ...]:
            logits = (hidden @ weight.T).astype(mx.float32)
            nll = mx.sum(cross_entropy(logits, labels) * learn)
            if not said or self.committee is None:
                return nll, mx.array(0.0), mx.array(0.0), mx.sum(learn)
            teacher = self.committee.log_probabilities(said)
            kl = mx.sum(forward_kl(teacher, log_softmax(logits)) * learn)
            same = mx.argmax(logits, -1) == mx.argmax(teacher, -1)
            return nll, kl, mx.sum(same * learn), mx.sum(learn)

        return plain_sum(
            rows,
            hidden.reshape(-1, hidden.shape[-1]),
            student.head_weight,
            [mx.array(batch.labels).reshape(-1), learn, *states],
        )


def wanted(batches: Deals, steps: int, rank: int = 0, size: int = 1) -> Iterator[int]:
    """Windows that ``steps`` steps need of one process, in order."""
    for step in range(steps):
        yield from batches.batch(step, rank, size).window.tolist()
