"""What a training run says as it goes: read by the command line, the app and the tests."""

import math
from dataclasses import asdict, dataclass
from typing import Any


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


def to_json(event: Event) -> dict[str, Any]:
    """One line of ``metrics.jsonl``; what is no finite number becomes null."""
    line = asdict(event)
    inner = line.pop("metrics", {})
    name = "evaluation" if isinstance(event, Evaluated) else type(event).__name__.lower()
    return {"event": name, **_finite(inner), **_finite(line)}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
