"""A distillation run from recipe to report, as a stream of events.

Every stage leaves its result in the run's folder, so the same recipe goes on where it stopped:
tokens, the teacher's logits, the pruned start, the saves of training.
"""

import json
import math
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from afm_mlx import checkpoint
from afm_mlx.data import filters
from afm_mlx.data.packing import Batches, Windows, join
from afm_mlx.data.quality import QualityFilter
from afm_mlx.data.sources import Sample as Text
from afm_mlx.data.sources import Source, read
from afm_mlx.data.tokens import cache_key, tokenize
from afm_mlx.distill import masks, plan, prune, results, shape, teachers
from afm_mlx.distill.crossing import CrossObjective
from afm_mlx.distill.logits import LogitCache
from afm_mlx.distill.objective import Examination, Learner, Objective, wanted
from afm_mlx.distill.plots import write_bytes
from afm_mlx.distill.recipe import SHIPPED, Recipe, differences
from afm_mlx.distill.report import model_card, write_report
from afm_mlx.errors import InputError, first_line
from afm_mlx.model import Model, ModelArgs, named_weights
from afm_mlx.saves import Saves
from afm_mlx.tokenizer import Message, Tokenizer
from afm_mlx.training import Event, Step, TrainingOptions, to_json, train

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step

Array = np.ndarray[Any, Any]

SAMPLE_TOKENS = 40
"""Length of the samples that are shown side by side."""
QUESTION = "Write one sentence about the sea."
TEST_WINDOWS = 64


@dataclass(frozen=True)
class Planned:
    """The plan, before anything long begins."""

    plan: plan.Plan
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """Part of a stage is done."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Measured:
    """Figures of the teacher or the pruned start."""

    who: str
    scores: results.Scores


@dataclass(frozen=True)
class Finished:
    """Student and report are written."""

    results: results.Results
    report: Path


RunEvent = Event | Planned | Progress | Measured | Finished


def distill(recipe: Recipe, plan_only: bool = False) -> Iterator[RunEvent]:
    """Run ``recipe``; the run's folder is ``recipe.out``.

    Raises:
        AFMError: something in the recipe or on the disk cannot be used; one line says what.
    """
    run = _Run(recipe)
    yield from run.prepare()
    if plan_only:
        return
    run.begin()
    yield from run.start_student()
    yield from run.ask_teacher()
    yield from run.teach()
    yield run.finish()


class _Run:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.out = recipe, Path(recipe.out)
        self.seen = self.out / "start.json"

    # ---- data, teacher, plan

    def prepare(self) -> Iterator[RunEvent]:
        recipe = self.recipe
        before = _read_json(self.out / "recipe.json")
        changed = differences(before, recipe.to_dict()) if before else []
        if changed:
            raise InputError(
                f"{self.out} holds a run with other settings ({', '.join(changed)}): choose another"
                " folder with --out, or delete it"
            )
        named = recipe.teacher or (None,)
        members = [teachers.load(name) for name in named]
        self.committee = teachers.Committee(tuple(members))
        loaded = self._base()
        self.base, self.tokenizer = loaded.model, loaded.tokenizer
        self.crosses = teachers.vocabulary(self.tokenizer) != teachers.vocabulary(
            members[0].tokenizer
        )
        if self.crosses:
            self._check_crossing()
        yield from self._windows()
        args = self.base.args
        self.before = getattr(members[0].model, "args", args)
        self.teacher_parameters = sum(w.size for m in members for w in _weights(m.model))
        self.shape = args if recipe.student else shape.choose_shape(args, recipe.prune)
        options = recipe.training
        self.batches = Batches(
            self.train.per_source,
            [s.weight for s in recipe.data.sources],
            options.batch_size,
            options.seed,
        )
        tokens = options.steps * self.batches.tokens_per_step
        windows = len(set(wanted(self.batches, options.steps)))
        held = sum(w.nbytes for m in members for w in _weights(m.model))
        yield Planned(
            plan.Plan(
                self.committee.name,
                args,
                self.shape,
                tokens,
                len(self.train),
                options.steps / self.batches.epoch_steps,
                plan.memory(recipe, self.shape, held),
                plan.available_memory() + held,
                plan.disk(recipe, windows, args.vocab_size),
            ),
            tuple(self.notes),
        )

    def _windows(self) -> Iterator[RunEvent]:
        """Read, filter, tokenise and pack the data."""
        data = self.recipe.data
        self.notes: list[str] = []
        self.filters = filters.FilterReport()
        parts: list[Windows] = []
        self.tokens: list[int] = []
        for number, source in enumerate(data.sources):
            key = cache_key(
                self.tokenizer, [source], {"filters": data.filters, "quality": data.quality}
            )
            store = tokenize(self._samples(source), self.tokenizer, self.out / "tokens", key)
            parts.append(Windows.of(store, data.window))
            self.tokens.append(store.num_tokens)
            packed = parts[-1].reports[0]
            if packed.truncated:
                self.notes.append(
                    f"{source.path}: {packed.truncated} conversations are longer than a window of"
                    f" {data.window} tokens and lose their end"
                )
            yield Progress("tokens", number + 1, len(data.sources))
        self.filtered = self._filter_report()
        self.windows = join(parts)
        self.train, self.held_out = self.windows.split(data.held_out)

    def _filter_report(self) -> str:
        """What the filters removed; from an earlier run where its tokens are used again."""
        path = self.out / "filters.md"
        if self.filters.steps:
            write_bytes(path, self.filters.to_markdown().encode())
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def _samples(self, source: Source) -> Iterator[Text]:
        data = self.recipe.data
        skipped: list[str] = []
        steps = filters.named(data.filters)
        if data.quality:
            steps.append(QualityFilter(Path(data.quality)))
        yield from filters.run(read(source, data.skip_bad, skipped), steps, self.filters)
        self.notes += skipped

    def _base(self) -> checkpoint.Checkpoint:
        """What the student is cut from, or the student that was named."""
        if self.recipe.student:
            loaded = checkpoint.load(self.recipe.student, dtype=mx.float32)
            return loaded
        teacher = self.committee.teachers[0]
        if not isinstance(teacher.model, Model):
            raise InputError(
                f"{teacher.name} cannot be pruned (a quantised model, or a type"
                " other than llama): name a --student"
            )
        return checkpoint.Checkpoint(teacher.name, Path(), teacher.model, teacher.tokenizer)

    def _check_crossing(self) -> None:
        """A teacher with another vocabulary runs along, alone, and is compared by spans."""
        recipe = self.recipe
        if len(self.committee.teachers) > 1 or recipe.cache.top_k or recipe.loss.looks_inside:
            raise InputError(
                "teacher and student have different vocabularies: name one teacher, set top_k to"
                " 0, and compare no hidden states"
            )
        if recipe.loss.loss != "forward-kl" or recipe.loss.temperature != 1:
            raise InputError(
                "across vocabularies there is forward-kl at temperature 1: leave loss and"
                " temperature as they are"
            )

    def begin(self) -> None:
        """Note the recipe in the run's folder."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            _write_json(self.out / "recipe.json", self.recipe.to_dict())
        except OSError as error:
            raise InputError(
                f"{self.out} cannot be written ({first_line(error)}): choose another folder"
            ) from error

    # ---- the pruned start

    def start_student(self) -> Iterator[RunEvent]:
        """Prune, measure teacher and start; or read both back."""
        self.examination = Examination(self.held_out, None if self.crosses else self.committee)
        start = self.out / "start"
        seen = _read_json(self.seen)
        if seen and (self.recipe.student or start.is_dir()):
            self.of_teacher = results.Scores(**seen["teacher"])
            self.of_pruned = results.Scores(**seen["pruned"])
            self.samples = [results.Sample(*s) for s in seen["samples"]]
            self.student = (
                self.base
                if self.recipe.student
                else checkpoint.load(str(start), dtype=mx.float32).model
            )
            return
        teacher = self.committee.teachers[0]
        self.of_teacher = self._teacher_scores()
        yield Measured("teacher", self.of_teacher)
        prompts = self._prompts()
        said = [self._said(teacher, p) for p in prompts]
        if self.recipe.student:
            self.student = self.base
        else:
            yield from self._prune()
            checkpoint.save(start, self.student, self.tokenizer, base=teacher.name, overwrite=True)
        self.of_pruned = self._scores(self.student)
        yield Measured("student at the start", self.of_pruned)
        self.samples = [
            results.Sample(self.tokenizer.decode(p), t, self._say(self.student, p))
            for p, t in zip(prompts, said, strict=True)
        ]
        _write_json(
            self.seen,
            {
                "teacher": asdict(self.of_teacher),
                "pruned": asdict(self.of_pruned),
                "samples": [list(s) for s in self.samples],
            },
        )

    def _prune(self) -> Iterator[RunEvent]:
        options = self.recipe.prune
        numbers = list(dict.fromkeys(wanted(self.batches, self.recipe.training.steps)))
        numbers = numbers[: options.calibration]
        some = [self.windows.batch(numbers[i : i + 4]) for i in range(0, len(numbers), 4)]
        importance = prune.measure(self.base, some)
        yield Progress("importance", 1, 1)
        scores = None
        if options.learned_masks:
            scores = yield from self._learn_masks(importance)
        kept = prune.choose(self.base.args, self.shape, importance, scores)
        self.student = prune.cut(self.base, self.shape, kept)
        if options.refit:
            prune.refit(self.base, self.student, kept, some)
            yield Progress("fit", 1, 1)

    def _learn_masks(
        self, importance: prune.Importance
    ) -> Generator[Progress, None, tuple[Array, ...]]:
        recipe, steps = self.recipe, self.recipe.prune.learned_masks
        if self.shape.num_hidden_layers != self.base.args.num_hidden_layers:
            raise InputError("masks are learnt for a whole stack: do not drop layers, too")
        if not recipe.cache.top_k:
            raise InputError("to learn masks, what the teacher says must be cached: set top_k")
        # The masks go on the teacher itself, so what it says without them is written down first.
        self.examination.prepare()
        cache = self._cache()
        yield from self._fill(cache, steps)
        masks.put_on(self.base, importance.ffn, self.shape.ffn_sizes)
        objective = Objective(Learner(self.base), None, recipe.loss, cache, train_head=False)
        training = TrainingOptions(
            steps=steps,
            learning_rate=recipe.prune.mask_learning_rate,
            weight_decay=0.0,
            batch_size=recipe.training.batch_size,
            micro_batch=recipe.training.micro_batch,
            mixed_precision=recipe.training.mixed_precision,
        )
        unsaved = Saves(self.out / "masks", writes=False)
        for event in train(objective.learner, objective, self.batches, training, unsaved):
            if isinstance(event, Step):
                masks.sharpen(self.base, event.step / steps)
                yield Progress("masks", event.step, steps)
        return masks.take_off(self.base)

    # ---- teaching

    @property
    def _temperature(self) -> float:
        return self.recipe.loss.temperature

    def _cache(self) -> LogitCache:
        key = f"logits-{self.recipe.cache.top_k}-{self._temperature:g}"
        return LogitCache(self.out / key, self.recipe.cache.top_k)

    def ask_teacher(self) -> Iterator[RunEvent]:
        """Fill the cache of logits, then let go of the teacher; or keep it running along."""
        recipe = self.recipe
        self.cache: LogitCache | None = None
        if not recipe.loss.needs_teacher or not recipe.cache.top_k:
            return
        self.cache = self._cache()
        yield from self._fill(self.cache, recipe.training.steps)
        self.examination.prepare()
        self.committee = self.examination.committee = self.committee.heads_only()
        self.base = self.student

    def _fill(self, cache: LogitCache, steps: int) -> Iterator[Progress]:
        numbers = list(wanted(self.batches, steps))
        for done, total in cache.fill(self.committee, self.windows, numbers, self._temperature):
            yield Progress("logits", done, total)

    def teach(self) -> Iterator[RunEvent]:
        """Train; events go into ``metrics.jsonl`` too."""
        recipe = self.recipe
        width = 0
        if recipe.loss.hidden_weight:
            width = self.committee.teachers[0].model.args.hidden_size
        learner = Learner(self.student, width)
        self.student.model.gradient_checkpointing = recipe.training.gradient_checkpointing
        objective: Objective | CrossObjective
        if self.crosses:
            teacher = self.committee.teachers[0]
            weight = recipe.loss.label_weight
            objective = CrossObjective(learner, self.tokenizer, teacher, weight)
        else:
            objective = Objective(learner, self.committee, recipe.loss, self.cache)
        mx.reset_peak_memory()
        deadline = time.monotonic() + recipe.seconds if recipe.seconds else math.inf
        with _Log(self.out / "metrics.jsonl") as log:
            for event in train(
                learner,
                objective,
                self.batches,
                recipe.training,
                Saves(self.out / "saves"),
                lambda: self.examination(self.student),
            ):
                log.write(to_json(event))
                yield event
                if isinstance(event, Step) and time.monotonic() > deadline:
                    break
        self.peak = mx.get_peak_memory()

    # ---- the end

    def finish(self) -> Finished:
        """Write student, report and card."""
        recipe = self.recipe
        self.student.eval()
        scores = self._scores(self.student)
        prompts = self._prompts()
        samples = tuple(
            s._replace(distilled=self._say(self.student, p))
            for s, p in zip(self.samples, prompts, strict=True)
        )
        folder = self.out / "student"
        base = self.committee.name
        signature = checkpoint.save(
            folder, self.student, self.tokenizer, base=base, licence=recipe.licence, overwrite=True
        )
        metrics = results.read_metrics(self.out / "metrics.jsonl")
        found = results.Results(
            teacher=base,
            student=self.out.resolve().name,
            base_model=base if "/" in base and not Path(base).exists() else "",
            licence=recipe.licence,
            path=str(folder),
            in_mlx_lm=self.shape.is_llama,
            signature=signature,
            teacher_parameters=self.teacher_parameters,
            student_parameters=self.student.num_parameters,
            architecture=self._architecture(),
            pruning=self._pruning(),
            loss=recipe.loss.loss,
            sources=tuple(
                results.Source(
                    s.path if Path(s.path) != SHIPPED else "WikiText-2 (valid)",
                    n,
                    "CC BY-SA 3.0" if Path(s.path) == SHIPPED else "",
                )
                for s, n in zip(recipe.data.sources, self.tokens, strict=True)
            ),
            held_out=f"last {recipe.data.held_out} windows of each source",
            test=recipe.data.test,
            device=str(mx.default_device()),
            peak_memory=self.peak,
            of_teacher=self.of_teacher,
            of_pruned=self.of_pruned,
            of_distilled=scores,
            samples=samples,
            recipe=recipe.to_dict(),
            filters=self.filtered,
        )
        (folder / "README.md").write_text(model_card(found), encoding="utf-8")
        return Finished(found, write_report(self.out, found, metrics))

    def _scores(self, student: Model) -> results.Scores:
        scores = results.Scores(**self.examination(student))
        if not self.recipe.data.test:
            return scores
        return replace(scores, test_perplexity=self._test()(student)["perplexity"])

    def _teacher_scores(self) -> results.Scores:
        if self.crosses:  # perplexities over other tokens mean other things
            return results.Scores()
        scores = results.Scores(self.examination.of_committee(), kl=0.0, agreement=1.0)
        if not self.recipe.data.test:
            return scores
        return replace(scores, test_perplexity=self._test(self.committee).of_committee())

    def _test(self, committee: teachers.Committee | None = None) -> Examination:
        """An examination on the test text."""
        data = self.recipe.data
        source = Source(data.test, text_field=data.text_field)
        key = cache_key(self.tokenizer, [source])
        store = tokenize(read(source), self.tokenizer, self.out / "tokens", key)
        windows = Windows.of(store, data.window)
        few = replace(windows, numbers=tuple(n[:TEST_WINDOWS] for n in windows.numbers))
        return Examination(few, committee)

    def _prompts(self) -> list[list[int]]:
        """The beginning of a held-out window, and a question in the chat template."""
        window = self.held_out.batch(np.concatenate(self.held_out.numbers)[:1])
        prompts = [window.tokens[0, : min(32, self.recipe.data.window // 2)].tolist()]
        if self.tokenizer.wrapper.has_chat_template:
            prompts.append(self.tokenizer.chat([Message("user", QUESTION)]))
        return prompts

    def _say(self, model: Any, prompt: list[int], tokenizer: Tokenizer | None = None) -> str:
        """The likeliest continuation."""
        tokenizer = tokenizer or self.tokenizer
        ids: list[int] = []
        for token, _ in generate_step(mx.array(prompt), model, max_tokens=SAMPLE_TOKENS):
            if token in tokenizer.eos_token_ids:
                break
            ids.append(token)
        return tokenizer.decode(ids)

    def _said(self, teacher: teachers.Teacher, prompt: list[int]) -> str:
        """What the teacher makes of a prompt, in its own tokens."""
        if not self.crosses:
            return self._say(teacher.model, prompt)
        ids = teacher.tokenizer.encode(self.tokenizer.decode(prompt))
        return self._say(teacher.model, ids, teacher.tokenizer)

    def _architecture(self) -> tuple[results.Row, ...]:
        if not isinstance(self.before, ModelArgs):
            return ()
        return results.architecture_rows(self.before, self.shape)

    def _pruning(self) -> str:
        options = self.recipe.prune
        if self.recipe.student:
            return ""
        how = "activation importance"
        if options.learned_masks:
            how = f"masks learnt by soft top-k in {options.learned_masks} steps"
        return how + (", refitted by least squares" if options.refit else "")


class _Log:
    """``metrics.jsonl``: one line an event, on disk at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "_Log":
        self._file = self.path.open("ab")
        if self._file.tell():  # a killed process may have left half a line
            with self.path.open("rb") as f:
                f.seek(-1, os.SEEK_END)
                if f.read(1) != b"\n":
                    self._file.write(b"\n")
        return self

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _weights(model: Any) -> list[mx.array]:
    return [v for _, v in named_weights(model)]


def _read_json(path: Path) -> dict[str, Any]:
    """An object written by :func:`_write_json`; empty if there is none."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_bytes(path, json.dumps(value, indent=1, ensure_ascii=False).encode())
