"""Measure an adapter on the evaluation rows of its package, through the features themselves."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Generator
from pathlib import Path

from afm_mlx.adapters import formats, library, lora
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.engine import Engine
from afm_mlx.evaluation import Answered, Answers, EvaluationOptions, Task, asked, evaluate, lines
from afm_mlx.evaluation.rows import read, task
from afm_mlx.evaluation.run import BASE
from afm_mlx.features import FEATURES
from afm_mlx.packages.package import Package


def tasks(package: Package) -> list[Task]:
    """The evaluation rows of a package, for each of its features."""
    file = package.evaluation
    rows = read(file)
    return [task(name, FEATURES[name], row, row, file) for name in package.features for row in rows]


def judge(
    base: Checkpoint, package: Package, adapter: Path | None, cache: Path | None = None
) -> Generator[tuple[int, int], None, dict[str, float]]:
    """Answer the rows with an adapter, or with the features' examples for ``None``, and measure.

    Answers are kept in ``cache`` until all are there, so that a run that broke off goes on.

    Yields:
        How many of how many answers are there.

    Returns:
        Figures by feature, such as ``summary good``: shares of the rows.
    """
    wanted, variant = tasks(package), package.name if adapter else BASE
    weights = (adapter / formats.WEIGHTS).read_bytes() if adapter else b""
    settings = {
        "model": base.signature,
        "rows": hashlib.sha256(package.evaluation.read_bytes()).hexdigest(),
        "asked": asked(task.feature for task in wanted),
        "adapter": hashlib.sha256(weights).hexdigest(),
    }
    name = hashlib.sha256(json.dumps([package.name, settings]).encode()).hexdigest()[:16]
    path = (cache or library.cache()) / "answers" / f"{name}.jsonl"
    answers = Answers(settings, path)
    try:
        with Engine(lambda: base) as engine, asyncio.Runner() as runner:
            if adapter is not None:
                engine.load_adapter(adapter, variant).result()
            run = evaluate(engine, wanted, {variant: {"": variant}}, answers, EvaluationOptions())
            while (event := runner.run(_next(run))) is not None:
                yield event.done, event.total
    finally:
        lora.put(base.model, None)
    found = lines(wanted, answers.known.values(), variant)
    path.unlink(missing_ok=True)
    known = [(line, line.values[variant]) for line in found if variant in line.values]
    return {f"{line.kind} {line.figure}": estimate.value for line, estimate in known}


async def _next(run: AsyncIterator[Answered]) -> Answered | None:
    return await anext(run, None)
