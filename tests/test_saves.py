"""Saves are whole or not there, keep newest and best, and say what is wrong with them."""

import json
import math
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx import files
from afm_mlx import saves as saves_module
from afm_mlx.errors import InputError
from afm_mlx.model import Model, named_weights
from afm_mlx.progress import State
from afm_mlx.saves import FILES, Saves, state_of, weights_of
from afm_mlx.training import TrainingOptions, make_optimizer
from tests.trainee import ARGS

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_map

STATE = State(3, 600, 1.25, best=2.5, best_step=3, losses=(0.1, 1 / 3), lowest=math.inf)


def trained(name: Any = "adamw", seed: int = 0) -> tuple[Model, optim.Optimizer]:
    """A model and an optimiser that took two steps on made-up gradients."""
    mx.random.seed(seed)
    model = Model(ARGS)
    optimizer = make_optimizer(TrainingOptions(optimizer=name))
    optimizer.init(model.trainable_parameters())
    for _ in range(2):
        gradients = tree_map(lambda p: mx.random.normal(p.shape), model.trainable_parameters())
        optimizer.learning_rate = 0.01
        optimizer.update(model, gradients)
    mx.eval(model.parameters(), optimizer.state)
    return model, optimizer


def step_on(model: Model, optimizer: optim.Optimizer) -> dict[str, mx.array]:
    """Weights after one more step."""
    mx.random.seed(9)
    gradients = tree_map(lambda p: mx.random.normal(p.shape), model.trainable_parameters())
    optimizer.update(model, gradients)
    return weights_of(model)


def equal(a: dict[str, mx.array], b: dict[str, mx.array]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and mx.array_equal(a[k], b[k]) for k in a
    )


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_all_comes_back(tmp_path: Path, name: str) -> None:
    """Weights, moments, step and learning rate, to the last bit; the next step is the same."""
    model, optimizer = trained(name)
    saves = Saves(tmp_path / "deep" / "run")
    saves.save(model, optimizer, STATE)
    other, fresh = trained(name, seed=5)
    assert saves.load(other, fresh) == STATE
    assert equal(weights_of(other), weights_of(model))
    assert equal(state_of(fresh), state_of(optimizer))
    assert equal(step_on(other, fresh), step_on(model, optimizer))


def test_only_what_is_trained_is_saved(tmp_path: Path) -> None:
    """Adapters: the frozen weights stay out; optimiser states of a part of the layers return."""
    model, _ = trained()
    model.freeze()
    model.layers[1].mlp.unfreeze()
    optimizer = make_optimizer(TrainingOptions())
    optimizer.init(model.trainable_parameters())
    optimizer.update(model, tree_map(mx.ones_like, model.trainable_parameters()))
    saves = Saves(tmp_path)
    saves.save(model, optimizer, STATE)
    kept: Any = mx.load(str(saves.path(3) / "model.safetensors"))
    assert set(kept) == {f"model.layers.1.mlp.{n}_proj.weight" for n in ("gate", "up", "down")}
    fresh = make_optimizer(TrainingOptions())
    fresh.init(model.trainable_parameters())
    saves.load(model, fresh)
    gradients = tree_map(mx.ones_like, model.trainable_parameters())
    expected: Any = optimizer.apply_gradients(gradients, model.trainable_parameters())
    found: Any = fresh.apply_gradients(gradients, model.trainable_parameters())
    weights = [x["model"]["layers"][1]["mlp"]["up_proj"]["weight"] for x in (expected, found)]
    assert mx.array_equal(*weights)


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    model, optimizer = trained()
    saves = Saves(tmp_path)
    for step, best in ((0, 0), (2, 2), (4, 2), (6, 2)):
        saves.save(model, optimizer, State(step, best=1.0, best_step=best))
    assert saves.steps() == [2, 6]
    found = [saves.load(model, optimizer), saves.load(model, None, best=True)]
    assert [s.step for s in found if s] == [6, 2]
    saves.go_back(2)
    assert saves.steps() == [2]
    assert {p.name for p in tmp_path.iterdir()} == {"step-00000002"}


def test_without_evaluations_the_newest_counts_as_best(tmp_path: Path) -> None:
    """``best_step`` is 0 then, and there may be a save of step 0."""
    model, optimizer = trained()
    saves = Saves(tmp_path)
    saves.save(model, optimizer, State(0))
    saves.save(model, optimizer, State(5))
    found = saves.load(model, None, best=True)
    assert found is not None and found.step == 5


def test_the_same_step_twice(tmp_path: Path) -> None:
    model, optimizer = trained()
    saves = Saves(tmp_path)
    saves.save(model, optimizer, STATE)
    saves.save(model, optimizer, replace(STATE, tokens=7))
    assert saves.load(model, optimizer) == replace(STATE, tokens=7)


@pytest.mark.parametrize("missing", FILES)
def test_a_torn_save_is_not_there(tmp_path: Path, missing: str) -> None:
    model, optimizer = trained()
    saves = Saves(tmp_path)
    saves.save(model, optimizer, replace(STATE, step=1, best_step=1))
    shutil.copytree(saves.path(1), saves.path(4))
    (saves.path(4) / missing).unlink()
    shutil.copytree(saves.path(1), tmp_path / ".step.killed")
    (tmp_path / "step-00000009").write_text("no folder")
    (tmp_path / "notes.txt").write_text("mine")
    assert saves.steps() == [1]
    found = saves.load(model, optimizer)
    assert found is not None and found.step == 1
    saves.clean()
    assert not (tmp_path / ".step.killed").exists() and (tmp_path / "notes.txt").exists()
    saves.save(model, optimizer, replace(STATE, step=4))  # over the torn one
    assert saves.steps() == [4]


def test_no_moment_without_a_whole_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill would leave is looked at before and after everything that changes the disk."""
    model, optimizer = trained()
    saves = Saves(tmp_path)
    saves.save(model, optimizer, State(1))
    seen: list[list[int]] = []

    def watched(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            look()
            if function is delete:  # file by file: never under the name of a save
                assert not Path(arguments[0]).name.startswith("step-")
            result = function(*arguments, **named)
            look()
            return result

        return call

    delete = shutil.rmtree

    def look() -> None:
        steps = saves.steps()
        seen.append(steps)
        arrays = mx.load(str(saves.path(steps[-1]) / "optimizer.safetensors"))
        mx.eval(arrays)

    monkeypatch.setattr(Path, "rename", watched(Path.rename))
    monkeypatch.setattr(shutil, "rmtree", watched(shutil.rmtree))
    monkeypatch.setattr(saves_module, "flush", watched(files.flush))
    saves.save(model, optimizer, State(2))
    assert [1] in seen and [1, 2] in seen and seen[-1] == [2]
    assert [] not in seen


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes: a write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk(tmp_path: Path) -> None:
    """One line says so, nothing half-written stays, and the save before is as it was."""
    model, optimizer = trained()
    saves = Saves(tmp_path)
    saves.save(model, optimizer, STATE)
    with pytest.raises(InputError, match="the save of step 4 failed .*free some space") as caught:
        with small_disk(20_000):
            saves.save(model, optimizer, replace(STATE, step=4))
    assert "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"step-00000003"}
    assert saves.load(model, optimizer) == STATE


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model, optimizer = trained()
    with pytest.raises(InputError, match="the save of step 3 failed"):
        Saves(tmp_path / "file" / "run").save(model, optimizer, STATE)


@pytest.mark.parametrize("name", FILES)
def test_damaged_saves(tmp_path: Path, name: str) -> None:
    model, optimizer = trained()
    before = {k: np.array(v) for k, v in named_weights(model)}
    saves = Saves(tmp_path)
    saves.save(model, optimizer, STATE)
    file = saves.path(3) / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match="step-00000003 is damaged .*delete it"):
        saves.load(model, optimizer)
    for key, value in named_weights(model):
        np.testing.assert_array_equal(np.array(value), before[key])


def test_saves_of_another_run(tmp_path: Path) -> None:
    model, optimizer = trained()
    saves = Saves(tmp_path)
    saves.save(model, optimizer, STATE)
    with pytest.raises(InputError, match="another model or optimiser"):
        saves.load(*trained("muon"))
    other = Model(replace(ARGS, intermediate_size=32))
    with pytest.raises(InputError, match="another model or optimiser"):
        saves.load(other, None)
    values = json.loads((saves.path(3) / "state.json").read_text())
    (saves.path(3) / "state.json").write_text(json.dumps({**values, "new": 1}))
    with pytest.raises(InputError, match="damaged"):
        saves.load(model, optimizer)


def test_nothing_is_written_where_it_must_not(tmp_path: Path) -> None:
    model, optimizer = trained()
    nowhere = Saves(tmp_path / "none", writes=False)
    nowhere.save(model, optimizer, STATE)
    nowhere.clean()
    assert nowhere.load(model, optimizer) is None and not (tmp_path / "none").exists()
    assert Saves(tmp_path / "none").load(nn.Linear(2, 2), None) is None
