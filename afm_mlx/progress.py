"""Where a training run stands, which evaluation was its best, and whether it went astray."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

NO_WORSE = 1e-4
"""An evaluation is better than the best if it is lower by this share."""
DIVERGED = 2.0
"""A run has diverged if the mean loss of a stretch is so many times its best, plus one."""
STRETCH = 10
"""Steps in a stretch."""


class AstrayError(Exception):
    """Why a run cannot go on."""


@dataclass(frozen=True)
class State:
    """Where a run stands after ``step`` steps.

    Attributes:
        seconds: time spent so far, over all resumed parts.
        best: lowest value of the figure that selects, and the step that had it.
        waited: evaluations since then.
        losses: the last few, and ``lowest``, the best mean of a stretch of them.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    losses: tuple[float, ...] = ()
    lowest: float = math.inf

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "State":
        return cls(**{**values, "losses": tuple(values["losses"])})

    def advanced(self, loss: float, tokens: int, seconds: float) -> "State":
        """The state after one more step.

        Raises:
            AstrayError: the loss rises.
        """
        losses = (*self.losses, loss)[-STRETCH:]
        average, lowest = sum(losses) / len(losses), self.lowest
        if len(losses) == STRETCH:
            if average > DIVERGED * lowest + 1:
                raise AstrayError(
                    f"the loss rose from {lowest:.3g} to {average:.3g} by step {self.step + 1}"
                )
            lowest = min(lowest, average)
        return replace(
            self,
            step=self.step + 1,
            tokens=self.tokens + tokens,
            seconds=seconds,
            losses=losses,
            lowest=lowest,
        )

    def judged(self, value: float, name: str) -> "State":
        """The state after an evaluation, with the figure that selects.

        Raises:
            AstrayError: it is no number.
        """
        if math.isnan(value):
            raise AstrayError(f"after step {self.step} the {name} is no number")
        if self.best is None or value < self.best * (1 - NO_WORSE):
            return replace(self, best=value, best_step=self.step, waited=0)
        return replace(self, waited=self.waited + 1)
