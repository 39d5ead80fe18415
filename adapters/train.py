"""Train an adapter for a frozen model, as a stream of events.

    checkpoint = load()
    for event in train_adapter(checkpoint, ["chat.jsonl"], AdapterTraining("notes")):
        print(event)

AdamW, a cosine, gradients clipped to 1, loss on the answers alone; it ends when held-out samples
gain no more, and the best matrices are kept (arXiv 2407.21075, section 5.2). The model may be
dense, quantised or palettised. When the run ends, however that comes, it computes as without an
adapter, the same parameters as before are frozen, and its layers keep their slots, empty. The
same call again goes on from the last save.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from afm_mlx import events
from afm_mlx.adapters import formats, library, lora
from afm_mlx.adapters.adapter import About, Adapter, LoRAOptions
from afm_mlx.adapters.card import card
from afm_mlx.adapters.data import DataOptions, DataReport, prepare
from afm_mlx.adapters.memory import Memory, estimate
from afm_mlx.adapters.objective import Answers, HeldOut
from afm_mlx.errors import InputError, first_line
from afm_mlx.model import Model
from afm_mlx.parallel import Group
from afm_mlx.saves import Saves, weights_of
from afm_mlx.tokenizer import Tokenizer
from afm_mlx.training import TrainingOptions, take, to_json, train

import mlx.core as mx
import numpy as np

RECORD, METRICS = "training.json", "metrics.jsonl"
"""What an adapter's folder says of its training: the settings, and a line for each event."""
STEP_COST = 3.0
"""Gradients take about so many times as long as a forward pass over the same windows."""


class Base(Protocol):
    """The model that an adapter is for (:class:`afm_mlx.checkpoint.Checkpoint`)."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> Model: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def signature(self) -> str: ...


@dataclass(frozen=True)
class AdapterSteps(TrainingOptions):
    """How to train an adapter."""

    steps: int = 2000
    """Most optimizer steps; fewer if epochs is over before. A finished run goes on if you raise
    both."""
    epochs: float = 3.0
    """Times through the samples."""
    batch_size: int = 4
    """Samples in a step, about: whole windows are dealt, and several samples share one."""
    patience: int = 3
    """Stop after so many evaluations without a better one; 0 never stops early."""
    select: Literal["loss", "errors"] = "loss"
    """Figure of the held-out samples by which the best step is kept. The loss can rise by a few
    words that the model is too sure of, while it makes fewer errors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.epochs < math.inf:
            raise InputError(f"epochs must be above 0, not {self.epochs}")


@dataclass(frozen=True)
class AdapterTraining:
    """What adapter to train, and how."""

    name: str
    """Name of the adapter: letters, digits, - and _."""
    feature: str = ""
    """Feature that it is for, such as notification-summary; noted in its folder."""
    licence: str = "other"
    """Licence of the adapter as the Hub names it."""
    start: str = ""
    """Folder of an adapter to begin as, such as the recovery adapter of a low-bit model."""
    out: str = ""
    """Folder of the new adapter; one of its name beside all others if left out."""
    overwrite: bool = False
    """Replace that folder if another run made it."""
    cache: str = ""
    """Where tokens and saves are kept; ~/.cache/afm-mlx/adapters if left out."""
    data: DataOptions = field(default_factory=DataOptions)
    lora: LoRAOptions = field(default_factory=LoRAOptions)
    training: AdapterSteps = field(default_factory=AdapterSteps)

    def __post_init__(self) -> None:
        library.check_name(self.name)
        if self.lora.dropout and self.training.gradient_checkpointing:
            raise InputError(
                "gradient_checkpointing computes each layer twice, with another dropout: leave one"
                " of the two out"
            )

    @property
    def folder(self) -> Path:
        """Where the adapter goes."""
        return Path(self.out) if self.out else library.home() / self.name


@dataclass(frozen=True)
class Planned:
    """All is read, and nothing long has begun.

    Attributes:
        parameters: numbers that learn.
        steps, epochs: what the run takes in all, and ``done`` how many steps it has behind it.
        windows, samples: in a step, the latter on average.
        seconds: what the rest may take, by a forward pass over one window.
    """

    data: DataReport
    parameters: int
    steps: int
    epochs: float
    done: int
    windows: int
    samples: float
    memory: Memory
    seconds: float


@dataclass(frozen=True)
class Finished:
    """The adapter is in ``folder``; figures on the held-out samples without and with it."""

    folder: Path
    before: Mapping[str, float]
    after: Mapping[str, float]


Event = events.Event | Planned | Finished


def train_adapter(
    base: Base,
    data: Sequence[str],
    options: AdapterTraining,
    plan_only: bool = False,
    group: Group | None = None,
) -> Iterator[Event]:
    """Train an adapter and write its folder, which mlx-lm loads too.

    The processes of ``group`` (:func:`afm_mlx.parallel.join`) share the work; the first one
    writes, the others keep their tokens in ``rank-N`` of the cache.

    Args:
        data: JSONL, JSON or text files, or folders of them: conversations, prompts and
            completions, or texts (:mod:`afm_mlx.data.sources`).
        plan_only: stop after :class:`Planned`.

    Raises:
        InputError: an option, a file or the disk cannot be used; what was there is untouched.
        ModelError: the model has no chat template, or it refuses a conversation.
    """
    learning = lora.learning(base.model)
    try:
        run = _Run(base, data, options, group)
        yield run.plan()
        if not plan_only:
            yield from run.train()
            if run.rank == 0:
                yield run.finish()
    finally:
        lora.put(base.model, None)
        lora.unfreeze(learning)


class _Run:
    def __init__(
        self, base: Base, data: Sequence[str], options: AdapterTraining, group: Group | None
    ) -> None:
        self.base, self.data, self.options, self.group = base, data, options, group
        self.rank, self.size = (group.rank(), group.size()) if group else (0, 1)
        cache = Path(options.cache) if options.cache else library.cache()
        work = cache / f"rank-{self.rank}" if self.rank else cache
        given = options.training
        start = _start(options.start, base) if options.start else None
        self.lessons = prepare(
            data,
            options.data,
            base.tokenizer,
            work / f"{options.name}-{library.TOKENS}",
            base.model.args.max_position_embeddings,
            max(given.batch_size // self.size, 1),
            given.seed,
        )
        self.id = self._identity(start)
        self.work = work / f"{options.name}-{self.id}"
        self.saves = Saves(self.work / "saves")
        if self.rank == 0:
            self._check_folder()
        lora.prepare(base.model, options.lora, start, given.seed)
        self.answers = Answers(base.model)
        held_out = self.lessons.held_out
        self.look = HeldOut(self.answers, held_out) if held_out is not None else None
        self.batches = self.lessons.batches(given.batch_size, given.seed, self.size)
        steps = min(given.steps, math.ceil(given.epochs * self.batches.epoch_steps))
        self.training = replace(given, steps=steps, batch_size=self.batches.batch_size)

    def _identity(self, start: Adapter | None) -> str:
        """A name for all that decides what is computed."""
        steps = replace(  # what changes nothing that is learnt, or rounds it another way
            self.options.training,
            steps=1,
            epochs=1,
            evaluate_every=1,
            save_every=1,
            patience=0,
            select="loss",
            micro_batch=0,
            gradient_checkpointing=False,
        )
        known = f"{self.base.signature} {self.lessons.key} {self.options.lora} {steps}"
        digest = hashlib.sha256(known.encode())
        for _, weight in sorted(start.weights.items()) if start is not None else ():
            digest.update(np.array(weight.astype(mx.float32)).tobytes())
        return digest.hexdigest()[:12]

    def _check_folder(self) -> None:
        """Let a folder be replaced only by the run that made it, or if one is told to."""
        folder = self.options.folder
        if not folder.exists():
            return
        try:
            made = json.loads((folder / RECORD).read_text(encoding="utf-8"))["run"]
        except (OSError, ValueError, KeyError, TypeError):
            made = ""
        if made != self.id and not (self.options.overwrite and formats.is_adapter(folder)):
            raise InputError(
                f"{folder} exists already, and this run did not make it: choose another name or"
                " folder, or overwrite it"
            )

    def plan(self) -> Planned:
        steps, windows = self.training.steps, self.batches.batch_size
        done = min(max(self.saves.steps(), default=0), steps)
        found = self.lessons.report
        return Planned(
            data=found,
            parameters=sum(w.size for w in weights_of(self.base.model).values()),
            steps=steps,
            epochs=steps * windows / len(self.lessons.train),
            done=done,
            windows=windows,
            samples=windows * found.samples / len(self.lessons.train),
            memory=estimate(self.answers, self.training, self.lessons, windows // self.size),
            seconds=self._seconds(steps - done),
        )

    def _seconds(self, steps: int) -> float:
        """How long so many steps and the looks between them may take."""
        window = take(self.batches.batch(0, self.rank, self.size), slice(1))
        passes = []
        for _ in range(2):  # the first one compiles
            begun = time.perf_counter()
            mx.eval(self.answers(window))
            passes.append(time.perf_counter() - begun)
        each = STEP_COST * self.batches.batch_size / self.size
        if self.look is not None:
            each += len(self.look.windows) / self.training.evaluate_every
        return steps * each * min(passes)

    def train(self) -> Iterator[events.Event]:
        """Train; events go into a file too."""
        for event in train(
            self.base.model,
            self.answers,
            self.batches,
            self.training,
            self.saves,
            self.look,
            select=self.options.training.select,
            group=self.group,
        ):
            self._note(event)
            yield event

    def _note(self, event: events.Event) -> None:
        line = json.dumps(to_json(event)) + "\n"
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            with (self.work / METRICS).open("ab") as file:
                file.write(line.encode())
        except OSError as error:
            raise InputError(
                f"{self.work} cannot be written ({first_line(error)}): free some space and run the"
                " same command again, it goes on from the last save"
            ) from error

    def finish(self) -> Finished:
        """Write the adapter beside its figures."""
        model, options = self.base.model, self.options
        after = self.look() if self.look is not None else {}
        weights = lora.taken(model)
        lora.put(model, None)
        before = self.look() if self.look is not None else {}
        metrics = {**after, **{f"{name}_before": value for name, value in before.items()}}
        about = About(
            options.feature,
            self.base.signature,
            hashlib.sha256(self.lessons.key.encode()).hexdigest(),
            metrics,
            options.licence,
        )
        adapter = Adapter(options.name, weights, options.lora, about)
        steps = self.saves.steps()[-1]
        found = self.lessons.report
        record = {
            "run": self.id,
            "base": self.base.name,
            "data": [Path(d).name for d in self.data],
            "found": {**asdict(found), "bad": len(found.bad)},
            "lora": asdict(options.lora),
            "training": asdict(self.training),
            "steps": steps,
        }
        readme = card(adapter, self.base.name, found, steps, before, after)
        extra = {
            RECORD: json.dumps(record, indent=1).encode(),
            "README.md": readme.encode(),
            METRICS: (self.work / METRICS).read_bytes(),
        }
        formats.write(adapter, options.folder, overwrite=True, extra=extra)
        return Finished(options.folder, before, after)


def _start(folder: str, base: Base) -> Adapter:
    """The adapter to begin as; it must be for the same model."""
    found = formats.read(Path(folder))
    signature = found.about.base_signature
    if signature and signature != base.signature:
        raise InputError(
            f"{folder} is an adapter of another model: name one that was trained on {base.name}"
        )
    return found
