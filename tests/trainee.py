"""A student of some thousand weights that learns a text, here or as a process of its own:

    python -m tests.trainee '{"folder": "saves", "steps": 10}'

prints its events as lines of JSON.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afm_mlx import parallel
from afm_mlx.data.packing import Batch, Batches, Windows
from afm_mlx.data.tokens import TokenStore
from afm_mlx.distill.objective import Examination, Learner, LossOptions, Objective
from afm_mlx.errors import AFMError
from afm_mlx.model import Model
from afm_mlx.model_args import ModelArgs
from afm_mlx.saves import Saves
from afm_mlx.training import Event, Step, TrainingOptions, to_json, train

import mlx.core as mx
import numpy as np

ARGS = ModelArgs(
    hidden_size=32,
    num_hidden_layers=2,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=259,
)
SENTENCE = b"The water rises as vapour and leaves the salt behind. "
WINDOW = 32


def windows() -> Windows:
    """Samples of 8 to 30 tokens, so windows differ in how many predictions they have."""
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(0, len(SENTENCE), 60), rng.integers(8, 31, 60)
    samples = [(SENTENCE * 3)[a : a + n] for a, n in zip(starts, lengths, strict=True)]
    tokens = np.frombuffer(b"".join(samples), np.uint8).astype(np.uint32) + 3
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    learn = np.ones(len(tokens), np.bool_)
    store = TokenStore(tokens, learn, offsets, np.zeros(len(samples), np.bool_))
    return Windows.of(store, WINDOW)


def batches(options: TrainingOptions) -> Batches:
    return Batches(windows().split(4)[0].per_source, [1.0], options.batch_size, options.seed)


def learner(args: ModelArgs = ARGS) -> Learner:
    mx.random.seed(1)
    return Learner(Model(args))


def objective(learner: Learner) -> Objective:
    return Objective(learner, None, LossOptions(loss="cross-entropy"))


class Noisy:
    """A loss that depends on MLX's random state, as dropout makes it."""

    def __init__(self, learner: Learner) -> None:
        self.plain = objective(learner)

    def __call__(self, batch: Batch) -> Any:
        total, count, parts = self.plain(batch)
        return total * (1 + 0.1 * mx.random.normal()), count, parts


def events(
    folder: Path,
    group: parallel.Group | None = None,
    noisy: bool = False,
    seconds: float = 0.0,
    **values: Any,
) -> Iterator[Event]:
    options = TrainingOptions(**{"batch_size": 4, "learning_rate": 5e-3, **values})
    student = learner()
    examination = Examination(windows().split(4)[1], None)
    return train(
        student,
        Noisy(student) if noisy else objective(student),
        batches(options),
        options,
        Saves(folder),
        lambda: examination(student.student),
        group=group,
        seconds=seconds,
    )


def main(folder: str, silence: float = parallel.SILENCE, killed_at: int = 0, **values: Any) -> None:
    """``killed_at`` is a step after which the process kills itself, whoever is late to read."""
    parallel.SILENCE = silence
    with parallel.join() as group:
        for event in events(Path(folder), group, **values):
            print(json.dumps(to_json(event)), flush=True)  # noqa: T201
            if isinstance(event, Step) and event.step == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    try:
        main(**json.loads(sys.argv[1]))
    except AFMError as error:
        sys.exit(f"afm: {error}")
