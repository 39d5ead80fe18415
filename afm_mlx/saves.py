"""Saves of a training run: whole or not there, whatever ends the process.

A save is a folder ``step-00000100`` with ``model.safetensors``, ``optimizer.safetensors`` and
``state.json``. It is written under a temporary name, flushed to disk and renamed; only then
are older ones deleted. The newest and the best one are kept.
"""

import json
import math
import os
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afm_mlx.errors import InputError, first_line

import mlx.core as mx
import mlx.optimizers as optim
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

if TYPE_CHECKING:
    from afm_mlx.training import Saved

_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class State:
    """Where a run stands after ``step`` steps.

    Attributes:
        seconds: time spent so far, over all resumed parts.
        best: lowest value of the figure that selects, and the step that had it.
        waited: evaluations since then.
        losses: the last few, and ``lowest``, the best mean of a stretch of them.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    losses: tuple[float, ...] = ()
    lowest: float = math.inf


class Saves:
    """The saves in ``folder``; ``writes`` is false for all processes but the first."""

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.folder, self.writes = Path(folder), writes

    def steps(self) -> list[int]:
        """Steps after which there is a whole save, oldest first."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(p.name) for p in self.folder.iterdir())
        return sorted(int(m[1]) for m in found if m)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08}"

    def save(self, model: nn.Module, optimizer: optim.Optimizer, state: State) -> "Saved":
        """Write a save of everything that :meth:`load` needs.

        Raises:
            InputError: the disk is full or not writable; older saves are as they were.
        """
        from afm_mlx.training import Saved

        best = state.best is not None and state.best_step == state.step
        if not self.writes:
            return Saved(state.step, best)
        temporary: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".step.", dir=self.folder))
            weights: Any = tree_flatten(model.trainable_parameters())
            mx.save_safetensors(str(temporary / "model.safetensors"), dict(weights))
            moments: Any = tree_flatten(optimizer.state)
            arrays = dict(moments) | {"random": _random()[0]}
            mx.save_safetensors(str(temporary / "optimizer.safetensors"), arrays)
            (temporary / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
            for file in temporary.iterdir():
                _flush(file)
            target = self.path(state.step)
            if target.exists():  # saved before a resumed run came here again
                shutil.rmtree(target)
            temporary.rename(target)
            _flush(self.folder)
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
                shutil.rmtree(self.path(step), ignore_errors=True)
        return Saved(state.step, best)

    def load(
        self, model: nn.Module, optimizer: optim.Optimizer, best: bool = False
    ) -> State | None:
        """Put the newest save, or the best one, into ``model`` and ``optimizer``.

        Raises:
            InputError: the save does not fit the model.
        """
        steps = self.steps()
        if not steps:
            return None
        state = self._state(steps[-1])
        if best and state.best_step in steps:
            state = self._state(state.best_step)
        folder = self.path(state.step)
        try:
            weights: Any = mx.load(str(folder / "model.safetensors"))
            own: Any = dict(tree_flatten(model.trainable_parameters()))
            if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.items()}:
                raise ValueError("other weights")
            arrays: Any = mx.load(str(folder / "optimizer.safetensors"))
            model.load_weights(list(weights.items()), strict=False)
            _random()[0] = arrays.pop("random")
            optimizer.state = tree_unflatten(list(arrays.items()))
            mx.eval(model.parameters(), optimizer.state)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"{folder} does not fit this run ({first_line(error)}): delete {self.folder}"
                " to begin anew, or choose another folder"
            ) from error
        return state

    def _state(self, step: int) -> State:
        path = self.path(step) / "state.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return State(**{**values, "losses": tuple(values["losses"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path} cannot be read ({first_line(error)}): delete its folder, and the run goes"
                " on from an older save"
            ) from error


def _random() -> list[mx.array]:
    """MLX's random state, a list of one key."""
    state: Any = mx.random.state
    return state


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
