"""What a distillation run measured: the figures at its end, and ``metrics.jsonl`` on its way.

``metrics.jsonl`` holds one JSON object a line, written while training: ``step``,
``evaluation``, ``saved``, ``resumed`` and ``stopped`` events. A process that was killed leaves
a cut line, and steps after the last saved one that the resumed run does again.
"""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from afm_mlx.errors import InputError, first_line

if TYPE_CHECKING:
    from afm_mlx.model_args import ModelArgs


@dataclass(frozen=True)
class Scores:
    """One model on text that no one trained on; ``None`` is not measured.

    Attributes:
        perplexity: on the held-out text.
        test_perplexity: on a second text, from elsewhere.
        kl: KL divergence from the teacher on the held-out text, nats a token.
        agreement: share of places where its likeliest next token is the teacher's, 0 to 1.
    """

    perplexity: float | None = None
    test_perplexity: float | None = None
    kl: float | None = None
    agreement: float | None = None


class Row(NamedTuple):
    """One property of the architecture, in words, before and after pruning."""

    name: str
    before: str
    after: str


class Source(NamedTuple):
    """Where training text came from; ``tokens`` after filtering."""

    name: str
    tokens: int | None = None
    licence: str = ""


class Sample(NamedTuple):
    """What the three models make of one prompt; ``None`` was not asked."""

    prompt: str
    teacher: str | None = None
    pruned: str | None = None
    distilled: str | None = None


@dataclass(frozen=True)
class Results:
    """The end of a run; what is ``None`` or empty was not measured or not recorded.

    Attributes:
        teacher, student: names for people.
        base_model: the teacher on the Hub, ``owner/name``, if it is there.
        licence: licence of the student's weights as the Hub names it.
        path: the student's folder, as a person would type it.
        in_mlx_lm: whether mlx-lm loads the student, see ``ModelArgs.is_llama``.
        signature: base signature of the student's weights.
        teacher_parameters, student_parameters: number of weights, tied ones counted once.
        architecture: see :func:`architecture_rows`.
        pruning, loss: the methods by name.
        held_out, test: what the held-out and the test text are.
        tokens, seconds, device: training, all resumed runs together.
        peak_memory: bytes.
        recipe: every setting of the run; sections may be nested.
        filters: report of the data filters, Markdown.
    """

    teacher: str
    student: str
    base_model: str = ""
    licence: str = "other"
    path: str = ""
    in_mlx_lm: bool | None = None
    signature: str = ""
    teacher_parameters: int | None = None
    student_parameters: int | None = None
    architecture: tuple[Row, ...] = ()
    pruning: str = ""
    loss: str = ""
    sources: tuple[Source, ...] = ()
    held_out: str = ""
    test: str = ""
    tokens: int | None = None
    seconds: float | None = None
    device: str = ""
    peak_memory: int | None = None
    of_teacher: Scores = Scores()
    of_pruned: Scores = Scores()
    of_distilled: Scores = Scores()
    samples: tuple[Sample, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    filters: str = ""


def architecture_rows(before: "ModelArgs", after: "ModelArgs") -> tuple[Row, ...]:
    """The shape of a model before and after pruning, for :class:`Results`."""

    def shape(args: "ModelArgs") -> dict[str, str]:
        narrow, wide = min(args.ffn_sizes), max(args.ffn_sizes)
        return {
            "layers": str(args.num_hidden_layers),
            "hidden size": str(args.hidden_size),
            "FFN width": str(wide) if narrow == wide else f"{narrow} to {wide}",
            "query / key-value heads": f"{args.num_attention_heads} / {args.num_key_value_heads}",
            "vocabulary": f"{args.vocab_size:,}",
        }

    new = shape(after)
    return tuple(Row(name, value, new[name]) for name, value in shape(before).items())


@dataclass(frozen=True)
class Step:
    """One optimiser step; ``tokens`` and ``seconds`` since the start of training."""

    step: int
    tokens: int
    seconds: float
    loss: float
    tokens_per_second: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """The student on the held-out text after ``step`` steps; units as in :class:`Scores`."""

    step: int
    tokens: int
    seconds: float
    perplexity: float | None = None
    kl: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Metrics:
    """A whole run, resumed or not, each step once.

    Attributes:
        best: step of the last checkpoint saved as the best so far.
        resumed: steps from which the run went on after an interruption.
        stopped: why it ended, empty if it was not said.
        unreadable: number of lines left out because they were cut or lack a value.
    """

    steps: tuple[Step, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    best: int | None = None
    resumed: tuple[int, ...] = ()
    stopped: str = ""
    unreadable: int = 0

    @property
    def tokens(self) -> int | None:
        """Tokens trained on by the last step."""
        return self.steps[-1].tokens if self.steps else None

    @property
    def seconds(self) -> float | None:
        """Wall-clock time until the last step or evaluation."""
        ends = [s.seconds for s in self.steps[-1:]] + [e.seconds for e in self.evaluations[-1:]]
        return max(ends, default=None)

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the steps."""
        speeds = [s.tokens_per_second for s in self.steps if s.tokens_per_second is not None]
        return statistics.median(speeds) if speeds else None


def read_metrics(path: Path) -> Metrics:
    """Read ``metrics.jsonl``.

    Steps after the one that a run resumed from belong to work that was lost: they are left
    out. Of lines about the same step the last one counts.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)}): name the folder of a run"
        ) from error
    steps: dict[int, Step] = {}
    evaluations: dict[int, Evaluation] = {}
    best: dict[int, bool] = {}
    resumed: list[int] = []
    stopped, unreadable = "", 0
    for line in filter(str.strip, text.split("\n")):
        try:
            event = _event(line)
            match event.get("event"):
                case "step":
                    taken = _step(event)
                    steps[taken.step] = taken
                case "evaluation":
                    evaluation = _evaluation(event)
                    evaluations[evaluation.step] = evaluation
                case "saved":
                    best[int(event["step"])] = bool(event.get("best"))
                case "resumed":
                    step = int(event["step"])
                    steps = {k: v for k, v in steps.items() if k <= step}
                    evaluations = {k: v for k, v in evaluations.items() if k <= step}
                    best = {k: v for k, v in best.items() if k <= step}
                    stopped = ""
                    resumed.append(step)
                case "stopped":
                    stopped = str(event.get("reason", ""))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            unreadable += 1
    return Metrics(
        tuple(steps[k] for k in sorted(steps)),
        tuple(evaluations[k] for k in sorted(evaluations)),
        max((k for k, is_best in best.items() if is_best), default=None),
        tuple(resumed),
        stopped,
        unreadable,
    )


def _event(line: str) -> dict[str, Any]:
    """The object of a line, or the one at its end: a resumed run writes on after a cut line."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return dict(json.loads(line[max(line.rfind('{"event"'), 0) :]))


def _step(event: dict[str, Any]) -> Step:
    return Step(
        int(event["step"]),
        int(event["tokens"]),
        float(event["seconds"]),
        float(event["loss"]),
        _number(event.get("tokens_per_second")),
        {str(k): float(v) for k, v in (event.get("parts") or {}).items()},
    )


def _evaluation(event: dict[str, Any]) -> Evaluation:
    return Evaluation(
        int(event["step"]),
        int(event["tokens"]),
        float(event["seconds"]),
        *(_number(event.get(name)) for name in ("perplexity", "kl", "agreement")),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
