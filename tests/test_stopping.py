"""How runs end and go on: best weights, early stops, lost numbers, kills."""

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.data.packing import Batch
from afm_mlx.model import named_weights
from afm_mlx.progress import STRETCH
from afm_mlx.saves import Saves
from afm_mlx.training import (
    Evaluated,
    Event,
    Resumed,
    Saved,
    Step,
    Stopped,
    to_json,
    train,
)
from tests import trainee
from tests.test_training import BASE, NOWHERE, losses, only

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

ROOT = Path(__file__).parents[1]
Wrap = Callable[[Any], Any]


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
