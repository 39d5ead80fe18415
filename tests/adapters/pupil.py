"""A tiny model that learns an adapter, here or as a process of its own:

    python -m tests.adapters.pupil '{"place": "FOLDER", "steps": 9}'

prints its events as lines of JSON. FOLDER gets chat.jsonl, the adapter in out, and the cache.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx import parallel
from afm_mlx.adapters.adapter import LoRAOptions
from afm_mlx.adapters.data import DataOptions
from afm_mlx.adapters.train import AdapterSteps, AdapterTraining, Event, train_adapter
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.errors import AFMError
from afm_mlx.events import Step
from afm_mlx.model import PRESETS, Model
from tests.conftest import random_model, tiny_tokenizer

ARGS = replace(PRESETS["tiny"], num_hidden_layers=2, hidden_size=64, intermediate_size=96)
COLOURS = ("red", "blue", "green", "grey", "dark brown")
STEPS = AdapterSteps(
    steps=9, epochs=99, learning_rate=5e-3, evaluate_every=3, save_every=2, patience=0
)
TRAINING = AdapterTraining(
    "notes", lora=LoRAOptions(rank=4), training=STEPS, data=DataOptions(held_out=0.2, window=112)
)


class Tiny(Checkpoint):
    """A checkpoint without files."""

    signature = "tiny"


def base(model: Model | None = None) -> Checkpoint:
    return Tiny("tiny", Path("tiny"), model or random_model(ARGS), tiny_tokenizer())


def rows(count: int = 30) -> list[Any]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is box {i}?{'!' * (7 * i % 19)}"},
                {"role": "assistant", "content": f"It is {COLOURS[i % len(COLOURS)]}."},
            ]
        }
        for i in range(count)
    ]


def write(path: Path, rows: Sequence[Any]) -> str:
    new = path.with_name(f"{os.getpid()}.new")  # two processes of one run write the same
    new.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(new.replace(path))


def training(place: Path, **changes: Any) -> AdapterTraining:
    """Options of a run in ``place``; ``changes`` are those of the steps."""
    return replace(
        TRAINING,
        out=str(place / "out"),
        cache=str(place / "cache"),
        training=replace(STEPS, **changes),
    )


def events(
    place: Path,
    checkpoint: Checkpoint | None = None,
    group: parallel.Group | None = None,
    **changes: Any,
) -> Iterator[Event]:
    data = write(place / "chat.jsonl", rows())
    return train_adapter(checkpoint or base(), [data], training(place, **changes), group=group)


def main(place: str, killed_at: int = 0, **changes: Any) -> None:
    """``killed_at`` is a step after which the process kills itself, whoever is late to read."""
    with parallel.join() as group:
        for event in events(Path(place), group=group, **changes):
            line: dict[str, Any] = {"event": type(event).__name__}
            if isinstance(event, Step):
                line |= {"step": event.step, "loss": event.loss}
            print(json.dumps(line), flush=True)  # noqa: T201
            if isinstance(event, Step) and event.step == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    try:
        main(**json.loads(sys.argv[1]))
    except AFMError as error:
        sys.exit(f"afm: {error}")
