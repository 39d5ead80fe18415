"""Training as a stream of events: one trainer for distillation, recovery and LoRA.

:func:`train` is a generator. It takes one optimiser step after the other and yields what
happened; whoever reads the stream prints, plots or tests it. AdamW (arXiv 1711.05101), or Muon
for matrices, with linear warm-up, cosine decay and clipping of the gradients' norm.

A save is a folder ``step-N``, written under a temporary name, flushed and renamed: weights,
optimiser state, random state and position. Data follow from the seed and the step alone, so a
run that goes on from a save computes what it would have computed.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from afm_mlx.data.packing import Batch, Batches
from afm_mlx.errors import InputError
from afm_mlx.saves import Saves, State

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_map

Objective = Callable[[Batch], tuple[mx.array, mx.array, Mapping[str, mx.array]]]
"""A batch to the summed loss, the number of predictions in it, and further sums to show."""
Evaluate = Callable[[], dict[str, float]]
Tree = Any

BETAS = (0.9, 0.95)
NO_WORSE = 1e-4
"""An evaluation is better than the best if it is lower by this share."""
DIVERGED = 2.0
"""A run has diverged if the mean loss of a stretch is so many times its best, plus one."""
STRETCH = 10


@dataclass(frozen=True)
class TrainingOptions:
    """How to train."""

    steps: int = 100
    """Optimizer steps in all; a finished run goes on if you raise them."""
    batch_size: int = 2
    """Windows in a step, over all machines and micro-batches."""
    micro_batch: int = 0
    """Windows computed at a time, less memory if fewer; 0 takes the batch at once."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon orthogonalises the updates of matrices, and leaves embedding and norms to AdamW."""
    learning_rate: float = 5e-4
    """Highest learning rate."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises to it."""
    final: float = 0.05
    """Share of the learning rate left at the end of the cosine."""
    weight_decay: float = 0.01
    """Decay of matrices a step, times the learning rate."""
    clip: float = 1.0
    """Largest norm of the gradients."""
    gradient_checkpointing: bool = False
    """Compute each layer twice to keep less: about a third slower."""
    mixed_precision: bool | None = None
    """Compute in bfloat16 on float32 weights; by default on GPUs only."""
    evaluate_every: int = 50
    """Steps between two looks at the held-out text."""
    save_every: int = 50
    """Steps between two saves."""
    patience: int = 0
    """Stop after so many evaluations without a better one; 0 never stops early."""
    seed: int = 0
    """Order of the data, and all that is random."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("micro_batch", "patience", "seed", "weight_decay"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be below 0: {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("warmup", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a share from 0 to 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Step:
    """One optimiser step. ``seconds`` and ``tokens`` count from the first step of the run."""

    step: int
    tokens: int
    seconds: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Evaluated:
    """What the held-out text says, by name (``perplexity``...); ``better`` than all before?"""

    step: int
    tokens: int
    seconds: float
    metrics: dict[str, float]
    better: bool


@dataclass(frozen=True)
class Saved:
    """A save is on disk; ``best`` if no other evaluates better."""

    step: int
    best: bool


@dataclass(frozen=True)
class Resumed:
    """The run goes on after ``step``."""

    step: int


@dataclass(frozen=True)
class Stopped:
    """The run ended before its last step, with the best weights in the model."""

    step: int
    reason: str


Event = Step | Evaluated | Saved | Resumed | Stopped


def learning_rate(options: TrainingOptions, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then a cosine."""
    warm = round(options.warmup * options.steps)
    if step < warm:
        return options.learning_rate * (step + 1) / (warm + 1)
    progress = (step - warm) / max(options.steps - warm, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return options.learning_rate * (options.final + (1 - options.final) * cosine)


def make_optimizer(options: TrainingOptions) -> optim.Optimizer:
    """Optimiser of a run; only matrices decay."""

    def adamw(decay: float) -> optim.Optimizer:
        return optim.AdamW(
            options.learning_rate, betas=list(BETAS), weight_decay=decay, bias_correction=True
        )

    def is_matrix(name: str, weight: mx.array) -> bool:
        return weight.ndim >= 2

    def is_hidden(name: str, weight: mx.array) -> bool:
        return weight.ndim == 2 and "embed" not in name and "lm_head" not in name

    if options.optimizer == "adamw":
        return optim.MultiOptimizer([adamw(options.weight_decay), adamw(0.0)], [is_matrix])
    muon = optim.Muon(options.learning_rate, weight_decay=options.weight_decay)
    return optim.MultiOptimizer(
        [muon, adamw(options.weight_decay), adamw(0.0)], [is_hidden, is_matrix]
    )


def train(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    options: TrainingOptions,
    saves: Saves,
    evaluate: Evaluate | None = None,
    select: str = "perplexity",
    group: mx.distributed.Group | None = None,
) -> Iterator[Event]:
    """Train the trainable parameters of ``model``; goes on from the latest save if there is one.

    Args:
        objective: called on micro-batches; it runs ``model``, whose parameters carry gradients.
        evaluate: called on held-out text before the first step, then every
            ``options.evaluate_every`` steps and after the last.
        select: which of its figures, the lower the better, decides on the best weights.
        group: processes that share the work; each sees its rows of every batch, and the
            process of rank 0 saves.

    At the end, also an early one, ``model`` has the best weights that were evaluated (the
    newest ones without ``evaluate``).
    """
    run = _Run(model, objective, options, group)
    started = time.perf_counter()
    state = saves.load(model, run.optimizer)
    if state is None:
        state = State()
        mx.random.seed(options.seed)
    else:
        yield Resumed(state.step)
    losses: deque[float] = deque(state.losses, maxlen=STRETCH)
    before = state.seconds

    def now(state: State) -> State:
        return replace(state, seconds=before + time.perf_counter() - started, losses=tuple(losses))

    def look(state: State) -> tuple[State, Evaluated]:
        assert evaluate is not None
        metrics = evaluate()
        value = metrics[select]
        better = state.best is None or value < state.best * (1 - NO_WORSE)
        state = replace(
            now(state),
            best=value if better else state.best,
            best_step=state.step if better else state.best_step,
            waited=0 if better else state.waited + 1,
        )
        return state, Evaluated(state.step, state.tokens, state.seconds, metrics, better)

    if evaluate is not None and state.step == 0:
        state, looked = look(state)
        yield looked
        yield saves.save(model, run.optimizer, state)
    while state.step < options.steps:
        batch = batches.batch(state.step, run.rank, run.size)
        begun = time.perf_counter()
        taken = run.step(batch, learning_rate(options, state.step))
        reason = _trouble(taken, losses, state)
        if reason is not None:
            back = saves.load(model, run.optimizer, best=state.best is not None)
            kept = f"; the model is as after step {back.step}" if back else ""
            yield Stopped(state.step, f"{reason}{kept}: lower the learning rate and run it again")
            return
        losses.append(taken.loss)
        average = sum(losses) / len(losses)
        state = now(
            replace(
                state,
                step=state.step + 1,
                tokens=state.tokens + taken.tokens,
                lowest=min(state.lowest, average) if len(losses) == STRETCH else state.lowest,
            )
        )
        yield Step(
            state.step,
            state.tokens,
            state.seconds,
            taken.loss,
            taken.learning_rate,
            taken.grad_norm,
            taken.tokens / (time.perf_counter() - begun),
            taken.parts,
        )
        last = state.step == options.steps
        look_now: Evaluated | None = None
        if evaluate is not None and (last or state.step % options.evaluate_every == 0):
            state, look_now = look(state)
            yield look_now
        if last or (look_now and look_now.better) or state.step % options.save_every == 0:
            yield saves.save(model, run.optimizer, state)
        if options.patience and state.waited >= options.patience:
            yield Stopped(state.step, f"no better {select} in {state.waited} evaluations")
            break
    if state.best is not None and state.best_step != state.step:
        saves.load(model, run.optimizer, best=True)


@dataclass(frozen=True)
class _Taken:
    """One step's figures, summed over all processes."""

    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    parts: dict[str, float]


def _trouble(taken: _Taken, losses: Sequence[float], state: State) -> str | None:
    """Why a run cannot go on, if it cannot."""
    if not math.isfinite(taken.loss) or not math.isfinite(taken.grad_norm):
        return f"step {state.step + 1} gave no number (loss {taken.loss:g})"
    recent = [*losses, taken.loss][-STRETCH:]
    average = sum(recent) / len(recent)
    if len(recent) == STRETCH and average > DIVERGED * state.lowest + 1:
        return f"the loss rose from {state.lowest:.3g} to {average:.3g} by step {state.step + 1}"
    return None


class _Run:
    """Model, optimiser and processes of one training run."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        options: TrainingOptions,
        group: mx.distributed.Group | None,
    ) -> None:
        self.model, self.options, self.group = model, options, group
        self.rank = group.rank() if group else 0
        self.size = group.size() if group else 1
        self.optimizer = make_optimizer(options)
        self.optimizer.init(model.trainable_parameters())
        mixed = options.mixed_precision
        if mixed is None:
            mixed = mx.default_device() != mx.cpu
        self.mixed = mixed

        def loss(parameters: Tree, batch: Batch) -> tuple[mx.array, mx.array, dict[str, mx.array]]:
            model.update(tree_map(_to_half, parameters) if mixed else parameters)
            total, count, parts = objective(batch)
            return total.astype(mx.float32), count, dict(parts)

        self.gradients: Any = mx.value_and_grad(loss)

    def step(self, batch: Batch, rate: float) -> _Taken:
        """Take one step on this process's rows of a batch."""
        parameters = self.model.trainable_parameters()
        rows = len(batch.tokens)
        at_once = self.options.micro_batch or rows
        sums: Any = None
        try:
            for start in range(0, rows, at_once):
                part = take(batch, slice(start, start + at_once))
                (loss, count, parts), gradients = self.gradients(parameters, part)
                new = [gradients, {**parts, "loss": loss, "count": count}]
                sums = new if sums is None else tree_map(mx.add, sums, new)
                mx.eval(sums)
        finally:
            self.model.update(parameters)
        gradients, figures = sums
        figures["tokens"] = mx.array(batch.num_tokens)
        if self.size > 1:
            gradients = self._summed(gradients)
            figures = tree_map(lambda x: mx.distributed.all_sum(x, group=self.group), figures)
        count = mx.maximum(figures.pop("count"), 1)
        tokens = int(figures.pop("tokens").item())
        squares = mx.stack([mx.sum(mx.square(g)) for _, g in tree_flatten(gradients)])
        norm = mx.sqrt(mx.sum(squares)) / count
        scale = mx.minimum(self.options.clip / (norm + 1e-6), 1.0) / count
        mx.eval(norm, scale)
        values = {name: float(np.array(total / count)) for name, total in figures.items()}
        size = float(np.array(norm))
        if math.isfinite(size) and math.isfinite(values["loss"]):
            self.optimizer.learning_rate = rate
            gradients = tree_map(lambda g: g * scale, gradients)
            self.model.update(self.optimizer.apply_gradients(gradients, parameters))
            del gradients, sums, parameters
            mx.eval(self.model.parameters(), self.optimizer.state)
        return _Taken(values.pop("loss"), size, rate, tokens, values)

    def _summed(self, gradients: Tree) -> Tree:
        averaged = nn.utils.average_gradients(gradients, self.group)
        return tree_map(lambda g: g * self.size, averaged)


def take(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch."""
    return Batch(batch.tokens[rows], batch.segments[rows], batch.learn[rows], batch.window[rows])


def _to_half(x: mx.array) -> mx.array:
    return x.astype(mx.bfloat16) if x.dtype == mx.float32 else x


def to_json(event: Event) -> dict[str, Any]:
    """One line of ``metrics.jsonl``."""
    if isinstance(event, Evaluated):
        line = asdict(event)
        return {"event": "evaluation", **line.pop("metrics"), **line}
    return {"event": type(event).__name__.lower(), **asdict(event)}
