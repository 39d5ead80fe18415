"""The end of a distillation run for people: ``report.md`` with plots, and the model card.

Both say what was measured and name what was not; neither judges.
"""

import math
import shlex
from pathlib import Path

from afm_mlx import __version__
from afm_mlx.distill.markdown import (
    MISSING,
    amount,
    duration,
    fenced,
    inline,
    lowered,
    number,
    percent,
    quote,
    quoted,
    table,
    toml,
)
from afm_mlx.distill.plots import PLOTS, write_plots
from afm_mlx.distill.results import Evaluation, Metrics, Results, Scores
from afm_mlx.files import write_bytes

MAX_EVALUATIONS = 12
"""Rows of the table of evaluations; a longer run shows as many, evenly spaced."""

_UNKNOWN = "not recorded"


def write_report(folder: Path, results: Results, metrics: Metrics) -> Path:
    """Write ``report.md`` and its plots into the folder of a run; the report's path.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        plots, note = write_plots(folder, results, metrics), "too few measurements"
    except ImportError:
        plots, note = {}, "matplotlib is not installed"
    parts = [
        f"# {inline(results.student)}",
        summary(results, metrics),
        _plot(plots, "overview.svg"),
        "## Before and after",
        _scores(results),
        _architecture(results),
        "## Training",
        _training(results, metrics),
        _plot(plots, "loss.svg"),
        _plot(plots, "perplexity.svg"),
        _plot(plots, "agreement.svg"),
        _evaluations(metrics),
        "## Samples",
        _samples(results),
        "## Data",
        _data(results),
        lowered(results.filters, 3),
        "## Recipe",
        fenced(toml(results.recipe), "toml") if results.recipe else f"The recipe was {_UNKNOWN}.",
        "## How to use it",
        _use(results, results.path or "PATH_OF_THE_STUDENT"),
        "## What is missing here",
        _missing(results, metrics, plots, note),
    ]
    path = folder / "report.md"
    write_bytes(path, _text(parts))
    return path


def summary(results: Results, metrics: Metrics) -> str:
    """The figures that matter in one paragraph; what is missing is left out."""
    student, teacher = f"**{inline(results.student)}**", f"**{inline(results.teacher)}**"
    before, after = results.teacher_parameters, results.student_parameters
    out = [f"{student} was distilled from {teacher}."]
    if before and after:
        out = [
            f"{student} has {amount(after)} parameters, {percent(1 - after / before)} fewer than"
            f" its teacher {teacher} ({amount(before)})."
        ]
    scores = {
        "for the teacher": results.of_teacher,
        "after pruning": results.of_pruned,
        "after distillation": results.of_distilled,
    }
    known = [f"{number(s.perplexity)} {k}" for k, s in scores.items() if s.perplexity is not None]
    if known:
        out.append(f"Perplexity on the held-out text: {', '.join(known)}.")
    added, left = (excess(s, results.of_teacher) for s in (results.of_pruned, results.of_distilled))
    if added is not None and left is not None and added > 0:
        out.append(
            f"Of the {added:.3f} nats a token that pruning added to the loss, {left:.3f} are left."
        )
    if results.of_distilled.agreement is not None:
        was = results.of_pruned.agreement
        out.append(
            f"Its likeliest next token is the teacher's in"
            f" {percent(results.of_distilled.agreement)} of places"
            f"{f' ({percent(was)} before distillation)' if was is not None else ''}."
        )
    tokens, seconds = _totals(results, metrics)
    if tokens is not None:
        on = f" on {inline(results.device)}" if results.device else ""
        took = f" in {duration(seconds)}" if seconds is not None else ""
        out.append(f"It was trained on {tokens:,} tokens{took}{on}.")
    return " ".join(out)


def excess(scores: Scores, teacher: Scores) -> float | None:
    """Loss above the teacher's on the held-out text, nats a token; ``None`` if unknown."""
    if not scores.perplexity or not teacher.perplexity:
        return None
    return math.log(scores.perplexity) - math.log(teacher.perplexity)


def model_card(results: Results) -> str:
    """``README.md`` of the student's folder, with the front matter that the Hub reads."""
    front = [f"license: {quoted(results.licence)}"]
    if results.base_model:
        # The Hub knows adapter, merge, quantized and finetune: the last comes nearest.
        front += [f"base_model: {quoted(results.base_model)}", "base_model_relation: finetune"]
    front += ["library_name: mlx", "pipeline_tag: text-generation", "tags:"]
    front += ["- mlx", "- distillation"] + ["- pruning"] * bool(results.pruning)
    size = results.student_parameters
    parts = [
        "\n".join(["---", *front, "---"]),
        f"# {inline(results.student)}",
        f"A language model{f' of {amount(size)} parameters' if size else ''}, distilled from"
        f" {inline(results.base_model or results.teacher)} with afm-mlx {__version__}.",
        "## How it was made",
        _made(results),
        _architecture(results),
        "## Data",
        _data(results),
        "## Results",
        _scores(results),
        "## Limitations",
        "What limits the teacher limits this model too: see the card of"
        f" {inline(results.base_model or results.teacher)}. The figures above are all that was"
        " measured. Safety, bias and the truth of its answers were not evaluated; a pruned model"
        " can have lost knowledge and languages that the held-out text does not contain.",
        "## How to use it",
        _use(results, "PATH_OF_THIS_FOLDER"),
        "Base signature, to which adapters are bound:"
        f" {f'`{results.signature}`' if results.signature else _UNKNOWN}.",
    ]
    return _text(parts).decode()


def _text(parts: list[str]) -> bytes:
    text = "\n\n".join(part for part in parts if part) + "\n"
    return text.encode("utf-8", "replace")  # half a surrogate pair becomes a question mark


def _totals(results: Results, metrics: Metrics) -> tuple[int | None, float | None]:
    tokens = metrics.tokens if results.tokens is None else results.tokens
    return tokens, metrics.seconds if results.seconds is None else results.seconds


def _plot(plots: dict[str, str], name: str) -> str:
    return f"![{plots[name]}]({name})" if name in plots else ""


def _or(text: str) -> str:
    return inline(text) if text else _UNKNOWN


def _scores(results: Results) -> str:
    teacher, *students = models = [results.of_teacher, results.of_pruned, results.of_distilled]
    size = results.student_parameters
    sizes = [_UNKNOWN if n is None else f"{n:,}" for n in (results.teacher_parameters, size, size)]
    above = [excess(s, teacher) for s in students]
    rows = [
        ["parameters", *sizes],
        ["perplexity on the held-out text", *(number(s.perplexity) for s in models)],
        [
            "loss above the teacher's, nats a token",
            "—",
            *(MISSING if a is None else f"{a:.3f}" for a in above),
        ],
        ["KL divergence from the teacher, nats a token", "—", *(number(s.kl) for s in students)],
        ["same next token as the teacher", "—", *(percent(s.agreement) for s in students)],
    ]
    if any(s.test_perplexity is not None for s in models):
        rows.insert(
            2, ["perplexity on the test text", *(number(s.test_perplexity) for s in models)]
        )
    out = table(["", "teacher", "after pruning", "after distillation"], rows, numbers=True)
    texts = {"Held-out text": results.held_out, "Test text": results.test}
    notes = [f"{name}: {inline(text)}." for name, text in texts.items() if text]
    return "\n\n".join([out, *([" ".join(notes)] if notes else [])])


def _architecture(results: Results) -> str:
    rows = [[inline(cell) for cell in row] for row in results.architecture]
    return table(["", "teacher", "student"], rows, numbers=True) if rows else ""


def _made(results: Results) -> str:
    tokens = results.tokens
    rows = [
        ["teacher", inline(results.teacher)],
        ["pruning", _or(results.pruning)],
        ["loss", _or(results.loss)],
        ["tokens trained on", _UNKNOWN if tokens is None else f"{tokens:,}"],
        ["time", _UNKNOWN if results.seconds is None else duration(results.seconds)],
        ["device", _or(results.device)],
    ]
    return table(["", ""], rows)


def _training(results: Results, metrics: Metrics) -> str:
    tokens, seconds = _totals(results, metrics)
    steps = metrics.steps
    last = steps[-max(len(steps) // 20, 1) :]
    rows = [
        ["pruning", _or(results.pruning)],
        ["loss", _or(results.loss)],
        ["steps", f"{steps[-1].step:,}" if steps else _UNKNOWN],
        ["tokens", _UNKNOWN if tokens is None else f"{tokens:,}"],
        ["time", duration(seconds)],
        ["speed, evaluations included", _speed(tokens, seconds)],
        ["speed of the median step", _speed(metrics.tokens_per_second, 1)],
        ["peak memory", amount(results.peak_memory, "B")],
        ["device", _or(results.device)],
    ]
    if last:
        mean = sum(s.loss for s in last) / len(last)
        names = dict.fromkeys(name for s in last for name in s.parts)
        means = {n: sum(s.parts.get(n, 0.0) for s in last) / len(last) for n in names}
        parts = ", ".join(f"{inline(n)} {number(v)}" for n, v in means.items())
        label = f"mean loss of the last {len(last)} steps" if len(last) > 1 else "last loss"
        rows.insert(3, [label, number(mean) + (f" ({parts})" if parts else "")])
    if metrics.resumed:
        rows.append(["resumed after step", ", ".join(f"{s:,}" for s in metrics.resumed)])
    if metrics.stopped:
        rows.append(["ended", inline(metrics.stopped)])
    return table(["", ""], rows)


def _speed(tokens: float | None, seconds: float | None) -> str:
    if tokens is None or not seconds:
        return MISSING
    return f"{number(tokens / seconds)} tokens/s"


def thinned(evaluations: tuple[Evaluation, ...], best: int | None) -> list[Evaluation]:
    """At most ``MAX_EVALUATIONS``: first, last, the one of step ``best``, evenly between."""
    count = len(evaluations)
    if count <= MAX_EVALUATIONS:
        return list(evaluations)
    last = MAX_EVALUATIONS - 2
    kept = {evaluations[round(i * (count - 1) / last)] for i in range(last + 1)}
    kept |= {e for e in evaluations if e.step == best}
    return sorted(kept, key=lambda e: e.step)


def _evaluations(metrics: Metrics) -> str:
    every = metrics.evaluations
    shown = thinned(every, metrics.best)
    if not shown:
        return ""
    head = ["step", "tokens", "time", "perplexity", "KL, nats a token", "same next token", ""]
    rows = [
        [
            f"{e.step:,}",
            f"{e.tokens:,}",
            duration(e.seconds),
            number(e.perplexity),
            number(e.kl),
            percent(e.agreement),
            "saved as best" if e.step == metrics.best else "",
        ]
        for e in shown
    ]
    out = table(head, rows, numbers=True)
    less = f"{len(shown)} of {len(every)} evaluations on the held-out text.\n\n"
    return (less if len(shown) < len(every) else "") + out


def _samples(results: Results) -> str:
    out = []
    for i, sample in enumerate(results.samples, 1):
        out += [f"### Prompt {i}", quote(sample.prompt)]
        for name in ("teacher", "pruned", "distilled"):
            out += [f"**{name.capitalize()}**", quote(getattr(sample, name))]
    return "\n\n".join(out) or f"Samples were {_UNKNOWN}."


def _data(results: Results) -> str:
    rows = [
        [inline(s.name), _UNKNOWN if s.tokens is None else f"{s.tokens:,}", _or(s.licence)]
        for s in results.sources
    ]
    if not rows:
        return f"The training data was {_UNKNOWN}."
    return table(["source", "tokens", "licence"], rows)


def _use(results: Results, path: str) -> str:
    folder = shlex.quote(path)
    commands = [f"afm chat --model {folder}"]
    if results.in_mlx_lm:
        commands.append(f'mlx_lm.generate --model {folder} --prompt "Write a short greeting."')
    note = "\n\nmlx-lm has no class for this shape: only afm-mlx runs it."
    return fenced("\n".join(commands), "sh") + (note if results.in_mlx_lm is False else "")


def _missing(results: Results, metrics: Metrics, plots: dict[str, str], note: str) -> str:
    out = []
    for name in ("teacher", "pruned", "distilled"):
        scores: Scores = getattr(results, f"of_{name}")
        lacks = [] if scores.perplexity is not None else ["perplexity on the held-out text"]
        if name != "teacher":
            lacks += ["KL divergence"] * (scores.kl is None)
            lacks += ["agreement"] * (scores.agreement is None)
        if lacks:
            out.append(f"{name}: {', '.join(lacks)} {MISSING}")
    recorded = {
        "teacher's number of parameters": results.teacher_parameters,
        "student's number of parameters": results.student_parameters,
        "architecture": results.architecture,
        "licence of the data": results.sources and all(s.licence for s in results.sources),
        "report of the data filters": results.filters,
        "held-out text": results.held_out,
        "base signature": results.signature,
    }
    out += [f"{name}: {_UNKNOWN}" for name, value in recorded.items() if not value]
    absent = [name for name in PLOTS if name not in plots]
    out += [f"{', '.join(absent)}: no plot, {note}"] if absent else []
    if metrics.unreadable:
        out.append(f"metrics.jsonl: {metrics.unreadable} unreadable lines were left out")
    out.append("safety, bias and truth of the student's answers: not evaluated")
    return "\n".join(f"- {line}" for line in out)
