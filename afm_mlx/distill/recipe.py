"""A recipe: every setting of a distillation run, each with its one default.

The command line shows the same dataclasses as options; a TOML file holds any of them, flat or
in tables, and ``key=value`` sets one.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from afm_mlx.data.sources import Source
from afm_mlx.distill.endpoint import EndpointOptions
from afm_mlx.distill.logits import CacheOptions
from afm_mlx.distill.objective import LossOptions
from afm_mlx.distill.onpolicy import OnPolicyOptions
from afm_mlx.distill.rewards import RewardOptions
from afm_mlx.distill.sequence import SequenceOptions
from afm_mlx.distill.shape import PruneOptions
from afm_mlx.errors import InputError, first_line
from afm_mlx.training import TrainingOptions

Filter = Literal["exact", "near", "personal", "profanity", "heuristics"]


@dataclass(frozen=True)
class DataOptions:
    """What to learn from."""

    data: tuple[str, ...] = ()
    """Files, folders or hf:owner/name, each with :weight if they should not count alike; JSONL
    (text, messages, prompt and completion), .txt or .md. WikiText-2 (CC BY-SA 3.0) if none."""
    text_field: str = "text"
    """Field of JSON objects that holds the text."""
    filters: tuple[Filter, ...] = ()
    """Filters in their order, such as exact near personal; they look at each source alone."""
    quality: str = ""
    """File of a quality classifier; samples below one half are dropped."""
    skip_bad: bool = False
    """Leave out lines that cannot be read, in place of stopping at the first."""
    window: int = 256
    """Tokens of a training window."""
    held_out: int = 24
    """Windows at the end of each source that are measured on, never trained."""
    test: str = ""
    """A further text file, measured on before and after."""

    def __post_init__(self) -> None:
        if self.window < 2:
            raise InputError(f"window must be at least 2 tokens, not {self.window}")
        if self.held_out < 1:
            raise InputError("held_out must be at least 1 window: the best weights need it")

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(Source.parse(d, self.text_field) for d in self.data or (str(SHIPPED),))


@dataclass(frozen=True)
class AskOptions:
    """The task stage: teachers answer prompts, and the best answers are learnt."""

    prompts: str = ""
    """JSONL of prompts (messages or prompt) that the teachers answer before training."""
    endpoint: tuple[str, ...] = ()
    """Addresses of OpenAI-compatible servers that answer, too; alone if no teacher is named."""
    endpoint_model: str = ""
    """Name of the model to ask for there."""
    how: EndpointOptions = field(default_factory=EndpointOptions)
    sequence: SequenceOptions = field(default_factory=SequenceOptions)
    reward: RewardOptions = field(default_factory=RewardOptions)

    def __post_init__(self) -> None:
        if self.endpoint and not self.prompts:
            raise InputError("an endpoint answers prompts: name a file with --prompts")


SHIPPED = Path(__file__).parent / "text" / "wikitext-2.jsonl"
"""Text of Wikipedia articles, CC BY-SA 3.0; see the README beside it."""


@dataclass(frozen=True)
class Recipe:
    """Prune a student out of a teacher and distil it.

    Without options: the embedded SmolLM2-135M-Instruct teaches a student with half its FFN
    (95 M parameters) on the text that comes along. The same command again goes on where it
    stopped; raise steps to go on longer.

      python -m afm_mlx.distill
      python -m afm_mlx.distill --steps 400
      python -m afm_mlx.distill --teacher HuggingFaceTB/SmolLM2-1.7B-Instruct \\
          --student HuggingFaceTB/SmolLM2-360M-Instruct --data chats.jsonl:0.7 books/:0.3
      python -m afm_mlx.distill --config recipe.toml steps=1000 learning_rate=3e-4
    """

    teacher: tuple[str, ...] = ()
    """Model folder, .gguf file or hub repository; several form a committee. The embedded
    default if left out."""
    teacher_weights: tuple[float, ...] = ()
    """How much each member of a committee counts; alike if left out."""
    student: str = ""
    """A smaller model to teach; if left out, one is pruned from the (first) teacher."""
    out: Path = Path("distilled")
    """Folder of the run: student, report, metrics, saves."""
    seconds: float = 0.0
    """Stop after so many seconds of training, with a save; 0 trains to the last step."""
    licence: str = "other"
    """Licence of the student's weights as the Hub names it; that of the teacher, usually."""
    data: DataOptions = field(default_factory=DataOptions)
    prune: PruneOptions = field(default_factory=PruneOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
    asking: AskOptions = field(default_factory=AskOptions)
    own: OnPolicyOptions = field(default_factory=OnPolicyOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)

    def __post_init__(self) -> None:
        if self.loss.looks_inside and self.cache.top_k:
            raise InputError("hidden states need a teacher that runs along: set top_k to 0")
        if self.own.on_policy and self.cache.top_k and self.loss.needs_teacher:
            raise InputError("the student's own answers are in no cache: set top_k to 0")
        labels = self.loss.loss in ("cross-entropy", "teacher-top1") or self.loss.label_weight
        if self.own.on_policy and labels:
            raise InputError(
                "the student's own answers are no labels: choose a divergence as loss, without"
                " label_weight"
            )
        if self.prune.learned_masks and (self.prune.layers or not self.cache.top_k):
            raise InputError(
                "masks are learnt for a whole stack, from cached logits: leave layers out, and set"
                " top_k"
            )

    def to_dict(self) -> dict[str, Any]:
        """All settings in tables, as :func:`from_values` and TOML take them."""
        return _plain(dataclasses.asdict(self))


CHANGEABLE = (
    "steps", "out", "seconds", "evaluate_every", "save_every", "patience", "licence",
    "micro_batch", "gradient_checkpointing", "warmup", "final", "learning_rate",
)  # fmt: skip
"""Settings that may differ when a run goes on."""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def read_toml(path: Path) -> dict[str, Any]:
    """Settings of a recipe file, tables flattened."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({first_line(error)}): check its name") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is no TOML ({first_line(error)}): correct that place") from error
    return flat(values)


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without their tables."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value) if isinstance(value, dict) else {name: value}
    return found


def parse_setting(text: str) -> tuple[str, Any]:
    """``steps=100`` as TOML reads it; what is no TOML is taken as a string."""
    name, _, value = text.partition("=")
    try:
        return name.strip(), tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def from_values(values: Mapping[str, Any]) -> Recipe:
    """A recipe with some settings, by their names.

    Raises:
        InputError: a name or a value is not possible.
    """
    values = dict(values)
    recipe = _filled(Recipe, values)
    if values:
        name = next(iter(values))
        near = difflib.get_close_matches(name, settings(), n=1)
        hint = f"did you mean {near[0]}?" if near else "see python -m afm_mlx.distill --help"
        raise InputError(f"there is no setting {name!r}: {hint}")
    return recipe


def settings(kind: Any = Recipe) -> list[str]:
    """Names of all settings."""
    found: list[str] = []
    for f in fields(kind):
        factory: Any = f.default_factory
        found += settings(factory) if dataclasses.is_dataclass(factory) else [f.name]
    return found


def _filled(kind: Any, values: dict[str, Any]) -> Any:
    """An object of dataclass ``kind`` that takes what it knows out of ``values``."""
    given: dict[str, Any] = {}
    types = get_type_hints(kind)
    for f in fields(kind):
        factory: Any = f.default_factory
        if dataclasses.is_dataclass(factory):
            given[f.name] = _filled(factory, values)
        elif f.name in values:
            value = _fitting(f.name, values.pop(f.name), getattr(kind, f.name, None))
            _check_choice(f.name, value, types[f.name])
            given[f.name] = value
    return kind(**given)


def _check_choice(name: str, value: Any, wanted: Any) -> None:
    """Refuse what is none of the choices of a ``Literal``, or of a tuple of such."""
    inner = get_args(wanted)[0] if get_origin(wanted) is tuple else wanted
    choices = get_args(inner) if get_origin(inner) is Literal else None
    for item in value if isinstance(value, tuple) else (value,):
        if choices and item not in choices:
            raise InputError(f"{name} cannot be {item!r}: choose among {', '.join(choices)}")


def _fitting(name: str, value: Any, default: Any) -> Any:
    """``value`` in the type of ``default``."""
    if isinstance(default, tuple):
        items = value if isinstance(value, list) else [value]
        return tuple(v if isinstance(v, float | int) else str(v) for v in items)
    if isinstance(default, Path):
        return Path(str(value))
    if isinstance(default, bool) or default is None:
        if isinstance(value, bool):
            return value
    elif isinstance(default, str):
        return str(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(default, float) or isinstance(value, int):
            return type(default)(value)
    wanted = "true or false" if default is None else type(default).__name__
    raise InputError(f"{name}={value!r} must be {wanted}")


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Sequence[str]:
    """Settings that a run must not change when it goes on, but did."""
    a, b = flat(before), flat(after)
    return [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k) and k not in CHANGEABLE]
