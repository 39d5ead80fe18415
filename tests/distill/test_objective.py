"""The loss of a batch: cached beside live, chunked beside plain, inside beside outside."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.data.packing import Batch, PackedCache, Windows
from afm_mlx.data.sources import Sample
from afm_mlx.data.tokens import tokenize
from afm_mlx.distill import teachers
from afm_mlx.distill.logits import LogitCache, cache_size
from afm_mlx.distill.objective import Examination, Learner, LossOptions, Objective, places
from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS, Model
from tests.conftest import number, random_model, tiny_tokenizer

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

TINY = PRESETS["tiny"]
SMALL = replace(TINY, intermediate_size=256)
TEXT = "The sea is salty because rivers carry minerals from the rocks into it. " * 8


@pytest.fixture
def windows(tmp_path: Path) -> Windows:
    store = tokenize([Sample(TEXT), Sample(TEXT[::-1])], tiny_tokenizer(), tmp_path, "key")
    return Windows.of(store, 32)


@pytest.fixture
def committee() -> teachers.Committee:
    return teachers.Committee((teachers.wrap("t", random_model(TINY), tiny_tokenizer()),))


def plain(model: Model, batch: Batch) -> mx.array:
    """Log-probabilities of the whole batch, by MLX's own functions."""
    cache: list[Any] = [PackedCache(batch.segments)] * len(model.layers)
    return nn.log_softmax(model(mx.array(batch.tokens), cache), axis=-1)


def value_and_gradients(objective: Objective, batch: Batch) -> tuple[float, dict[str, mx.array]]:
    model = objective.learner.student

    def loss(parameters: Any) -> mx.array:
        model.update(parameters)
        total, count, _ = objective(batch)
        return total / count

    value, gradients = mx.value_and_grad(loss)(model.trainable_parameters())
    from mlx.utils import tree_flatten

    return number(value), dict(tree_flatten(gradients))


def test_live_loss_and_gradients_are_plain_ones(
    windows: Windows, committee: teachers.Committee
) -> None:
    batch = windows.batch([0, len(windows) - 1])
    student = random_model(SMALL, 3)
    found, gradients = value_and_gradients(
        Objective(Learner(student), committee, LossOptions()), batch
    )
    teacher = plain(committee.teachers[0].model, batch)
    learn = mx.array(batch.learn)

    def loss(parameters: Any) -> mx.array:
        student.update(parameters)
        own = plain(student, batch)
        return mx.sum(mx.sum(mx.exp(teacher) * (teacher - own), -1) * learn) / mx.sum(learn)

    wanted, others = mx.value_and_grad(loss)(student.trainable_parameters())
    from mlx.utils import tree_flatten

    assert found == pytest.approx(number(wanted), rel=1e-4)
    for name, other in tree_flatten(others):
        assert np.allclose(np.array(gradients[name]), np.array(other), atol=2e-5), name


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("loss", ["forward-kl", "reverse-kl", "jsd", "teacher-top1"])
def test_nearly_all_tokens_cached_is_nearly_live(
    temperature: float, loss: Any, windows: Windows, committee: teachers.Committee, tmp_path: Path
) -> None:
    """258 of 259 tokens kept: float16 is all that differs."""
    cache = LogitCache(tmp_path / "logits", 258)
    list(cache.fill(committee, windows, range(len(windows)), temperature))
    batch = windows.batch([1, 2])
    student, options = random_model(SMALL, 3), LossOptions(loss=loss, temperature=temperature)
    live, _ = value_and_gradients(Objective(Learner(student), committee, options), batch)
    kept, _ = value_and_gradients(Objective(Learner(student), committee, options, cache), batch)
    assert kept == pytest.approx(live, rel=5e-3)


def test_label_weight_mixes_in_the_text(windows: Windows, committee: teachers.Committee) -> None:
    batch = windows.batch([0])
    student = Learner(random_model(SMALL, 3))

    def value(**options: Any) -> float:
        total, count, _ = Objective(student, committee, LossOptions(**options))(batch)
        return number(total / count)

    mixed = 0.7 * value() + 0.3 * value(loss="cross-entropy")
    assert value(label_weight=0.3) == pytest.approx(mixed, rel=1e-5)


def test_the_cache_goes_on_and_refuses_damage(
    windows: Windows, committee: teachers.Committee, tmp_path: Path
) -> None:
    numbers = list(range(len(windows)))
    first = LogitCache(tmp_path, 8)
    list(first.fill(committee, windows, numbers[:3], 1.0))
    again = LogitCache(tmp_path, 8)
    assert len(again) == 3 and again.missing([2, 4, 4, 1, 3]) == [4, 3]
    assert [total for _, total in again.fill(committee, windows, numbers, 1.0)][-1] == len(
        windows
    ) - 3
    indices, logs = again(windows.batch([4, 0]))
    wanted = plain(committee.teachers[0].model, windows.batch([4, 0]))
    best = mx.take_along_axis(wanted, indices, axis=-1)
    assert np.allclose(np.array(best), np.array(logs[..., :8]), atol=2e-3)
    assert mx.array_equal(indices[..., 0], mx.argmax(wanted, -1))
    assert np.allclose(np.exp(np.array(logs)).sum(-1), 1, atol=1e-3)
    size = sum(f.stat().st_size for f in tmp_path.glob("*.safetensors"))
    assert cache_size(len(windows) * 32, 8, 259) == pytest.approx(size, rel=0.2)
    with pytest.raises(InputError, match="delete it"):
        LogitCache(tmp_path, 9)
    shard = next(tmp_path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(InputError, match="delete it"):
        LogitCache(tmp_path, 8)


def test_states_and_relations_of_another_width(windows: Windows) -> None:
    """A narrower, shallower student; equal models have nothing to match."""
    narrow = random_model(
        replace(SMALL, hidden_size=64, num_attention_heads=2, num_key_value_heads=1,
                num_hidden_layers=4), 3
    )  # fmt: skip
    teacher = random_model(replace(TINY, num_hidden_layers=8))
    committee = teachers.Committee((teachers.wrap("t", teacher, tiny_tokenizer()),))
    options = LossOptions(hidden_weight=1.0, relation_weight=1.0)
    learner = Learner(narrow, 128)
    objective = Objective(learner, committee, options)
    total, _, parts = objective(windows.batch([0]))
    inside = number(parts["hidden"]) + number(parts["relations"])
    assert inside > 0
    assert number(total) == pytest.approx(number(parts["forward-kl"]) + inside, rel=1e-4)

    same = Objective(Learner(teacher), committee, options)(windows.batch([0]))[2]
    assert number(same["hidden"]) == pytest.approx(0, abs=1e-3)
    assert number(same["relations"]) == pytest.approx(0, abs=1e-2)

    def loss(parameters: Any) -> mx.array:
        learner.update(parameters)
        return objective(windows.batch([0]))[0]

    gradients: Any = mx.grad(loss)(learner.trainable_parameters())
    assert all(number(mx.max(mx.abs(m["weight"]))) > 0 for m in gradients["maps"])


def test_places_are_spread_to_the_last_layer() -> None:
    assert places(30) == [7, 14, 21, 29] and places(4) == [0, 1, 2, 3]


def test_states_need_a_teacher_that_runs(committee: teachers.Committee) -> None:
    learner = Learner(random_model(SMALL))
    with pytest.raises(InputError, match="one teacher"):
        Objective(learner, None, LossOptions(hidden_weight=1.0))


def test_examination(windows: Windows, committee: teachers.Committee) -> None:
    """Figures of plain formulas in float64; the teacher agrees with itself."""
    student = random_model(SMALL, 3)
    train, held = windows.split(3)
    exam = Examination(held, committee, at_once=2)
    found = exam(student)
    batch = held.batch(np.concatenate(held.numbers))
    own, theirs = (
        np.array(plain(m, batch), np.float64) for m in (student, committee.teachers[0].model)
    )
    learn = batch.learn
    nll = -np.take_along_axis(own, batch.labels[..., None], -1)[..., 0]
    assert found["perplexity"] == pytest.approx(np.exp(nll[learn].mean()), rel=1e-4)
    kl = (np.exp(theirs) * (theirs - own)).sum(-1)[learn].mean()
    assert found["kl"] == pytest.approx(kl, rel=1e-3)
    same = (own.argmax(-1) == theirs.argmax(-1))[learn].mean()
    assert found["agreement"] == pytest.approx(same)
    teacher = exam(committee.teachers[0].model)
    assert teacher["kl"] == pytest.approx(0, abs=1e-5) and teacher["agreement"] == 1
    assert exam.of_committee() == pytest.approx(teacher["perplexity"], rel=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"label_weight": 1.5}, {"hidden_weight": -1.0}]
)
def test_ranges(wrong: Any) -> None:
    with pytest.raises(InputError):
        LossOptions(**wrong)
