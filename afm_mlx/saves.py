"""Saves of a training run: whole or not there, whatever ends the process.

A save is a folder ``step-00000100`` with ``model.safetensors``, ``optimizer.safetensors`` and
``state.json``. It is written under a temporary name, flushed to disk and renamed; only then
are older ones renamed and deleted. The newest and the best one are kept.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from afm_mlx.errors import InputError, first_line
from afm_mlx.files import flush
from afm_mlx.progress import State

import mlx.core as mx
import mlx.optimizers as optim
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

_NAME = re.compile(r"step-(\d{8,})")
_WEIGHTS, _OPTIMIZER, _STATE = FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


class Saves:
    """The saves in ``folder``; where ``writes`` is false there is none, and none is made."""

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.folder, self.writes = Path(folder), writes

    def steps(self) -> list[int]:
        """Steps after which there is a whole save, oldest first."""
        if not self.writes or not self.folder.is_dir():
            return []
        found = [_NAME.fullmatch(p.name) for p in self.folder.iterdir()]
        steps = sorted(int(m[1]) for m in found if m)
        return [s for s in steps if all((self.path(s) / name).is_file() for name in FILES)]

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08}"

    def save(self, model: nn.Module, optimizer: optim.Optimizer, state: State) -> None:
        """Write all that :meth:`load` needs; drop the saves that are neither newest nor best.

        Raises:
            InputError: the disk is full or not writable; older saves are as they were.
        """
        if not self.writes:
            return
        temporary: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".step.", dir=self.folder))
            mx.save_safetensors(str(temporary / _WEIGHTS), weights_of(model))
            mx.save_safetensors(str(temporary / _OPTIMIZER), state_of(optimizer))
            (temporary / _STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")
            for path in (*temporary.iterdir(), temporary):
                flush(path)
            self._drop(state.step)  # damaged, or it would have been gone on from
            temporary.chmod(0o755)
            temporary.rename(self.path(state.step))
            flush(self.folder)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"the save of step {state.step} failed ({first_line(error)}): free some space and"
                " run the same command again, it goes on from the save before"
            ) from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        for step in self.steps():
            if step not in (state.step, state.best_step):
                self._drop(step)

    def load(
        self, model: nn.Module, optimizer: optim.Optimizer | None, best: bool = False
    ) -> State | None:
        """Put the newest save, or the best one, into ``model`` and ``optimizer``.

        Raises:
            InputError: the save is damaged, or does not fit the model or the optimiser.
        """
        steps = self.steps()
        if not steps:
            return None
        state = self._state(steps[-1])
        if best and state.best is not None and state.best_step in steps:
            state = self._state(state.best_step)
        folder = self.path(state.step)
        weights = _read(folder / _WEIGHTS)
        arrays = {} if optimizer is None else _read(folder / _OPTIMIZER)
        own = {} if optimizer is None else state_of(optimizer)
        if not (_alike(weights, weights_of(model)) and _alike(arrays, own)):
            raise InputError(
                f"{folder} is of a run with another model or optimiser: choose another folder, or"
                f" delete {self.folder} to begin anew"
            )
        model.load_weights(list(weights.items()), strict=False)
        if optimizer is not None:
            optimizer.state = tree_unflatten(list(arrays.items()))
        return state

    def go_back(self, step: int) -> None:
        """Forget all saves after ``step``: what led there is not to be gone on from."""
        for later in self.steps():
            if later > step:
                self._drop(later)

    def clean(self) -> None:
        """Delete what an interrupted run left unfinished."""
        if self.writes and self.folder.is_dir():
            for path in self.folder.glob(".step.*"):
                shutil.rmtree(path, ignore_errors=True)

    def _drop(self, step: int) -> None:
        """Delete a save; it loses its name first, so that none is ever there in part."""
        if self.path(step).exists():
            doomed = Path(tempfile.mkdtemp(prefix=".step.", dir=self.folder))
            self.path(step).rename(doomed / "old")
            shutil.rmtree(doomed, ignore_errors=True)

    def _state(self, step: int) -> State:
        folder = self.path(step)
        try:
            return State.from_json(json.loads((folder / _STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _damaged(folder, error) from error


def weights_of(model: nn.Module) -> dict[str, mx.array]:
    """Trainable weights by name, in the order of the names."""
    flat: Any = tree_flatten(model.trainable_parameters())
    return dict(sorted(flat))


def state_of(optimizer: optim.Optimizer) -> dict[str, mx.array]:
    """Arrays of an optimiser by name, in the order of the names."""
    flat: Any = tree_flatten(optimizer.state)
    return dict(sorted(flat))


def _read(path: Path) -> dict[str, mx.array]:
    try:
        arrays: Any = mx.load(str(path))
        mx.eval(arrays)
    except (OSError, RuntimeError) as error:
        raise _damaged(path.parent, error) from error
    return arrays


def _alike(a: Mapping[str, mx.array], b: Mapping[str, mx.array]) -> bool:
    return {k: (v.shape, v.dtype) for k, v in a.items()} == {
        k: (v.shape, v.dtype) for k, v in b.items()
    }


def _damaged(folder: Path, error: Exception) -> InputError:
    return InputError(
        f"{folder} is damaged ({first_line(error)}): delete it, and the run goes on from an older"
        " save"
    )
