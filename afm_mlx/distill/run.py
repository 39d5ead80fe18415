"""A distillation run from recipe to report, as a stream of events.

Every stage leaves its result in the run's folder, so the same recipe goes on where it stopped:
tokens, the teacher's logits, the pruned start, the saves of training.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from afm_mlx import checkpoint
from afm_mlx.data.packing import Batches
from afm_mlx.data.sources import Source
from afm_mlx.distill import checks, corpus, cutting, measure, plan, results, shape, teachers
from afm_mlx.distill.crossing import CrossObjective
from afm_mlx.distill.cutting import Progress as Progress
from afm_mlx.distill.files import Log, read_json, write_json
from afm_mlx.distill.logits import LogitCache
from afm_mlx.distill.objective import Examination, Learner, Objective, wanted
from afm_mlx.distill.onpolicy import OnPolicyBatches
from afm_mlx.distill.recipe import SHIPPED, Recipe
from afm_mlx.distill.report import model_card, write_report
from afm_mlx.distill.sequence import Answered
from afm_mlx.errors import InputError, first_line
from afm_mlx.model import Model, named_weights
from afm_mlx.model_args import ModelArgs
from afm_mlx.parallel import Group
from afm_mlx.saves import Saves
from afm_mlx.training import Event, to_json, train

import mlx.core as mx
import numpy as np
from mlx_lm.utils import get_total_parameters

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Planned:
    """The plan, before anything long begins."""

    plan: plan.Plan
    notes: tuple[str, ...]


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


def distill(
    recipe: Recipe, plan_only: bool = False, group: Group | None = None
) -> Iterator[RunEvent]:
    """Run ``recipe``; the run's folder is ``recipe.out``.

    The processes of ``group`` (:func:`afm_mlx.parallel.join`) share the training. The first one
    prunes, measures and writes; the others keep tokens and logits in ``rank-N`` of the folder.

    Raises:
        AFMError: something in the recipe or on the disk cannot be used; one line says what.
    """
    run = _Run(recipe, group)
    yield from run.prepare(plan_only)
    if plan_only:
        return
    yield from run.start_student()
    yield from run.ask_teacher()
    yield from run.teach()
    if run.rank == 0:
        yield run.finish()


class _Run:
    def __init__(self, recipe: Recipe, group: Group | None) -> None:
        self.group = group
        self.rank, self.size = (group.rank(), group.size()) if group else (0, 1)
        if self.rank:
            recipe = replace(recipe, out=Path(recipe.out) / f"rank-{self.rank}")
        self.recipe, self.out = recipe, Path(recipe.out)
        self.seen = self.out / "start.json"

    # ---- data, teacher, plan

    def prepare(self, plan_only: bool) -> Iterator[RunEvent]:
        recipe = self.recipe
        checks.folder(recipe, self.out)
        named = recipe.teacher or (None,)
        members = [teachers.load(name) for name in named]
        self.committee = teachers.Committee(tuple(members), recipe.teacher_weights)
        loaded = self._base()
        self.base, self.tokenizer = loaded.model, loaded.tokenizer
        self.crosses = teachers.vocabulary(self.tokenizer) != teachers.vocabulary(
            members[0].tokenizer
        )
        args = self.base.args
        checks.vocabularies(recipe, self.committee, args, self.crosses)
        checks.window(recipe, args)
        self.shape = args if recipe.student else shape.choose_shape(args, recipe.prune)
        if recipe.prune.learned_masks and self.shape.num_hidden_layers != args.num_hidden_layers:
            raise InputError("masks are learnt for a whole stack: choose a larger target_params")
        if recipe.asking.prompts:
            yield from self._answers(plan_only)
        self.corpus = corpus.build(recipe, corpus.sources(recipe), self.tokenizer)
        checks.same(recipe, self.corpus, read_json(self.seen), self.group)
        if recipe.data.test:
            measure.on_test(recipe, self.tokenizer)  # a bad file shows now, not at the end
        if recipe.own.on_policy:
            self._own_batches()
        self.before = getattr(members[0].model, "args", args)
        self.teacher_parameters = sum(get_total_parameters(m.model) for m in members)
        options = recipe.training
        self.batches = Batches(
            self.corpus.train.per_source,
            [s.weight for s in self.corpus.sources],
            options.batch_size,
            options.seed,
        )
        tokens = options.steps * self.batches.tokens_per_step
        windows = len(set(wanted(self.batches, options.steps, self.rank, self.size)))
        held = sum(w.nbytes for m in members for w in _weights(m.model))
        yield Planned(
            plan.Plan(
                self.committee.name,
                self.teacher_parameters,
                self.before if isinstance(self.before, ModelArgs) else None,
                self.shape,
                tokens,
                len(self.corpus.train),
                options.steps / self.batches.epoch_steps,
                plan.memory(recipe, self.shape, held, self.size),
                plan.available_memory() + held,
                plan.disk(recipe, windows, args.vocab_size),
            ),
            self.corpus.notes,
        )

    def _answers(self, plan_only: bool) -> Iterator[Progress]:
        """Let the teachers answer the prompts."""
        if self.group is not None:
            raise InputError(
                "prompts are answered on one machine: do that first, then begin another run with"
                " answers/answers.jsonl as --data and without --prompts"
            )
        if plan_only and not corpus.answers_folder(self.recipe).exists():
            raise InputError("a plan needs the answers to the prompts: run it without plan first")
        for event in corpus.ask(self.recipe, self.committee):
            if isinstance(event, Answered):
                yield Progress(f"answers ({event.kept} kept)", event.done, event.total)
            else:
                write_json(self.out / "answers.json", asdict(event))

    def _base(self) -> checkpoint.Checkpoint:
        """What the student is cut from, or the student that was named."""
        if self.recipe.student:
            loaded = checkpoint.load(self.recipe.student, dtype=mx.float32)
            if any(name.endswith(".scales") for name, _ in named_weights(loaded.model)):
                raise InputError(
                    f"{self.recipe.student} is quantised and cannot be trained: name the full one"
                )
            return loaded
        teacher = self.committee.teachers[0]
        if not isinstance(teacher.model, Model):
            raise InputError(
                f"{teacher.name} cannot be pruned (a quantised model, or a type"
                " other than llama): name a --student"
            )
        return checkpoint.Checkpoint(teacher.name, Path(), teacher.model, teacher.tokenizer)

    def _own_batches(self) -> OnPolicyBatches:
        """Conversations whose answers the student may write itself."""
        recipe = self.recipe
        return OnPolicyBatches(
            getattr(self, "student", self.base),
            self.corpus.conversations,
            self.tokenizer.eos_token_ids,
            recipe.data.window,
            recipe.training.batch_size,
            recipe.own,
            recipe.training.seed,
        )

    def begin(self) -> None:
        """Note the recipe in the run's folder."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(self.out / "recipe.json", self.recipe.to_dict())
        except OSError as error:
            raise InputError(
                f"{self.out} cannot be written ({first_line(error)}): choose another folder"
            ) from error

    # ---- the pruned start

    def start_student(self) -> Iterator[RunEvent]:
        """Prune, measure teacher and start; or read both back."""
        self.examination = Examination(
            self.corpus.held_out, None if self.crosses else self.committee
        )
        if self.rank:  # its weights come from the first process
            self.student = self.base if self.recipe.student else Model(self.shape)
            return
        start = self.out / "start"
        seen = read_json(self.seen)
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
        prompts = measure.prompts(self.corpus, self.tokenizer)
        said = [self._said(teacher, p) for p in prompts]
        if self.recipe.student:
            self.student = self.base
        else:
            self.student = yield from cutting.cut_student(
                self.recipe,
                self.base,
                self.shape,
                self.committee,
                self.corpus,
                self.batches,
                self.examination,
            )
            self.begin()
            checkpoint.save(start, self.student, self.tokenizer, base=teacher.name, overwrite=True)
        self.of_pruned = self._scores(self.student)
        yield Measured("student at the start", self.of_pruned)
        self.samples = [
            results.Sample(
                self.tokenizer.decode(p), t, measure.say(self.student, self.tokenizer, p)
            )
            for p, t in zip(prompts, said, strict=True)
        ]
        self.begin()
        write_json(
            self.seen,
            {
                "text": self.corpus.key,
                "teacher": asdict(self.of_teacher),
                "pruned": asdict(self.of_pruned),
                "samples": [list(s) for s in self.samples],
            },
        )

    # ---- teaching

    def ask_teacher(self) -> Iterator[RunEvent]:
        """Fill the cache of logits, then let go of the teacher; or keep it running along."""
        recipe = self.recipe
        self.cache: LogitCache | None = None
        if recipe.loss.needs_teacher and not recipe.cache.top_k:
            return
        if not recipe.loss.needs_teacher:
            self._let_go()
            return
        self.cache = cutting.logit_cache(recipe, self.corpus, self.committee)
        numbers = wanted(self.batches, recipe.training.steps, self.rank, self.size)
        yield from cutting.fill(self.cache, recipe, self.corpus, self.committee, numbers)
        self._let_go()

    def _let_go(self) -> None:
        """Keep of the teacher only what the held-out text needs."""
        if self.rank == 0:
            self.examination.prepare()
        self.committee = self.committee.heads_only()
        if not self.crosses:
            self.examination.committee = self.committee
        self.base = self.student

    def teach(self) -> Iterator[RunEvent]:
        """Train; events go into ``metrics.jsonl`` too."""
        recipe = self.recipe
        width = 0
        if recipe.loss.hidden_weight:
            width = self.committee.teachers[0].model.args.hidden_size
        learner = Learner(self.student, width)
        objective: Objective | CrossObjective
        if self.crosses and recipe.loss.needs_teacher:
            teacher = self.committee.teachers[0]
            weight = recipe.loss.label_weight
            objective = CrossObjective(learner, self.tokenizer, teacher, weight)
        else:
            objective = Objective(learner, self.committee, recipe.loss, self.cache)
        mx.reset_peak_memory()
        batches: Batches | OnPolicyBatches = self.batches
        if recipe.own.on_policy:
            batches = self._own_batches()
        with Log(self.out / "metrics.jsonl") as log:
            for event in train(
                learner,
                objective,
                batches,
                recipe.training,
                Saves(self.out / "saves"),
                lambda: self.examination(self.student),
                group=self.group,
                seconds=recipe.seconds,
            ):
                log.write(to_json(event))
                yield event
        seen = read_json(self.seen)
        self.peak = max(mx.get_peak_memory(), int(seen.get("peak_memory", 0)))
        if self.rank == 0:
            write_json(self.seen, {**seen, "peak_memory": self.peak})

    # ---- the end

    def finish(self) -> Finished:
        """Write student, report and card."""
        recipe = self.recipe
        self.student.set_dtype(checkpoint.default_dtype())
        scores = self._scores(self.student)
        prompts = measure.prompts(self.corpus, self.tokenizer)
        samples = tuple(
            s._replace(distilled=measure.say(self.student, self.tokenizer, p))
            for s, p in zip(self.samples, prompts, strict=True)
        )
        folder = self.out / "student"
        teacher = self.committee.name
        base = recipe.student or self.committee.teachers[0].name
        signature = checkpoint.save(
            folder, self.student, self.tokenizer, base=base, licence=recipe.licence, overwrite=True
        )
        metrics = results.read_metrics(self.out / "metrics.jsonl")
        found = results.Results(
            teacher=teacher,
            student=self.out.resolve().name,
            base_model=base if base.count("/") == 1 and not Path(base).exists() else "",
            licence=recipe.licence,
            path=str(folder),
            in_mlx_lm=self.shape.is_llama,
            signature=signature,
            teacher_parameters=self.teacher_parameters,
            student_parameters=self.student.args.num_parameters,
            architecture=self._architecture(),
            pruning=self._pruning(),
            loss=recipe.loss.loss,
            sources=tuple(
                _source(s, n) for s, n in zip(self.corpus.sources, self.corpus.tokens, strict=True)
            ),
            held_out=f"last {recipe.data.held_out} windows of each source",
            test=recipe.data.test,
            device=_device(),
            peak_memory=self.peak,
            of_teacher=self.of_teacher,
            of_pruned=self.of_pruned,
            of_distilled=scores,
            samples=samples,
            recipe=recipe.to_dict(),
            filters=self.corpus.filters,
        )
        (folder / "README.md").write_text(model_card(found), encoding="utf-8")
        return Finished(found, write_report(self.out, found, metrics))

    def _scores(self, student: Model) -> results.Scores:
        scores = results.Scores(**self.examination(student))
        if not self.recipe.data.test:
            return scores
        return replace(
            scores,
            test_perplexity=measure.on_test(self.recipe, self.tokenizer)(student)["perplexity"],
        )

    def _teacher_scores(self) -> results.Scores:
        if self.crosses:  # perplexities over other tokens mean other things
            return results.Scores()
        scores = results.Scores(self.examination.of_committee(), kl=0.0, agreement=1.0)
        if not self.recipe.data.test:
            return scores
        return replace(
            scores,
            test_perplexity=measure.on_test(
                self.recipe, self.tokenizer, self.committee
            ).of_committee(),
        )

    def _said(self, teacher: teachers.Teacher, prompt: list[int]) -> str:
        """What the teacher makes of a prompt, in its own tokens."""
        if not self.crosses:
            return measure.say(teacher.model, self.tokenizer, prompt)
        ids = teacher.tokenizer.encode(self.tokenizer.decode(prompt))
        return measure.say(teacher.model, teacher.tokenizer, ids)

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


def _source(source: Source, tokens: int) -> results.Source:
    if Path(source.path) == SHIPPED:
        return results.Source("WikiText-2, validation part", tokens, "CC BY-SA 3.0")
    return results.Source(source.path, tokens)


def _device() -> str:
    if mx.default_device() == mx.cpu:
        return "CPU"
    return str(mx.device_info().get("device_name", "GPU"))


def _weights(model: Any) -> list[mx.array]:
    return [v for _, v in named_weights(model)]
