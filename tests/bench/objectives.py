"""What pruning and loss are worth at equal tokens: one student each, as a Markdown table.

uv run python tests/bench/objectives.py WIKITEXT_TEST FOLDER [--steps 100]

Every row is a run of ``python -m afm_mlx.distill`` on the text that comes along; perplexity is
also measured on the beginning of WIKITEXT_TEST, whose tokenisation marks are undone first. It
takes about a quarter of an hour a row on two CPU cores; run again, it goes on where it stopped.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afm_mlx.distill import distill
from afm_mlx.distill.recipe import from_values
from afm_mlx.distill.results import Results, Scores
from afm_mlx.distill.run import Finished
from afm_mlx.training import Evaluated, Step

import tyro
from perplexity import clean
from tyro.conf import Positional


@dataclass(frozen=True)
class Options:
    test: Positional[Path]
    folder: Positional[Path]
    steps: int = 100
    masks: int = 20
    """Steps of the learnt masks, taken from those of the training."""


def rows(options: Options) -> dict[str, dict[str, Any]]:
    """Settings of each row."""
    short = {"learned_masks": options.masks, "steps": options.steps - options.masks}
    return {
        "forward KL": {},
        "forward KL, masks learnt": short,
        "Apple's top-1 target": {"loss": "teacher-top1"},
        "cross-entropy": {"loss": "cross-entropy"},
    }


def figures(name: str, scores: Scores) -> str:
    values = (
        (scores.test_perplexity, 1),
        (scores.perplexity, 1),
        (scores.kl, 3),
        (scores.agreement, 3),
    )
    cells = ("" if v is None else f"{v:.{digits}f}" for v, digits in values)
    return f"| {name} | {' | '.join(cells)} |"


def run(name: str, values: dict[str, Any]) -> Results:
    """One student; its evaluations are printed as they come."""
    for event in distill(from_values(values)):
        if isinstance(event, Evaluated):
            print(f"{name}, after step {event.step}, {event.seconds:.0f} s: {event.metrics}")
        elif isinstance(event, Step) and event.step % 10 == 0:
            print(f"{name}, step {event.step}: {event.tokens_per_second:.0f} tok/s", flush=True)
        elif isinstance(event, Finished):
            found = event.results
    return found


def main(options: Options) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    test = options.folder / "test.txt"
    test.write_text(clean(options.test.read_text("utf-8")), encoding="utf-8")
    lines: list[str] = []
    for name, values in rows(options).items():
        out = options.folder / name.replace(" ", "-").replace("'", "").replace(",", "")
        common = {"steps": options.steps, "test": str(test), "out": str(out)}
        found = run(name, {**common, **values})
        if not lines:
            lines.append(figures("teacher", found.of_teacher))
        if name != "forward KL, masks learnt":
            lines += [figures("importance, fitted, untrained", found.of_pruned)] * (len(lines) == 1)
        else:
            lines.append(figures("masks learnt, fitted, untrained", found.of_pruned))
        lines.append(figures(name, found.of_distilled))
    print("| student | perplexity, test | perplexity, held out | KL | agreement |")
    print("|---|--:|--:|--:|--:|", *lines, sep="\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
