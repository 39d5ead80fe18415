"""Prune a model to half its FFN and let the whole one teach it, watching the run from Python.

uv run python examples/distill_a_student.py TEXT_FILE [FOLDER] [STEPS]

The same recipe again goes on where it stopped. The student ends up in FOLDER/student.
"""

import sys
from pathlib import Path

from afm_mlx.distill import Recipe, distill
from afm_mlx.distill.recipe import DataOptions
from afm_mlx.distill.run import Finished, Measured
from afm_mlx.errors import AFMError
from afm_mlx.training import Evaluated, Step, TrainingOptions


def main(text: str, folder: str = "distilled", steps: str = "60") -> None:
    recipe = Recipe(
        out=Path(folder),
        data=DataOptions(data=(text,), filters=("exact", "near", "personal"), held_out=8),
        training=TrainingOptions(steps=int(steps), evaluate_every=10),
    )
    for event in distill(recipe):
        match event:
            case Measured():
                print(f"{event.who}: perplexity {event.scores.perplexity:.1f}")
            case Step():
                speed = f"{event.tokens_per_second:.0f} tok/s"
                print(f"step {event.step}: loss {event.loss:.3f}, {speed}")
            case Evaluated():
                print(f"held-out: {event.metrics}")
            case Finished():
                print(f"student: {event.results.path}, report: {event.report}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:4])
    except AFMError as error:
        sys.exit(f"distill_a_student: {error}")
