"""Plots of a distillation run as SVG files.

Text stays text in a generic font, the background is opaque, so that a plot reads the same on
a light and on a dark page, and equal data give equal bytes. matplotlib is imported when the
first plot is made, and nothing of its global state is touched for longer than one plot.
"""

import io
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afm_mlx.distill.markdown import amount, number
from afm_mlx.distill.results import Metrics, Results
from afm_mlx.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS = {
    "overview.svg": "Parameters and perplexity of teacher, pruned and distilled student",
    "loss.svg": "Training loss by step",
    "perplexity.svg": "Perplexity on the held-out text by tokens",
    "agreement.svg": "KL divergence from the teacher and agreement with it by tokens",
}
"""Files and what they show."""

INK, MUTED, GRID, PAPER = "#24292f", "#59636e", "#dde1e6", "#f6f8fa"
TEACHER, PRUNED, DISTILLED = "#59636e", "#bc4c00", "#0969da"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "afm-mlx",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "lines.solid_capstyle": "round",
}
_MAX_POINTS = 2000  # of one line: more cannot be seen and make the file slow

Series = tuple[list[float], list[float]]


def write_plots(folder: Path, results: Results, metrics: Metrics) -> dict[str, str]:
    """Write the plots that have data into ``folder``; file name to what the plot shows.

    Raises:
        InputError: the folder cannot be written.
        ImportError: matplotlib is not installed.
    """
    written = {}
    for (name, title), make in zip(
        PLOTS.items(), (overview, loss, perplexity, agreement), strict=True
    ):
        with style():
            figure = make(results, metrics)
            if figure is not None:
                write_bytes(folder / name, svg(figure))
                written[name] = title
    return written


def svg(figure: "Figure") -> bytes:
    """``figure`` as an SVG file without date and version."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def style() -> AbstractContextManager[None]:
    """The look of the plots, whatever the person's own matplotlib settings say."""
    import matplotlib

    settings: Any = {**matplotlib.rcParamsDefault, **_STYLE}
    del settings["backend"]
    return matplotlib.rc_context(settings)


def loss(results: Results, metrics: Metrics) -> "Figure | None":
    """Loss of every step, faint, and its mean over a window of steps."""
    steps, losses = _finite((s.step, s.loss) for s in metrics.steps)
    if len(steps) < 2:
        return None
    figure, (axes,) = _figure(1)
    half = max(len(steps) // 50, 1)
    smooth = running_mean(losses, half)
    kept = extremes(losses, _MAX_POINTS)
    faint = [steps[i] for i in kept], [losses[i] for i in kept]
    axes.plot(*faint, color=DISTILLED, alpha=0.28, linewidth=0.9)
    thin = slice(None, None, math.ceil(len(steps) / _MAX_POINTS))
    axes.plot(steps[thin], smooth[thin], color=DISTILLED)
    axes.set_title("Training loss")
    axes.set_xlabel(f"step (strong line: mean of {2 * half + 1} steps)")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_formatter(_ticks(lambda x: f"{x:,.0f}"))
    return figure


def agreement(results: Results, metrics: Metrics) -> "Figure | None":
    """KL divergence from the teacher and top-1 agreement with it, beside each other."""
    kl = _finite((e.tokens, e.kl) for e in metrics.evaluations)
    share = _finite((e.tokens, _times_100(e.agreement)) for e in metrics.evaluations)
    if min(len(kl[0]), len(share[0])) < 2:
        return None
    figure, panels = _figure(2)
    pruned = results.of_pruned
    for axes, points, start, title, unit, text in (
        (panels[0], kl, pruned.kl, "KL divergence from the teacher", "nats a token", number),
        (
            panels[1],
            share,
            _times_100(pruned.agreement),
            "Same next token as the teacher",
            "share of places, %",
            lambda y: f"{y:.1f} %",
        ),
    ):
        _student(axes, points)
        lines = [("student", points[1][-1], DISTILLED)]
        if start is not None and math.isfinite(start):
            axes.axhline(start, color=PRUNED, linestyle=(0, (4, 3)), linewidth=1.3)
            lines.append(("pruned", start, PRUNED))
        _by_tokens(axes, title, unit)
        if text is number:  # a divergence is measured from 0
            axes.set_ylim(bottom=0)
        _label_lines(axes, lines, text)
    return figure


def perplexity(results: Results, metrics: Metrics) -> "Figure | None":
    """Perplexity on the held-out text, with those of the teacher and of the pruned student."""
    points = _finite((e.tokens, e.perplexity) for e in metrics.evaluations)
    if len(points[0]) < 2:
        return None
    figure, (axes,) = _figure(1)
    axes.set_yscale("log")
    _student(axes, points)
    lines = [("student", points[1][-1], DISTILLED)]
    for name, scores, color in (
        ("teacher", results.of_teacher, TEACHER),
        ("pruned", results.of_pruned, PRUNED),
    ):
        if scores.perplexity is not None and math.isfinite(scores.perplexity):
            axes.axhline(scores.perplexity, color=color, linestyle=(0, (4, 3)), linewidth=1.3)
            lines.append((name, scores.perplexity, color))
    _by_tokens(axes, "Perplexity on the held-out text", "perplexity, log scale")
    _log_ticks(axes, [*points[1], *(value for _, value, _ in lines)])
    _label_lines(axes, lines)
    return figure


def overview(results: Results, metrics: Metrics) -> "Figure | None":
    """Bars: parameters, and perplexity on the held-out text, of the three models."""
    models = [
        ("teacher", results.teacher_parameters, results.of_teacher.perplexity, TEACHER),
        ("pruned", results.student_parameters, results.of_pruned.perplexity, PRUNED),
        ("distilled", results.student_parameters, results.of_distilled.perplexity, DISTILLED),
    ]
    known = [p for _, _, p, _ in models if p is not None and math.isfinite(p)]
    if len(known) < 2 or any(size is None for _, size, _, _ in models):
        return None
    figure, (left, right) = _figure(2, height=2.5, sharey=True)
    rows = range(len(models))
    colors = [color for *_, color in models]
    log = max(known) / min(known) > 30
    floor = 1.0 if log else 0.0  # a perplexity is at least 1
    bars = [p if p is not None and math.isfinite(p) else floor for _, _, p, _ in models]
    left.barh(rows, [size or 0 for _, size, _, _ in models], color=colors, height=0.58)
    if log:
        right.set_xscale("log")
    right.barh(rows, [bar - floor for bar in bars], left=floor, color=colors, height=0.58)
    for row, (_, size, score, _) in enumerate(models):
        for axes, end, text in ((left, size or 0, amount(size)), (right, bars[row], number(score))):
            axes.annotate(text, (end, row), (5, 0), textcoords="offset points", va="center")
    left.set_yticks(rows, [name for name, *_ in models], color=INK)
    left.invert_yaxis()
    left.set_title("Parameters")
    right.set_title("Perplexity on the held-out text")
    right.set_xlabel("log scale" if log else "", loc="left")
    for axes in (left, right):
        axes.margins(x=0.24)
        axes.grid(False)
        axes.tick_params(length=0, labelbottom=False, which="both")
        axes.spines["bottom"].set_visible(False)
    return figure


def running_mean(values: Sequence[float], half: int) -> list[float]:
    """Mean of each value and its neighbours, ``half`` on either side where there are as many."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    ends = [(max(i - half, 0), min(i + half + 1, len(values))) for i in range(len(values))]
    return [(sums[b] - sums[a]) / (b - a) for a, b in ends]


def extremes(values: Sequence[float], limit: int) -> list[int]:
    """Places of the smallest and the largest of each of ``limit / 2`` runs of ``values``, so
    that a thinned line keeps its outliers; all places where these are at most ``limit``."""
    if len(values) <= limit:
        return list(range(len(values)))
    size = math.ceil(len(values) / (limit // 2))
    kept: set[int] = set()
    for start in range(0, len(values), size):
        run = range(start, min(start + size, len(values)))
        kept |= {min(run, key=values.__getitem__), max(run, key=values.__getitem__)}
    return sorted(kept)


def _finite(points: Any) -> Series:
    kept = [(float(x), float(y)) for x, y in points if y is not None and math.isfinite(y)]
    return [x for x, _ in kept], [y for _, y in kept]


def _times_100(share: float | None) -> float | None:
    return None if share is None else share * 100


def _figure(panels: int, height: float = 3.6, **options: Any) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.14, wspace=0.04)
    figure = Figure(figsize=(8, height), layout=layout)
    return figure, list(figure.subplots(1, panels, squeeze=False, **options)[0])


def _ticks(text: Callable[[float], str]) -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda x, _: text(x))


def _student(axes: "Axes", points: Series) -> None:
    """The line of the student; dots show the evaluations while they are few."""
    axes.plot(*points, color=DISTILLED, marker="o" if len(points[0]) <= 60 else "")


def _by_tokens(axes: "Axes", title: str, unit: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel(unit)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(_ticks(lambda x: amount(x)))


def _log_ticks(axes: "Axes", values: Sequence[float]) -> None:
    """Plain numbers at round places, also where the values span less than a decade."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    span = max(values) / min(values)
    narrow = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
    wide = LogLocator(subs=(1, 2, 5) if span < 1e3 else (1,))
    axes.yaxis.set_major_locator(narrow if span < 4 else wide)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(_ticks(lambda y: f"{y:,.6g}"))


def _label_lines(
    axes: "Axes", lines: Sequence[tuple[str, float, str]], text: Callable[[float], str] = number
) -> None:
    """Name each line and its value to the right of it, moved apart where they would touch."""
    to_axes = axes.transData + axes.transAxes.inverted()
    placed = sorted((float(to_axes.transform((0, y))[1]), name, y, c) for name, y, c in lines)
    gap, lowest = 0.075, 0.0
    heights = []
    for i, (height, *_) in enumerate(placed):
        # room is left for the labels that follow, so that the last stays inside
        height = min(max(height, lowest), 1 - gap * (len(placed) - 1 - i))
        heights.append(height)
        lowest = height + gap
    for height, (_, name, y, color) in zip(heights, placed, strict=True):
        label = f"{name} {text(y)}"
        axes.text(1.015, height, label, color=color, va="center", transform=axes.transAxes)
