"""The classifier: gradients, what it learns, files."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from afm_mlx.data.filters import FilterReport, run
from afm_mlx.data.quality import (
    QualityClassifier,
    QualityFilter,
    QualityTraining,
    batch,
    features,
    loss_and_gradient,
)
from afm_mlx.data.sources import Sample
from afm_mlx.errors import InputError, ModelError

import numpy as np
import pytest
from safetensors.numpy import save_file

SENTENCES = (
    "The {0} that stood beside the {1} had been there for many years.",
    "When the {0} was finished, we walked back to the {1} and waited.",
    "Nobody in the {1} could say where the old {0} had come from.",
    "She put the {0} on the table and asked what it was for.",
    "It is not the {0} that matters, but what one does with it.",
    "There was a {0} in front of the {1}, and behind it a small {2}.",
    "They told us that the {2} would be closed until the end of the week.",
    "If you look at the {0} from the {1}, you can see how it was made.",
    "He has never been to the {2}, although he lives close to it.",
    "As far as I know, the {1} was built before the {2} and after the {0}.",
)
SEEN = "bridge garden letter harbour window kitchen clock market boat river tower ladder".split()
UNSEEN = "lamp valley basket station violin orchard museum tunnel kettle meadow chapel pier".split()
MENU = (
    "Home About Contact Login Subscribe Newsletter Cookies Privacy Policy Terms Share Tweet Next"
    " Previous Read more Click here Add to cart Download All rights reserved"
).split()


def prose(rng: random.Random, nouns: Sequence[str]) -> str:
    return " ".join(s.format(*rng.sample(nouns, 3)) for s in rng.sample(SENTENCES, 4))


def shuffled(rng: random.Random, nouns: Sequence[str]) -> str:
    words = prose(rng, nouns).split()
    rng.shuffle(words)
    return " ".join(words)


def garbled(rng: random.Random, nouns: Sequence[str]) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    text = prose(rng, nouns)
    return "".join(rng.choice(letters) if rng.random() < 0.2 else c for c in text)


def boilerplate(rng: random.Random, nouns: Sequence[str]) -> str:
    return " | ".join(rng.choices([*MENU, *nouns], k=40))


BAD: tuple[Callable[[random.Random, Sequence[str]], str], ...] = (shuffled, garbled, boilerplate)
TRAINING = QualityTraining(buckets=2**14, epochs=10)


def texts(seed: int, nouns: Sequence[str], n: int) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    return [prose(rng, nouns) for _ in range(n)], [BAD[i % 3](rng, nouns) for i in range(n)]


@pytest.fixture(scope="module")
def classifier() -> QualityClassifier:
    return QualityClassifier.train(*texts(0, SEEN, 150), TRAINING)


def auc(good: list[float], bad: list[float]) -> float:
    """Chance that a good text scores above a bad one."""
    return float(np.mean([(g > b) + (g == b) / 2 for g in good for b in bad]))


@pytest.mark.parametrize("make", BAD)
def test_tells_prose_from(
    make: Callable[[random.Random, Sequence[str]], str], classifier: QualityClassifier
) -> None:
    # New sentences about things that no training text mentions.
    rng = random.Random(1)
    good = [classifier.score(prose(rng, UNSEEN)) for _ in range(50)]
    bad = [classifier.score(make(rng, UNSEEN)) for _ in range(50)]
    assert auc(good, bad) > 0.95
    assert np.mean(good) > 0.6 > 0.4 > np.mean(bad)


def test_gradients_by_finite_differences() -> None:
    rng = np.random.default_rng(0)
    buckets, step = 50, 1e-6
    x = batch([features(text, buckets) for text in ("the old boat", "a b a b c", "", "the the")])
    labels, importance = np.array([1.0, 0.0, 1.0, 0.0]), np.array([1.0, 2.0, 0.5, 1.0])
    weights, bias = rng.normal(size=buckets), 0.3

    def loss(weights: np.ndarray, bias: float) -> float:
        return loss_and_gradient(weights, bias, x, labels, importance, 0.01)[0]

    _, by_weights, by_bias = loss_and_gradient(weights, bias, x, labels, importance, 0.01)
    for i, change in enumerate(np.eye(buckets) * step):
        slope = (loss(weights + change, bias) - loss(weights - change, bias)) / (2 * step)
        assert slope == pytest.approx(by_weights[i], abs=1e-8)
    slope = (loss(weights, bias + step) - loss(weights, bias - step)) / (2 * step)
    assert slope == pytest.approx(by_bias, abs=1e-8)


def test_features_are_words_and_pairs() -> None:
    columns, values = features("The boat, the BOAT 12 34", 2**20)
    # the 2, boat 2, comma 1, number 2; the-boat 2, boat-comma, comma-the, boat-number and
    # number-number once each
    assert sorted(np.round(values / values.min())) == [1, 1, 1, 1, 1, 2, 2, 2, 2]
    assert np.linalg.norm(values) == pytest.approx(1)
    assert len(set(columns)) == 9
    assert features("", 8)[0].size == 0


def test_unequal_numbers_count_equally() -> None:
    # With ten times as many bad texts everything scored below one half.
    good, bad = texts(0, SEEN, 100)
    few = QualityClassifier.train(good[:10], bad, TRAINING)
    assert np.mean([few.score(text) > 0.5 for text in texts(1, SEEN, 30)[0]]) > 0.8


def test_training_is_deterministic() -> None:
    good, bad = texts(0, SEEN, 20)
    first, second = (QualityClassifier.train(iter(good), iter(bad), TRAINING) for _ in range(2))
    assert np.array_equal(first.weights, second.weights) and first.bias == second.bias
    other = QualityClassifier.train(good, bad, QualityTraining(buckets=2**14, epochs=10, seed=1))
    assert not np.array_equal(first.weights, other.weights)


def test_round_trip(tmp_path: Path, classifier: QualityClassifier) -> None:
    path = tmp_path / "new" / "quality.safetensors"
    classifier.save(path)
    classifier.save(path)  # over the old one
    loaded = QualityClassifier.load(path)
    for text in (*texts(2, SEEN, 3)[0], ""):
        assert loaded.score(text) == classifier.score(text)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_unusable_files(tmp_path: Path, classifier: QualityClassifier) -> None:
    path = tmp_path / "quality.safetensors"
    with pytest.raises(ModelError, match="train the classifier again"):
        QualityClassifier.load(path)
    classifier.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="train the classifier again"):
        QualityClassifier.load(path)
    save_file({"weights": classifier.weights, "bias": np.zeros(1)}, path)
    with pytest.raises(ModelError, match="no quality classifier"):
        QualityClassifier.load(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        classifier.save(tmp_path / "file" / "quality.safetensors")


def test_filter(tmp_path: Path, classifier: QualityClassifier) -> None:
    classifier.save(tmp_path / "q.safetensors")
    good, bad = texts(3, UNSEEN, 20)
    samples = [
        Sample(text, source=f"{name}:{i}")
        for name, kind in (("good", good), ("bad", bad))
        for i, text in enumerate(kind)
    ]
    report = FilterReport()
    kept = list(run(samples, [QualityFilter(tmp_path / "q.safetensors")], report))
    assert [s.source for s in kept] == [
        s.source for s in samples if classifier.score(s.content) >= 0.5
    ]
    assert 15 <= len(kept) <= 25
    assert report.steps[0].reasons == {"low quality": 40 - len(kept)}
    assert "low quality (score 0." in report.steps[0].examples[0]


def test_bad_settings() -> None:
    with pytest.raises(InputError, match="no good texts"):
        QualityClassifier.train([], ["x"])
    with pytest.raises(InputError, match="epochs"):
        QualityTraining(epochs=0)
    with pytest.raises(InputError, match="l2"):
        QualityTraining(l2=1.0)
    with pytest.raises(InputError, match="threshold"):
        QualityFilter(Path("x"), threshold=2)
