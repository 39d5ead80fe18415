"""A trainable judge of text quality: hashed words and word pairs, logistic regression.

The recipe of CCNet's and DCLM's classifiers (arXiv 1911.00359, 2406.11794: fastText on single
words and pairs, text worth imitating against text as found), small enough for numpy: a text is
the vector of its features' counts, scaled to length 1, and its score is sigmoid(w x + b).
"""

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from afm_mlx.data.filters import StepReport
from afm_mlx.data.sources import Sample
from afm_mlx.errors import InputError, ModelError, first_line
from afm_mlx.files import write_bytes

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

Array = np.ndarray[Any, Any]

FORMAT = "afm-mlx quality classifier 1"
_TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")


@dataclass(frozen=True)
class QualityTraining:
    """How a classifier is trained: SGD whose learning rate falls linearly to 0.

    Attributes:
        buckets: number of hashed features.
        l2: weight of half the squared weights in the loss.
    """

    buckets: int = 2**18
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 20.0
    l2: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("buckets", "epochs", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.l2 * self.learning_rate < 1:
            raise InputError("l2 must be at least 0 and below 1 / learning_rate")


@dataclass(frozen=True)
class Batch:
    """Sparse features ``[n, buckets]``: row ``rows[i]`` has ``values[i]`` in ``columns[i]``."""

    rows: Array
    columns: Array
    values: Array
    n: int


Row = tuple[Array, Array]


def features(text: str, buckets: int) -> Row:
    """Columns and values of ``text``: counts of words and pairs of words, scaled to length 1.

    Numbers count as one word; the hash is CRC-32, the same on every machine.
    """
    tokens = ["0" if t[0].isdigit() else t for t in _TOKEN.findall(text.lower())]
    pairs = (f"{a} {b}" for a, b in itertools.pairwise(tokens))
    counts = Counter(zlib.crc32(f.encode()) % buckets for f in itertools.chain(tokens, pairs))
    columns = np.fromiter(counts, np.int64, len(counts))
    values = np.fromiter(counts.values(), np.float64, len(counts))
    return columns, values / max(1.0, float(np.linalg.norm(values)))


def batch(rows: Sequence[Row]) -> Batch:
    """``rows`` as one sparse matrix."""
    return Batch(
        np.repeat(np.arange(len(rows)), [len(columns) for columns, _ in rows]),
        np.concatenate([columns for columns, _ in rows]),
        np.concatenate([values for _, values in rows]),
        len(rows),
    )


def logits(weights: Array, bias: float, x: Batch) -> Array:
    """Log-odds ``[n]`` of being good, given ``weights`` ``[buckets]``."""
    return np.bincount(x.rows, weights[x.columns] * x.values, minlength=x.n) + bias


def loss_and_gradient(
    weights: Array, bias: float, x: Batch, labels: Array, importance: Array, l2: float
) -> tuple[float, Array, float]:
    """Weighted logistic loss with its gradients by ``weights`` and ``bias``.

    Args:
        labels: 1 for good, 0 for bad, ``[n]``.
        importance: weights of the samples, ``[n]``.
    """
    z = logits(weights, bias, x)
    loss = np.mean(importance * (np.logaddexp(0, z) - labels * z)) + l2 / 2 * weights @ weights
    residual = importance * (_sigmoid(z) - labels) / x.n
    gradient = np.bincount(x.columns, residual[x.rows] * x.values, minlength=len(weights))
    return float(loss), gradient + l2 * weights, float(residual.sum())


def _sigmoid(z: Array) -> Array:
    return np.exp(-np.logaddexp(0, -z))


@dataclass(frozen=True, eq=False)
class QualityClassifier:
    """Scores texts between 0 (like the bad ones it was trained on) and 1 (like the good ones).

    Attributes:
        weights: ``[buckets]``, float32.
    """

    weights: Array
    bias: float

    @classmethod
    def train(
        cls,
        good: Iterable[str],
        bad: Iterable[str],
        training: QualityTraining | None = None,
    ) -> "QualityClassifier":
        """Learn to tell ``good`` texts from ``bad`` ones; both count equally, however many.

        Raises:
            InputError: no texts of one kind.
        """
        training = training or QualityTraining()
        kinds = [[features(text, training.buckets) for text in texts] for texts in (bad, good)]
        for name, rows_of_kind in zip(("bad", "good"), kinds, strict=True):
            if not rows_of_kind:
                raise InputError(f"there are no {name} texts: give examples of both kinds")
        rows = kinds[0] + kinds[1]
        labels = np.repeat([0.0, 1.0], [len(k) for k in kinds])
        importance = np.repeat([len(rows) / 2 / len(k) for k in kinds], [len(k) for k in kinds])
        rng = np.random.default_rng(training.seed)
        order = [rng.permutation(len(rows)) for _ in range(training.epochs)]
        batches = [
            chosen[start : start + training.batch_size]
            for chosen in order
            for start in range(0, len(rows), training.batch_size)
        ]
        weights, bias = np.zeros(training.buckets), 0.0
        for step, chosen in enumerate(batches):
            rate = training.learning_rate * (1 - step / len(batches))
            x = batch([rows[i] for i in chosen])
            _, by_weights, by_bias = loss_and_gradient(
                weights, bias, x, labels[chosen], importance[chosen], training.l2
            )
            weights -= rate * by_weights
            bias -= rate * by_bias
        return cls(weights.astype(np.float32), bias)

    def score(self, text: str) -> float:
        """How much ``text`` is like the good ones, between 0 and 1."""
        x = batch([features(text, len(self.weights))])
        return float(_sigmoid(logits(self.weights, self.bias, x))[0])

    def save(self, path: Path) -> None:
        """Write a safetensors file, under a temporary name first.

        Raises:
            InputError: the file cannot be written.
        """
        tensors = {"weights": self.weights, "bias": np.array([self.bias])}
        write_bytes(path, to_bytes(tensors, {"format": FORMAT}), new_folder=True)

    @classmethod
    def load(cls, path: Path) -> "QualityClassifier":
        """Read a file of :meth:`save`.

        Raises:
            ModelError: no such file, or it is damaged or something else.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                written_by = (file.metadata() or {}).get("format")
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"{path} cannot be read ({first_line(error)}): train the classifier again"
            ) from error
        if written_by != FORMAT:
            raise ModelError(f"{path} is no quality classifier: name a file that one was saved to")
        return cls(tensors["weights"], float(tensors["bias"][0]))


@dataclass(frozen=True)
class QualityFilter:
    """Leaves out samples that a trained classifier scores too low.

    Attributes:
        path: file of :meth:`QualityClassifier.save`.
        threshold: smallest score that passes, between 0 and 1.
    """

    path: Path
    threshold: float = 0.5
    name: ClassVar[str] = "quality"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold must be between 0 and 1, not {self.threshold}")

    def apply(self, samples: Iterable[Sample], report: StepReport) -> Iterator[Sample]:
        classifier = QualityClassifier.load(self.path)
        for sample in report.count(samples):
            score = classifier.score(sample.content)
            if score < self.threshold:
                report.remove(sample, "low quality", detail=f" (score {score:.2f})")
                continue
            yield sample
