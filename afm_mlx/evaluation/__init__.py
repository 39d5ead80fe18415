"""How well the features do: evaluation rows answered, checked, judged and compared."""

from afm_mlx.evaluation.checks import Given, Ratio, measure
from afm_mlx.evaluation.rows import KINDS, Task, load
from afm_mlx.evaluation.run import Answered, Answers, EvaluationOptions, asked, evaluate, settings
from afm_mlx.evaluation.table import Estimate, Line, lines
from afm_mlx.evaluation.verdict import Thresholds, Verdict, judge

__all__ = [
    "KINDS",
    "Answered",
    "Answers",
    "Estimate",
    "EvaluationOptions",
    "Given",
    "Line",
    "Ratio",
    "Task",
    "Thresholds",
    "Verdict",
    "asked",
    "evaluate",
    "judge",
    "lines",
    "load",
    "measure",
    "settings",
]
