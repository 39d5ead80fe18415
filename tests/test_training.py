"""The trainer: it learns, steps as the textbook does, stops in time, and resumes exactly."""

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.data.packing import Batch
from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS, named_weights
from afm_mlx.progress import STRETCH
from afm_mlx.saves import Saves
from afm_mlx.training import (
    BETAS,
    Evaluated,
    Event,
    Resumed,
    Saved,
    Step,
    Stopped,
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


def run(
    tmp_path: Path, figures: list[float], wrap: Wrap = lambda x: x, **changes: Any
) -> tuple[list[Event], Any]:
    """Train with made-up evaluations; returns the events and the learner."""
    options = replace(BASE, evaluate_every=2, **changes)
    student = trainee.learner()
    said = iter(figures)
    events = train(
        student,
        wrap(trainee.objective(student)),
        trainee.batches(options),
        options,
        Saves(tmp_path),
        lambda: {"perplexity": next(said)},
    )
    return list(events), student


def saved_weights(tmp_path: Path, step: int) -> Any:
    return mx.load(str(Saves(tmp_path).path(step) / "model.safetensors"))


def has_weights(student: nn.Module, weights: Any) -> bool:
    return all(mx.array_equal(v, weights[k]) for k, v in named_weights(student))


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    events, student = run(tmp_path, [9.0, 5.0, 4.0, 6.0, 7.0, 4.5], steps=10)
    assert [e.better for e in events if isinstance(e, Evaluated)] == [True] * 3 + [False] * 3
    assert [(e.step, e.best) for e in events if isinstance(e, Saved)] == [
        (0, True),
        (2, True),
        (4, True),
        (10, False),
    ]
    assert Saves(tmp_path).steps() == [4, 10]
    assert has_weights(student, saved_weights(tmp_path, 4))
    assert not has_weights(student, saved_weights(tmp_path, 10))
    # Finished: the same command only puts the best weights into the model.
    events, student = run(tmp_path, [], steps=10)
    assert events == [Resumed(10)] and has_weights(student, saved_weights(tmp_path, 4))
    events, student = run(tmp_path, [], steps=5)  # fewer steps than were taken
    assert events == [Resumed(10)] and has_weights(student, saved_weights(tmp_path, 4))
    events, student = run(tmp_path, [3.0], steps=12)  # more
    assert len(losses(events)) == 2 and has_weights(student, saved_weights(tmp_path, 12))


def test_early_stop(tmp_path: Path) -> None:
    figures = [9.0, 5.0, 5.0, 4.9999, 6.0]  # no better by less than a ten-thousandth
    events, student = run(tmp_path, figures, steps=20, patience=3)
    stopped = only(events, Stopped)
    assert stopped.step == 8 and "no better perplexity in 3 evaluations" in stopped.reason
    assert has_weights(student, saved_weights(tmp_path, 2))
    # Once stopped it stays so: a resumed run must not take a step first.
    events, student = run(tmp_path, [], steps=20, patience=3)
    assert [type(e) for e in events] == [Resumed, Stopped]
    assert has_weights(student, saved_weights(tmp_path, 2))
    events, _ = run(tmp_path, [4.0], steps=10)  # without patience it goes on
    assert len(losses(events)) == 2


def test_time_is_up(tmp_path: Path) -> None:
    """With an evaluation and a save, wherever the run is, and the best weights at the end."""
    options = replace(BASE, steps=10, evaluate_every=100, save_every=100)
    figures = iter([9.0, 9.5, 3.0])

    def events(seconds: float) -> tuple[list[Event], Any]:
        student = trainee.learner()
        objective, dealt = trainee.objective(student), trainee.batches(options)
        said = train(
            student,
            objective,
            dealt,
            options,
            Saves(tmp_path),
            lambda: {"perplexity": next(figures)},
            seconds=seconds,
        )
        return list(said), student

    found, student = events(1e-9)
    kinds = [type(e) for e in found]
    assert kinds == [Evaluated, Saved, Step, Evaluated, Saved, Stopped]
    assert "run it again to go on" in only(found, Stopped).reason
    assert has_weights(student, saved_weights(tmp_path, 0))
    found, student = events(1000.0)
    assert found[0] == Resumed(1) and len(losses(found)) == 9
    assert has_weights(student, saved_weights(tmp_path, 10))


def spoiled(at: int, factor: float) -> Wrap:
    """The objective, with losses multiplied from its call number ``at`` on, counted from 0."""

    def wrap(objective: Any) -> Any:
        calls = iter(range(1000))

        def call(batch: Batch) -> Any:
            total, count, parts = objective(batch)
            return total * (factor if next(calls) >= at else 1.0), count, parts

        return call

    return wrap


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_number_stops_with_the_best_weights(tmp_path: Path, value: float) -> None:
    events, student = run(tmp_path, [9.0, 5.0, 6.0], spoiled(5, value), steps=20, save_every=1)
    stopped = only(events, Stopped)
    assert stopped.step == 5 and "\n" not in stopped.reason
    assert "step 6 gave no number" in stopped.reason and "after step 2" in stopped.reason
    assert "lower the learning rate" in stopped.reason
    assert len(losses(events)) == 5
    assert has_weights(student, saved_weights(tmp_path, 2))
    # The newer saves would lead to the same place again: the next run begins at the best one.
    events, _ = run(tmp_path, [4.0, 3.0], steps=6, learning_rate=1e-4)
    assert events[0] == Resumed(2) and len(losses(events)) == 4


def test_no_number_without_evaluations_or_saves() -> None:
    options = replace(BASE, steps=5)
    student = trainee.learner()
    objective = spoiled(2, math.nan)(trainee.objective(student))
    events = list(train(student, objective, trainee.batches(options), options, NOWHERE))
    assert only(events, Stopped).reason == (
        "step 3 gave no number (loss nan, norm nan): lower the learning rate and run it again"
    )
    assert all(np.isfinite(np.array(v)).all() for _, v in named_weights(student))


def test_an_evaluation_without_a_number_stops(tmp_path: Path) -> None:
    """NaN compares as no better, and would be saved as the newest weights."""
    events, student = run(tmp_path, [9.0, 5.0, math.nan], steps=8, save_every=4)
    stopped = only(events, Stopped)
    assert stopped.step == 4 and "the perplexity is no number" in stopped.reason
    assert Saves(tmp_path).steps() == [2]
    assert has_weights(student, saved_weights(tmp_path, 2))


def test_divergence_stops_with_the_best_weights(tmp_path: Path) -> None:
    figures = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, *([6.0] * 9)]
    events, student = run(tmp_path, figures, spoiled(STRETCH + 2, 6.0), steps=25)
    stopped = only(events, Stopped)
    assert STRETCH + 2 < stopped.step <= 2 * STRETCH + 2
    assert "the loss rose from" in stopped.reason and "after step 10" in stopped.reason
    assert has_weights(student, saved_weights(tmp_path, 10))


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


SETTINGS: dict[str, Any] = {
    "steps": 40,
    "evaluate_every": 4,
    "save_every": 3,
    "noisy": True,
    "micro_batch": 3,
}


def read(lines: list[str]) -> dict[tuple[str, int], dict[str, Any]]:
    """Steps and evaluations by number; what is said twice must be the same both times."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for line in map(json.loads, lines):
        for clock in ("seconds", "tokens_per_second"):
            line.pop(clock, None)
        if line["event"] in ("step", "evaluation"):
            assert found.setdefault((line["event"], line["step"]), line) == line
    return found


def test_killed_runs_go_on_exactly(tmp_path: Path) -> None:
    """SIGKILL at moments of no choice; then metrics and weights are those of a quiet run.

    The loss has random numbers in it: their state has to come back, too.
    """
    whole = [json.dumps(to_json(e)) for e in trainee.events(tmp_path / "whole", **SETTINGS)]
    rng = np.random.default_rng()
    lines: list[str] = []
    command = [sys.executable, "-m", "tests.trainee"]
    argument = json.dumps({"folder": str(tmp_path / "killed"), **SETTINGS})
    for attempt in range(4):
        with subprocess.Popen(
            [*command, argument], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for _ in range(int(rng.integers(1, 25))):
                lines += [process.stdout.readline()]
            time.sleep(rng.random() * 0.05)
            if attempt < 3:
                process.send_signal(signal.SIGKILL)
            rest, _ = process.communicate()
            lines += [x for x in rest.splitlines(keepends=True) if x.endswith("\n")]
    lines = [x for x in lines if x.strip()]
    assert read(lines) == read(whole)
    steps = [json.loads(x)["step"] for x in lines if json.loads(x)["event"] == "step"]
    assert len(steps) <= 40 + 3 * 3  # at most the steps since the last save are lost
    for path in sorted((tmp_path / "whole").rglob("*.safetensors")):
        a: Any = mx.load(str(path))
        b: Any = mx.load(str(tmp_path / "killed" / path.relative_to(tmp_path / "whole")))
        assert a.keys() == b.keys() and all(mx.array_equal(a[k], b[k]) for k in a)
    assert not list((tmp_path / "killed").glob(".*"))


def test_the_model_computes_what_it_did(tmp_path: Path) -> None:
    """Weights that were traced for gradients must not stay in the model."""
    student = trainee.learner()
    options = replace(BASE, steps=1, gradient_checkpointing=True, learning_rate=1e-12)
    tokens = mx.array([[5, 6, 7]])
    before = student.student(tokens)
    list(train(student, trainee.objective(student), trainee.batches(options), options, NOWHERE))
    assert number(mx.abs(student.student(tokens) - before).max()) < 1e-5
