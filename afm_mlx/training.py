"""Training as a stream of events: one trainer for distillation, recovery and LoRA.

:func:`train` is a generator. It takes one optimiser step after the other and yields what
happened; whoever reads the stream prints, plots or tests it. AdamW, or Muon for matrices, with
linear warm-up, cosine decay and clipping of the gradients' norm.

Data and random numbers follow from the seed and the step alone, so that a run which goes on
from a save (:mod:`afm_mlx.saves`) computes what it would have computed.

Several processes (:mod:`afm_mlx.parallel`) take rows of the same batch each, and sum gradients
and figures. The first one loads, saves and evaluates, and tells the others.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

from afm_mlx import parallel
from afm_mlx.data.packing import Batch
from afm_mlx.errors import InputError
from afm_mlx.events import Evaluated, Event, Resumed, Saved, Step, Stopped, to_json
from afm_mlx.model import Decoder
from afm_mlx.optimizers import AdamW, Muon
from afm_mlx.progress import AstrayError, State
from afm_mlx.saves import Saves, state_of, weights_of

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

__all__ = [
    "Evaluated",
    "Event",
    "Resumed",
    "Saved",
    "Step",
    "Stopped",
    "TrainingOptions",
    "learning_rate",
    "make_optimizer",
    "take",
    "to_json",
    "train",
]

Figures = tuple[mx.array, mx.array, Mapping[str, mx.array]]
"""The summed loss of a batch, the number of predictions in it, and further sums to show."""
Objective = Callable[[Batch], Figures]
Evaluate = Callable[[], dict[str, float]]
Tree = Any


@runtime_checkable
class Compilable(Protocol):
    """An objective whose gradients are compiled whole: its loss needs arrays alone, and computes
    the same for the same shapes. (Functions compiled by themselves are not, under gradients.)"""

    def inputs(self, batch: Batch) -> list[mx.array]:
        """What :meth:`loss` takes."""

    def loss(self, *inputs: mx.array) -> Figures:
        """What the objective is of a batch."""


class Deals(Protocol):
    """Where batches come from (:class:`afm_mlx.data.packing.Batches`)."""

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        """Rows ``rank::size`` of the batch of a step, counted from 0."""


BETAS = (0.9, 0.95)


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
    evaluate_every: int = 25
    """Steps between two looks at the held-out text."""
    save_every: int = 25
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
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must not be below 0: {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("warmup", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a share from 0 to 1, not {getattr(self, name)}")


def learning_rate(options: TrainingOptions, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then a cosine."""
    warm = round(options.warmup * options.steps)
    if step < warm:
        return options.learning_rate * (step + 1) / (warm + 1)
    progress = (step - warm) / max(options.steps - warm, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return options.learning_rate * (options.final + (1 - options.final) * cosine)


def make_optimizer(options: TrainingOptions) -> optim.MultiOptimizer:
    """Optimiser of a run; only matrices decay."""
    rate, decay = options.learning_rate, options.weight_decay

    def is_matrix(name: str, weight: mx.array) -> bool:
        return weight.ndim >= 2

    def is_hidden(name: str, weight: mx.array) -> bool:
        return weight.ndim == 2 and "embed" not in name and "lm_head" not in name

    adamw = [AdamW(rate, BETAS, decay), AdamW(rate, BETAS, 0.0)]
    if options.optimizer == "adamw":
        return optim.MultiOptimizer(adamw, [is_matrix])
    return optim.MultiOptimizer([Muon(rate, weight_decay=decay), *adamw], [is_hidden, is_matrix])


def train(
    model: nn.Module,
    objective: Objective,
    batches: Deals,
    options: TrainingOptions,
    saves: Saves,
    evaluate: Evaluate | None = None,
    select: str = "perplexity",
    group: parallel.Group | None = None,
    seconds: float = 0.0,
) -> Iterator[Event]:
    """Train the trainable parameters of ``model``; goes on from the latest save if there is one.

    They become float32. ``objective`` finds the model in training mode; ``evaluate``, and
    whoever has it afterwards, in evaluation mode.

    Args:
        objective: called on micro-batches; it runs ``model``, whose parameters carry gradients.
        evaluate: called on held-out text before the first step, then every
            ``options.evaluate_every`` steps and after the last.
        select: which of its figures, the lower the better, decides on the best weights.
        group: processes that share the work (:func:`afm_mlx.parallel.join`); all give the same
            arguments and get the same events.
        seconds: stop after so long, with an evaluation and a save; 0 trains to the last step.

    At the end, also an early one, ``model`` has the best weights that were evaluated (the
    newest ones without ``evaluate``). A run that went astray, without numbers or with a loss
    that rises, forgets the saves made since then.

    Raises:
        InputError: a save cannot be written or read, or an option does not fit the model.
    """
    run = _Run(model, objective, options, saves, group)
    try:
        yield from _events(run, batches, evaluate, select, seconds)
    finally:
        model.eval()


def _events(
    run: "_Run", batches: Deals, evaluate: Evaluate | None, select: str, limit: float
) -> Iterator[Event]:
    options, started = run.options, time.perf_counter()
    found = run.load()
    state = found or State()
    before = state.seconds
    if found is not None:
        yield Resumed(state.step)

    def look() -> tuple[State, Evaluated]:
        assert evaluate is not None
        metrics = run.evaluate(evaluate)
        seconds = before + time.perf_counter() - started
        new = replace(state, seconds=seconds).judged(metrics[select], select)
        better = new.waited == 0
        return new, Evaluated(new.step, new.tokens, new.seconds, metrics, better)

    try:
        if evaluate is not None and found is None:
            state, looked = look()
            yield looked
            yield from run.save(state)
        while state.step < options.steps:
            if options.patience and state.waited >= options.patience:
                yield Stopped(state.step, f"no better {select} in {state.waited} evaluations")
                break
            begun = time.perf_counter()
            taken = run.step(batches.batch(state.step, run.rank, run.size), state.step)
            passed = time.perf_counter() - started
            state = state.advanced(taken.loss, taken.tokens, before + passed)
            yield Step(
                state.step,
                state.tokens,
                state.seconds,
                taken.loss,
                learning_rate(options, state.step - 1),
                taken.grad_norm,
                taken.tokens / (time.perf_counter() - begun),
                taken.parts,
            )
            over = limit > 0 and parallel.share(passed > limit, run.group)
            last = over or state.step == options.steps
            due = last or state.step % options.save_every == 0
            if evaluate is not None and (last or state.step % options.evaluate_every == 0):
                state, looked = look()
                yield looked
                due = due or looked.better or 0 < options.patience <= state.waited
            if due:
                yield from run.save(state)
            if over and state.step < options.steps:
                yield Stopped(state.step, f"{limit:g} s are over: run it again to go on")
                break
    except AstrayError as error:
        back = run.go_back()
        kept = "" if back is None else f"; the model is as after step {back.step}"
        yield Stopped(state.step, f"{error}{kept}: lower the learning rate and run it again")
        return
    if state.best is not None and state.best_step != state.step:
        run.load(best=True)


@dataclass(frozen=True)
class _Taken:
    """One step's figures over all processes, ``loss`` and ``parts`` for each prediction."""

    loss: float
    grad_norm: float
    tokens: int
    parts: dict[str, float]


class _Run:
    """Model, optimiser, saves and processes of one training run."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        options: TrainingOptions,
        saves: Saves,
        group: parallel.Group | None,
    ) -> None:
        self.model, self.options, self.saves, self.group = model, options, saves, group
        self.rank, self.size = (group.rank(), group.size()) if group else (0, 1)
        mixed = options.mixed_precision
        if mixed is None:
            mixed = mx.default_device() != mx.cpu
        computed = self.computed = _half if mixed else _same
        _keep_less(model, options.gradient_checkpointing)
        model.train()
        model.update(tree_map(lambda x: x.astype(mx.float32), model.trainable_parameters()))
        self.optimizer = make_optimizer(options)
        self.optimizer.init(model.trainable_parameters())

        # Nothing here may know self: as a cycle, all would outlive the run.
        whole = objective if isinstance(objective, Compilable) else None
        compute: Any = objective if whole is None else whole.loss

        def loss(parameters: Tree, *given: Any) -> tuple[mx.array, dict[str, mx.array]]:
            model.update(computed(parameters))
            total, count, parts = compute(*given)
            total = total.astype(mx.float32)
            return total, {**parts, "loss": mx.stop_gradient(total), "count": count}

        gradients: Any = mx.value_and_grad(loss)
        self._inputs: Callable[[Batch], Any] = lambda batch: [batch]
        if whole is not None:
            random: Any = mx.random.state
            gradients = mx.compile(gradients, inputs=random, outputs=random)
            self._inputs = whole.inputs
        self._gradients = gradients

    def load(self, best: bool = False) -> State | None:
        """The newest save, or the weights of the best one, for all processes."""
        state: Any = None
        if self.rank == 0:
            if not best:
                self.saves.clean()
            found = self.saves.load(self.model, None if best else self.optimizer, best)
            state = None if found is None else asdict(found)
        state = parallel.share(state, self.group)
        weights = {k: parallel.first(x, self.group) for k, x in weights_of(self.model).items()}
        self.model.load_weights(list(weights.items()), strict=False)
        if not best:
            arrays = {k: parallel.first(x, self.group) for k, x in state_of(self.optimizer).items()}
            self.optimizer.state = tree_unflatten(list(arrays.items()))
        return None if state is None else State.from_json(state)

    def go_back(self) -> State | None:
        """The best save, and none after it."""
        state = self.load(best=True)
        if state is not None and self.rank == 0:
            self.saves.go_back(state.step)
        return state

    def save(self, state: State) -> Iterator[Saved]:
        if self.saves.writes:
            if self.rank == 0:
                self.saves.save(self.model, self.optimizer, state)
            yield Saved(state.step, state.best is not None and state.best_step == state.step)

    def evaluate(self, evaluate: Evaluate) -> dict[str, float]:
        """Figures of the model as it computes, by the first process."""
        figures: dict[str, float] = {}
        if self.rank == 0:
            parameters = self.model.trainable_parameters()
            self.model.update(self.computed(parameters))
            self.model.eval()
            try:
                figures = evaluate()
            finally:
                self.model.train()
                self.model.update(parameters)
        shared: dict[str, float] = parallel.share(figures, self.group)
        return shared

    def step(self, batch: Batch, number: int) -> _Taken:
        """Take step ``number``, counted from 0, on this process's rows of its batch."""
        seed = np.random.SeedSequence([self.options.seed, number, self.rank])
        mx.random.seed(int(seed.generate_state(1)[0]))
        gradients, figures = self._sums(batch)
        for name in sorted(gradients):  # one by one: never are all there twice
            gradients[name] = parallel.total(gradients[name], self.group)
        figures["tokens"] = mx.array(batch.num_tokens)
        names = sorted(figures)
        sums = parallel.total(mx.stack([figures[n].astype(mx.float32) for n in names]), self.group)
        squares = mx.stack([mx.sum(mx.square(g)) for g in gradients.values()])
        known = mx.concatenate([mx.sqrt(mx.sum(squares))[None], sums])
        # What decides must be the same to the last bit for all.
        norm, *values = np.array(parallel.first(known, self.group)).tolist()
        found = dict(zip(names, values, strict=True))
        tokens, count = int(found.pop("tokens")), max(found.pop("count"), 1.0)
        parts = {name: value / count for name, value in found.items()}
        norm, loss = norm / count, parts.pop("loss")
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise AstrayError(f"step {number + 1} gave no number (loss {loss:g}, norm {norm:g})")
        scale = min(self.options.clip / (norm + 1e-6), 1.0) / count
        for name in gradients:
            gradients[name] = gradients[name] * scale
        self.optimizer.learning_rate = learning_rate(self.options, number)
        self.optimizer.update(self.model, tree_unflatten(list(gradients.items())))
        del gradients
        mx.eval(self.model.trainable_parameters(), self.optimizer.state)
        return _Taken(loss, norm, tokens, parts)

    def _sums(self, batch: Batch) -> tuple[dict[str, mx.array], dict[str, mx.array]]:
        """Gradients by name and figures, summed over micro-batches."""
        parameters = self.model.trainable_parameters()
        at_once = self.options.micro_batch or len(batch.tokens)
        sums: Any = None
        try:
            for start in range(0, len(batch.tokens), at_once):
                part = take(batch, slice(start, start + at_once))
                (_, figures), gradients = self._gradients(parameters, *self._inputs(part))
                new = [dict(tree_flatten(gradients)), figures]
                sums = new if sums is None else tree_map(mx.add, sums, new)
                del gradients, figures, new  # or they would outlive the next micro-batch
                mx.eval(sums)
        finally:
            self.model.update(parameters)
        gradients, figures = sums
        return gradients, figures


def _half(parameters: Tree) -> Tree:
    return tree_map(lambda x: x.astype(mx.bfloat16), parameters)


def _same(parameters: Tree) -> Tree:
    return parameters


def _keep_less(model: nn.Module, checkpointing: bool) -> None:
    """Switch gradient checkpointing on or off."""
    decoders = [m for m in model.modules() if isinstance(m, Decoder)]
    if checkpointing and not decoders:
        raise InputError(
            "gradient_checkpointing works with models of this package's own class only: leave it"
            " out, and make micro_batch smaller"
        )
    for decoder in decoders:
        decoder.gradient_checkpointing = checkpointing


def take(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch."""
    return Batch(
        batch.tokens[rows],
        batch.segments[rows],
        batch.learn[rows],
        batch.window[rows],
        None if batch.parents is None else batch.parents[rows],
    )
