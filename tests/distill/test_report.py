"""A report says what was measured, and names what was not."""

import math
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from afm_mlx.distill import plots
from afm_mlx.distill.report import MAX_EVALUATIONS, model_card, summary, thinned, write_report
from afm_mlx.distill.results import (
    Evaluation,
    Metrics,
    Results,
    Row,
    Sample,
    Scores,
    Source,
    Step,
)
from afm_mlx.errors import InputError
from tests.distill.test_markdown import hostile, rendered

import numpy as np
import pytest
from huggingface_hub import ModelCard

RESULTS = Results(
    teacher="smollm2-135m-instruct",
    student="student-98m",
    base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
    licence="apache-2.0",
    path="runs/first run/student",
    in_mlx_lm=True,
    signature="c0ffee" * 10,
    teacher_parameters=134_515_008,
    student_parameters=98_123_456,
    architecture=(Row("layers", "30", "24"), Row("FFN width", "1536", "96 to 128")),
    pruning="activation importance",
    loss="forward KL",
    sources=(Source("WikiText-103", 2_000_000, "CC BY-SA 4.0"), Source("letters")),
    held_out="64 x 255 tokens of WikiText-2",
    device="two cores",
    peak_memory=3_456_000_000,
    of_teacher=Scores(17.02, 19.5),
    of_pruned=Scores(921.3, 1203.4, 4.41, 0.24),
    of_distilled=Scores(21.3, 26.15, 0.3127, 0.7412),
    samples=(Sample("Where is Paris?", "In France.", "Paris Paris", "France"),),
    recipe={"steps": 40, "learning_rate": 1e-4, "prune": {"layers": [1, 2]}},
    filters="# Filters\n\n2 of 10 documents were dropped.",
)
METRICS = Metrics(
    tuple(
        Step(s, s * 512, s * 5.0, 6 / s, 102.4, {"kl": 5 / s, "hidden": 1 / s})
        for s in range(1, 41)
    ),
    tuple(
        Evaluation(s, s * 512, s * 5.0, 21 + 900 / (1 + s), 4 / (1 + s), 0.7 - 0.4 / (1 + s))
        for s in range(0, 41, 2)
    ),
    best=38,
    stopped="budget used",
)


@pytest.mark.parametrize("half", [1, 3, 50])
def test_running_mean(half: int) -> None:
    values = np.random.default_rng(0).normal(size=40)
    expected = [values[max(i - half, 0) : i + half + 1].mean() for i in range(40)]
    np.testing.assert_allclose(plots.running_mean(list(values), half), expected)


def test_a_thinned_line_keeps_its_outliers() -> None:
    """Every k-th point once hid a spike of the loss."""
    values = list(np.random.default_rng(0).normal(size=5001))
    values[3333], values[4444] = 99.0, -99.0
    kept = plots.extremes(values, 100)
    assert len(kept) <= 100 and {3333, 4444} <= set(kept) and kept == sorted(kept)
    assert plots.extremes(values[:7], 7) == list(range(7))


def test_plots(tmp_path: Path) -> None:
    written = plots.write_plots(tmp_path, RESULTS, METRICS)
    assert set(written) == set(plots.PLOTS) == {p.name for p in tmp_path.iterdir()}
    texts = {}
    for name in written:
        root = ElementTree.parse(tmp_path / name).getroot()
        first = root.find(".//{*}path")
        # A transparent plot has black text on a dark page.
        assert first is not None and first.get("style") == f"fill: {plots.PAPER}"
        texts[name] = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"135 M", "98.1 M", "17.02", "921.3", "21.30", "log scale"} <= set(texts["overview.svg"])
    assert {"loss", "step (strong line: mean of 3 steps)"} <= set(texts["loss.svg"])
    assert {"teacher 17.02", "pruned 921.3", "student 42.95"} <= set(texts["perplexity.svg"])
    assert {"pruned 4.410", "pruned 24.0 %", "student 69.0 %"} <= set(texts["agreement.svg"])


def test_plots_depend_on_nothing_but_the_data(tmp_path: Path) -> None:
    """Neither on the date and the person's matplotlibrc, nor do they change the latter."""
    import matplotlib

    plots.write_plots(tmp_path, RESULTS, METRICS)
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    own = {"savefig.transparent": True, "svg.fonttype": "path", "lines.linewidth": 7.0}
    with matplotlib.rc_context(own):  # type: ignore[arg-type]
        before = matplotlib.rcParams.copy()
        plots.write_plots(tmp_path, RESULTS, METRICS)
        assert matplotlib.rcParams.copy() == before
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == first
    assert not any(re.search(rb"dc:date|\b20\d\d-\d\d", content) for content in first.values())


def test_values_that_are_no_numbers_leave_gaps() -> None:
    """One NaN in a running sum made every later mean NaN, one inf the bars logarithmic."""
    bad = Metrics(
        tuple(replace(s, loss=math.nan) if s.step == 5 else s for s in METRICS.steps),
        tuple(replace(e, perplexity=math.inf, kl=math.nan) for e in METRICS.evaluations[:2])
        + METRICS.evaluations[2:],
    )
    infinite = Scores(math.inf, kl=math.inf, agreement=math.nan)
    results = replace(RESULTS, of_pruned=infinite)
    figures = [make(results, bad) for make in (plots.loss, plots.perplexity, plots.agreement)]
    lines = [[line for axes in f.axes for line in axes.lines] for f in figures if f is not None]
    counts = [[np.size(line.get_xdata()) for line in found] for found in lines]
    assert counts == [[39, 39], [19, 2], [19, 21]]  # no line of the pruned student
    assert all(np.isfinite(line.get_ydata()).all() for found in lines for line in found)
    bars = plots.overview(results, bad)
    assert bars is not None and bars.axes[1].get_xscale() == "linear"
    assert [t.get_text() for t in bars.axes[1].texts] == ["17.02", "inf", "21.30"]


def test_matplotlib_is_imported_late_and_without_pyplot(tmp_path: Path) -> None:
    """pyplot picks a window system, which a server has not."""
    code = """if True:
        import sys
        from pathlib import Path
        from afm_mlx.distill.report import write_report
        from afm_mlx.distill.results import Metrics, Results, Step
        assert "matplotlib" not in sys.modules
        write_report(Path(sys.argv[1]), Results("t", "s"), Metrics((Step(1, 1, 1, 1),) * 2))
        assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "loss.svg").is_file()


@pytest.mark.parametrize("count", [0, 1, 11, 12, 13, 14, 57, 1000])
def test_thinned_evaluations(count: int) -> None:
    every = METRICS.evaluations[:0] + tuple(Evaluation(s, s, s) for s in range(count))
    for best in (None, *range(0, count, 7)):
        shown = thinned(every, best)
        assert len(shown) <= MAX_EVALUATIONS and shown == sorted(shown, key=lambda e: e.step)
        assert {*every[:1], *every[-1:]} <= set(shown)
        assert best is None or every[best] in shown
        if count <= MAX_EVALUATIONS:
            assert shown == list(every)
        else:
            gaps = np.diff([e.step for e in shown])
            assert len(shown) >= MAX_EVALUATIONS - 1 and max(gaps) <= count / 10 + 1


def test_report(tmp_path: Path) -> None:
    path = write_report(tmp_path, RESULTS, METRICS)
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.md" and not list(tmp_path.glob(".*"))
    images = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert sorted(images) == sorted(plots.PLOTS) and all((tmp_path / i).is_file() for i in images)
    for expected in (
        "98.1 M parameters, 27.1 % fewer than its teacher",
        f"Of the {math.log(921.3 / 17.02):.3f} nats a token",
        f"{math.log(21.3 / 17.02):.3f} are left",
        "in 74.1 % of places (24.0 % before distillation)",
        "trained on 20,480 tokens in 3 min 20 s on two cores",
        "| parameters | 134,515,008 | 98,123,456 | 98,123,456 |",
        "| perplexity on the held-out text | 17.02 | 921.3 | 21.30 |",
        "| perplexity on the test text | 19.50 | 1,203 | 26.15 |",
        "| FFN width | 1536 | 96 to 128 |",
        "| mean loss of the last 2 steps | 0.1519 (kl 0.1266, hidden 0.0253) |",
        "| speed, evaluations included | 102.4 tokens/s |",
        "| peak memory | 3.46 GB |",
        "| ended | budget used |",
        "12 of 21 evaluations",
        "| 38 | 19,456 | 3 min 10 s | 44.08 | 0.1026 | 69.0 % | saved as best |",
        "| WikiText-103 | 2,000,000 | CC BY-SA 4.0 |\n| letters | not recorded | not recorded |",
        "### Filters",
        "afm chat --model 'runs/first run/student'\nmlx_lm.generate --model 'runs/first run",
        "- licence of the data: not recorded\n- safety,",
    ):
        assert expected in text
    recipe = text.partition("```toml\n")[2].partition("```")[0]
    assert tomllib.loads(recipe) == RESULTS.recipe


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    text = write_report(tmp_path, Results("t", "s"), Metrics(unreadable=2)).read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["report.md"] and "![" not in text
    for expected in (
        "**s** was distilled from **t**.",
        "- distilled: perplexity on the held-out text, KL divergence, agreement not measured",
        "overview.svg, loss.svg, perplexity.svg, agreement.svg: no plot, too few measurements",
        "- base signature: not recorded",
        "- metrics.jsonl: 2 unreadable lines",
    ):
        assert expected in text
    assert "mlx_lm.generate" not in text  # whether mlx-lm loads it was not said


def test_a_student_worse_than_the_pruned_one_is_not_praised() -> None:
    worse = replace(RESULTS, of_distilled=Scores(2000.0, agreement=0.1))
    text = summary(worse, METRICS)
    assert "921.3 after pruning, 2,000 after distillation" in text
    assert f"{math.log(2000 / 17.02):.3f} are left" in text and "10.0 % of places (24.0 %" in text


def test_report_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = write_report(tmp_path, RESULTS, METRICS).read_text()
    assert "no plot, matplotlib is not installed" in text and "| 17.02 |" in text


def test_report_into_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be written"):
        write_report(tmp_path / "missing", RESULTS, METRICS)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="could not be written"):
        write_report(tmp_path / "file", RESULTS, Metrics())


def test_hostile_samples_add_no_section(tmp_path: Path) -> None:
    texts = [hostile(seed) for seed in range(40)] + ["\n# x", "half \ud83d a pair"]
    samples = tuple(Sample(t, t, t, t) for t in texts)
    results = replace(RESULTS, samples=samples, student=hostile(1), device=hostile(2))
    page = rendered(write_report(tmp_path, results, METRICS).read_text(encoding="utf-8"))
    plain = rendered(write_report(tmp_path, RESULTS, METRICS).read_text(encoding="utf-8"))
    for tag, more in (("h1", 0), ("h2", 0), ("h3", 41), ("tr", 0), ("blockquote", 41 * 4)):
        assert page.count(f"<{tag}>") == plain.count(f"<{tag}>") + more
    assert "<script" not in page and page.count("<pre>") == plain.count("<pre>")


def test_model_card() -> None:
    card = ModelCard(model_card(RESULTS))  # as the Hub's own client reads it
    assert card.data.to_dict() == {
        "license": "apache-2.0",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "finetune",
        "library_name": "mlx",
        "pipeline_tag": "text-generation",
        "tags": ["mlx", "distillation", "pruning"],
    }
    for expected in ("# student-98m", "of 98.1 M parameters", "| 21.30 |", "CC BY-SA 4.0"):
        assert expected in card.text
    assert RESULTS.signature in card.text and "Safety, bias" in card.text


@pytest.mark.parametrize("text", ["no", "a: b # c", '"\\\n---\n', "😀\x7f\x85\ufeff", "[x]", "1.0"])
def test_front_matter_holds_any_text(text: str) -> None:
    """``license: no`` is the Boolean false in YAML, and a colon breaks the block."""
    card = ModelCard(model_card(Results(text, text, base_model=text, licence=text)))
    data = card.data.to_dict()
    assert data["license"] == text and data["base_model"] == text
    assert data["tags"] == ["mlx", "distillation"]


def test_card_of_a_local_teacher() -> None:
    card = ModelCard(model_card(Results("my-teacher", "s", in_mlx_lm=False)))
    assert "base_model" not in card.data.to_dict() and "distilled from my-teacher" in card.text
    assert "mlx_lm.generate" not in card.text and "only afm-mlx runs it" in card.text
