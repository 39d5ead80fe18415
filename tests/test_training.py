"""The trainer: it learns, steps as the textbook does, stops in time, and resumes exactly."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.data.packing import Batch
from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS, named_weights
from afm_mlx.saves import Saves
from afm_mlx.training import (
    BETAS,
    Evaluated,
    Event,
    Saved,
    Step,
    TrainingOptions,
    learning_rate,
    take,
    to_json,
    train,
)
from tests import trainee
from tests.conftest import number

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

ROOT = Path(__file__).parents[1]
NOWHERE = Saves(Path("nowhere"), writes=False)
BASE = TrainingOptions(steps=30, batch_size=4, learning_rate=5e-3)
Wrap = Callable[[Any], Any]


def losses(events: Iterator[Event] | list[Event]) -> list[float]:
    return [e.loss for e in events if isinstance(e, Step)]


def only(events: list[Event], kind: type[Any]) -> Any:
    (found,) = [e for e in events if isinstance(e, kind)]
    return found


def plain(student: Any) -> Any:
    """Next-token loss without this package's own losses."""

    def objective(batch: Batch) -> Any:
        logits = student.student(mx.array(batch.tokens))
        found = nn.losses.cross_entropy(logits.astype(mx.float32), mx.array(batch.labels))
        learn = mx.array(batch.learn.astype(np.float32))
        return mx.sum(found * learn), mx.sum(learn), {}

    return objective


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon"}, {"mixed_precision": True}], ids=str)
def test_the_loss_falls(changes: dict[str, Any]) -> None:
    options = replace(BASE, **changes)
    student = trainee.learner()
    found = losses(train(student, plain(student), trainee.batches(options), options, NOWHERE))
    assert sum(found[-3:]) < 0.75 * sum(found[:3])


def first_gradients(tmp_path: Path, **changes: Any) -> dict[str, np.ndarray[Any, Any]]:
    """What the first step makes of the gradients: a tenth of them is AdamW's first moment."""
    options = replace(BASE, steps=1, clip=1e9, **changes)
    student = trainee.learner()
    objective = trainee.objective(student)
    folder = tmp_path / "_".join(map(str, changes.values()))
    list(train(student, objective, trainee.batches(options), options, Saves(folder)))
    arrays: Any = mx.load(str(folder / "step-00000001" / "optimizer.safetensors"))
    moments = {k.split(".", 2)[2]: v for k, v in arrays.items() if k.endswith(".m")}
    return {k.removesuffix(".m"): np.array(v) / (1 - BETAS[0]) for k, v in moments.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"micro_batch": 1},
        {"micro_batch": 3},  # 3 and 1: micro-batches with unlike numbers of predictions
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
def test_gradients_are_those_of_the_mean_loss(tmp_path: Path, changes: dict[str, Any]) -> None:
    student = trainee.learner()
    batch = trainee.batches(BASE).batch(0)

    def mean(student: Any) -> mx.array:
        total = mx.array(0.0)
        for row in range(4):  # each window alone, sample by sample, without masks
            for segment in range(1, int(batch.segments[row].max()) + 1):
                sample = mx.array(batch.tokens[row][batch.segments[row] == segment])[None]
                logits = student.student(sample[:, :-1])
                total = total + mx.sum(nn.losses.cross_entropy(logits, sample[:, 1:]))
        return total / int(batch.learn.sum())

    reference = dict(tree_flatten(nn.value_and_grad(student, mean)(student)[1]))
    found = first_gradients(tmp_path, **changes)
    assert found.keys() == reference.keys()
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, np.array(reference[name]), rtol=1e-3, atol=2e-6)


def test_checkpointing_takes_less_memory(tmp_path: Path) -> None:
    """At equal gradients (above)."""
    peaks = {}
    args = replace(PRESETS["tiny"], num_hidden_layers=16)
    ones = np.ones((4, 192), np.int32)
    batch = Batch(ones, ones, ones > 0, np.arange(4))

    class Same:
        def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
            return batch

    for on in (False, True):
        student = trainee.learner(args)
        student.eval()  # as it may come; training mode is the trainer's business
        mx.eval(student.parameters())
        options = replace(BASE, steps=1, gradient_checkpointing=on)
        mx.reset_peak_memory()
        list(train(student, trainee.objective(student), Same(), options, NOWHERE))
        peaks[on] = mx.get_peak_memory()
        assert student.student.model.gradient_checkpointing is on
    assert peaks[True] < 0.7 * peaks[False]


def test_checkpointing_is_refused_where_it_would_do_nothing() -> None:
    options = replace(BASE, gradient_checkpointing=True)
    student = trainee.learner()
    objective = trainee.objective(student)
    with pytest.raises(InputError, match="gradient_checkpointing"):
        list(train(nn.Linear(2, 2), objective, trainee.batches(options), options, NOWHERE))


def test_mixed_precision_keeps_float32_weights() -> None:
    options = replace(BASE, steps=3, mixed_precision=True, evaluate_every=2)
    student = trainee.learner()
    student.update(half(student))  # loaded in half precision, say, and used
    student.eval()
    inner = plain(student)
    seen: set[mx.Dtype] = set()
    looked: list[tuple[mx.Dtype, bool]] = []

    def objective(batch: Batch) -> Any:
        seen.update(v.dtype for _, v in named_weights(student))
        assert student.student.training
        return inner(batch)

    def evaluate() -> dict[str, float]:
        looked.append((student.student.head_weight.dtype, student.student.training))
        return {"perplexity": 1.0}

    list(train(student, objective, trainee.batches(options), options, NOWHERE, evaluate))
    assert seen == {mx.bfloat16}
    assert looked == [(mx.bfloat16, False)] * 3
    assert {v.dtype for _, v in named_weights(student)} == {mx.float32}
    assert not student.student.training


def half(module: nn.Module) -> Any:
    flat: Any = {k: v.astype(mx.float16) for k, v in named_weights(module)}
    module.load_weights(list(flat.items()))
    return module.parameters()


def test_small_updates_add_up_in_mixed_precision() -> None:
    """In bfloat16 a weight of 1 cannot change by 1e-4: such steps would all be lost."""
    options = replace(BASE, steps=8, learning_rate=1e-4, final=1.0, mixed_precision=True)
    student = trainee.learner()
    norm = student.student.model.norm
    list(train(student, plain(student), trainee.batches(options), options, NOWHERE))
    moved = np.abs(np.array(norm.weight) - 1)
    assert 1e-4 < moved.mean() < 1e-3


def test_schedule() -> None:
    options = TrainingOptions(steps=100, warmup=0.1, final=0.1, learning_rate=1.0)
    rates = [learning_rate(options, i) for i in range(100)]
    np.testing.assert_allclose(rates[:11], np.arange(1, 12) / 11)
    # Half-way through the cosine (step 55 of 10..100) it is half-way between 1 and 0.1.
    np.testing.assert_allclose(rates[55], 0.55)
    assert rates[10] == max(rates) and sorted(rates[10:], reverse=True) == rates[10:]
    assert 0.1 < rates[-1] < 0.101
    assert learning_rate(options, 1000) == pytest.approx(0.1)
    assert learning_rate(TrainingOptions(steps=1, learning_rate=2.0), 0) == 2.0


def test_steps_use_the_schedule_and_count_tokens(tmp_path: Path) -> None:
    options = replace(BASE, steps=4, warmup=0.5)
    student = trainee.learner()
    dealt, saves = trainee.batches(options), Saves(tmp_path)
    events = list(train(student, trainee.objective(student), dealt, options, saves))
    steps = [e for e in events if isinstance(e, Step)]
    assert events == [*steps, Saved(4, False)] and [e.step for e in steps] == [1, 2, 3, 4]
    arrays: Any = mx.load(str(saves.path(4) / "optimizer.safetensors"))
    for part in ("states.0", "states.1"):
        assert number(arrays[f"{part}.learning_rate"]) == pytest.approx(steps[-1].learning_rate)
    assert [e.learning_rate for e in steps] == [learning_rate(options, i) for i in range(4)]
    assert [e.tokens for e in steps] == np.cumsum(
        [dealt.batch(i).num_tokens for i in range(4)]
    ).tolist()
    assert all(e.parts["cross-entropy"] == pytest.approx(e.loss) for e in steps)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    whole = first_gradients(tmp_path)
    norm = math.sqrt(sum(float((g**2).sum()) for g in whole.values()))
    options = replace(BASE, steps=1, clip=norm / 3)
    student = trainee.learner()
    objective = trainee.objective(student)
    saves = Saves(tmp_path / "clipped")
    events = list(train(student, objective, trainee.batches(options), options, saves))
    arrays: Any = mx.load(str(saves.path(1) / "optimizer.safetensors"))
    clipped = [np.array(v) / (1 - BETAS[0]) for k, v in arrays.items() if k.endswith(".m")]
    size = math.sqrt(sum(float((g**2).sum()) for g in clipped))
    assert only(events[:1], Step).grad_norm == pytest.approx(norm, rel=1e-4)
    assert size == pytest.approx(norm / 3, rel=1e-4)


def test_events_as_json() -> None:
    event = Evaluated(3, 100, 1.5, {"perplexity": math.inf, "kl": 0.5}, False)
    line = json.loads(json.dumps(to_json(event), allow_nan=False))
    assert line == {
        "event": "evaluation",
        "step": 3,
        "tokens": 100,
        "seconds": 1.5,
        "perplexity": None,
        "kl": 0.5,
        "better": False,
    }
    step = Step(1, 2, 3.0, 4.0, 5.0, 6.0, 7.0, {"kl": math.nan})
    assert to_json(step)["parts"] == {"kl": None} and to_json(step)["event"] == "step"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("clip", math.inf),
        ("warmup", 1.5),
        ("final", -0.1),
        ("micro_batch", -1),
        ("weight_decay", math.nan),
    ],
)
def test_bad_options(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        replace(BASE, **{name: value})


def test_take() -> None:
    batch = trainee.batches(BASE).batch(0)
    part = take(batch, slice(1, 3))
    assert part.tokens.shape == (2, trainee.WINDOW)
    assert part.window.tolist() == batch.window[1:3].tolist()
    np.testing.assert_array_equal(part.learn, batch.learn[1:3])


def test_the_model_computes_what_it_did(tmp_path: Path) -> None:
    """Weights that were traced for gradients must not stay in the model."""
    student = trainee.learner()
    options = replace(BASE, steps=1, gradient_checkpointing=True, learning_rate=1e-12)
    tokens = mx.array([[5, 6, 7]])
    before = student.student(tokens)
    list(train(student, trainee.objective(student), trainee.batches(options), options, NOWHERE))
    assert number(mx.abs(student.student(tokens) - before).max()) < 1e-5
