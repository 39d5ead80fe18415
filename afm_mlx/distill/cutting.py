"""The start of a run: what the teacher says is written down, the student cut out of it."""

import hashlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from afm_mlx.data.packing import Batches
from afm_mlx.distill import masks, prune
from afm_mlx.distill.corpus import Corpus
from afm_mlx.distill.logits import LogitCache
from afm_mlx.distill.objective import Examination, Learner, Objective, wanted
from afm_mlx.distill.recipe import Recipe
from afm_mlx.distill.teachers import Committee
from afm_mlx.errors import InputError
from afm_mlx.model import Model
from afm_mlx.model_args import ModelArgs
from afm_mlx.saves import Saves
from afm_mlx.training import Step, TrainingOptions, train

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """Part of a stage is done."""

    stage: str
    done: int
    total: int


def logit_cache(recipe: Recipe, corpus: Corpus, committee: Committee) -> LogitCache:
    """The cache for this text and these teachers, in the run's folder."""
    mark = hashlib.sha256(corpus.key.encode())
    for teacher in committee.teachers:
        mark.update(teacher.fingerprint.encode())
    name = f"logits-{recipe.cache.top_k}-{recipe.loss.temperature:g}-{mark.hexdigest()[:12]}"
    return LogitCache(Path(recipe.out) / name, recipe.cache.top_k)


def fill(
    cache: LogitCache,
    recipe: Recipe,
    corpus: Corpus,
    committee: Committee,
    numbers: Iterable[int],
) -> Iterator[Progress]:
    """Ask the teachers about the windows that are not in the cache yet."""
    temperature = recipe.loss.temperature
    for done, total in cache.fill(committee, corpus.windows, list(numbers), temperature):
        yield Progress("logits", done, total)


def cut_student(
    recipe: Recipe,
    model: Model,
    shape: ModelArgs,
    committee: Committee,
    corpus: Corpus,
    batches: Batches,
    examination: Examination,
) -> Generator[Progress, None, Model]:
    """A student of ``shape`` cut out of ``model``, the (first) teacher's own.

    Raises:
        InputError: masks cannot be learnt with these settings.
    """
    options = recipe.prune
    first = list(dict.fromkeys(wanted(batches, recipe.training.steps)))[: options.calibration]
    some = [corpus.windows.batch(first[i : i + 4]) for i in range(0, len(first), 4)]
    importance = yield from _counted("importance", prune.measure(model, some))
    scores = None
    if options.learned_masks:
        if shape.num_hidden_layers != model.args.num_hidden_layers:
            raise InputError("masks are learnt for a whole stack: do not drop layers, too")
        if not recipe.cache.top_k:
            raise InputError("to learn masks, what the teacher says must be cached: set top_k")
        # The masks go on the teacher itself, so what it says without them comes first.
        examination.prepare()
        cache = logit_cache(recipe, corpus, committee)
        numbers = wanted(batches, options.learned_masks)
        yield from fill(cache, recipe, corpus, committee, numbers)
        masks.put_on(model, importance.ffn, shape.ffn_sizes)
        try:
            yield from _learn(recipe, model, cache, batches)
        finally:
            scores = masks.take_off(model)
    kept = prune.choose(model.args, shape, importance, scores)
    student = prune.cut(model, shape, kept)
    if options.refit:
        yield from _counted("fit", prune.refit(model, student, kept, some))
    return student


def _counted(stage: str, work: Generator[tuple[int, int], None, T]) -> Generator[Progress, None, T]:
    """The progress of ``work`` by name, and its result."""
    while True:
        try:
            done, total = next(work)
        except StopIteration as end:
            return end.value
        yield Progress(stage, done, total)


def _learn(recipe: Recipe, model: Model, cache: LogitCache, batches: Batches) -> Iterator[Progress]:
    """Train the scores of the masks on ``model``."""
    steps = recipe.prune.learned_masks
    objective = Objective(Learner(model), None, recipe.loss, cache, train_head=False)
    training = TrainingOptions(
        steps=steps,
        learning_rate=recipe.prune.mask_learning_rate,
        weight_decay=0.0,
        batch_size=recipe.training.batch_size,
        micro_batch=recipe.training.micro_batch,
        mixed_precision=recipe.training.mixed_precision,
    )
    nowhere = Saves(Path(recipe.out) / "masks", writes=False)
    for event in train(objective.learner, objective, batches, training, nowhere):
        if isinstance(event, Step):
            masks.sharpen(model, event.step / steps)
            yield Progress("masks", event.step, steps)
