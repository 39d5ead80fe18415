"""Stands in for ``python -m afm_mlx.distill``: says and writes what a run does, learns nothing.

    python tests/tui/scripted_run.py --out FOLDER [--steps N] [--every N] [--plan] --json

It saves every second step or every N-th, goes on after its last save, and refuses
``--teacher none``. As in a real run files are whole whenever it is interrupted, and what was saved
was said.
"""

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

PAUSE = 0.03

arguments = sys.argv[1:]
interrupted: list[int] = []


def option(name: str, usual: str) -> str:
    return arguments[arguments.index(name) + 1] if name in arguments else usual


def say(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)  # noqa: T201


def write(file: Path, values: dict[str, Any]) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(values))
    new.replace(file)


def main() -> int:
    out, steps = Path(option("--out", "out")), int(option("--steps", "100"))
    every = int(option("--every", "2"))
    teacher = option("--teacher", "teacher")
    if teacher == "none":
        print("afm: there is no model none: check its name", file=sys.stderr)  # noqa: T201
        return 2
    print("no JSON: a warning of some library")  # noqa: T201
    after = {"num_hidden_layers": 2, "intermediate_size": [128, 256]}
    say("plan", teacher=teacher, teacher_parameters=525312, after=after, tokens=38400,
        epochs=15.4, train_windows=51, needed=7e6, available=8e9, verdict="fits", disk=313344,
        notes=["a note"])  # fmt: skip
    if "--plan" in arguments:
        return 0
    out.mkdir(parents=True, exist_ok=True)
    recipe = {"teacher": [teacher], "student": "", "training": {"steps": steps}}
    write(out / "recipe.json", recipe)
    scores = {"perplexity": 12.5, "kl": 0.0, "agreement": 1.0, "test_perplexity": None}
    say("measured", who="teacher", scores=scores)
    say("progress", stage="logits", done=51, total=51)
    save, metrics = out / "save.json", out / "metrics.jsonl"
    step = json.loads(save.read_text())["step"] if save.exists() else 0

    def note(event: str, **values: Any) -> None:
        with metrics.open("a") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")
        say(event, **values)

    if step:
        note("resumed", step=step)
    while step < steps:
        time.sleep(PAUSE)
        if interrupted:
            print("afm: stopped", file=sys.stderr)  # noqa: T201
            return 130
        step += 1
        spent = {"step": step, "tokens": 96 * step, "seconds": 0.1 * step}
        note("step", **spent, loss=5 / step, learning_rate=1e-3, grad_norm=1.0,
             tokens_per_second=960.0, parts={"agreement": step / (step + 4)})  # fmt: skip
        if step % every == 0 or step == steps:
            note("evaluation", **spent, better=True, perplexity=60 / step, kl=3 / step,
                 agreement=step / (step + 5))  # fmt: skip
            write(save, {"step": step})
            note("saved", step=step, best=True)
    (out / "student").mkdir(exist_ok=True)
    say("finished", path=str(out / "student"), report=str(out / "report.md"),
        of_distilled={"perplexity": 9.0, "kl": 0.2, "agreement": 0.8})  # fmt: skip
    return 0


if __name__ == "__main__":
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, lambda number, _: interrupted.append(number))
    sys.exit(main())
