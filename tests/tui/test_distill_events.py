"""What the distillation screen reads and says, without the screen."""

import asyncio
import json
from pathlib import Path

from afm_mlx import checkpoint
from afm_mlx.distill.results import Metrics, read_metrics
from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS
from afm_mlx.tui.distill.nexttokens import Next, bars, likeliest, top
from afm_mlx.tui.distill.process import Order
from afm_mlx.tui.distill.runner import summary
from afm_mlx.tui.distill.watching import Folder, Watched, curves, figures, follow, look_into
from tests.conftest import random_model, tiny_tokenizer
from tests.tui.foreign_run import lines, run_folder, step

import pytest

PATIENCE = 900.0
"""Seconds that a file gets on a busy machine."""


def test_following_waits_and_skips(tmp_path: Path) -> None:
    """The file is not there yet, then half a line is; each state of it comes once."""
    file = tmp_path / "metrics.jsonl"

    async def run() -> list[Metrics]:
        found: list[Metrics] = []
        begun = asyncio.Event()

        async def read() -> None:
            async for metrics in follow(file, 0.01):
                found.append(metrics)
                begun.set()

        task = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        assert not found
        file.write_text(lines(step(1, 3.0)) + json.dumps(step(2, 2.5))[:30])
        await asyncio.wait_for(begun.wait(), PATIENCE)
        begun.clear()
        with file.open("a") as f:
            f.write("\n" + lines(step(2, 2.5), {"event": "resumed", "step": 1}, step(2, 2.4)))
        await asyncio.wait_for(begun.wait(), PATIENCE)
        task.cancel()
        return found

    first, *_, last = asyncio.run(run())
    assert [s.step for s in first.steps] == [1] and first.unreadable == 1
    assert [(s.step, s.loss) for s in last.steps] == [(1, 3.0), (2, 2.4)]


def test_the_likeliest_tokens(tmp_path: Path) -> None:
    """Beside the probabilities of the whole vocabulary, computed by numpy."""
    import numpy as np

    model = random_model(PRESETS["tiny"])
    checkpoint.save(tmp_path / "model", model, tiny_tokenizer(), base="none")
    found = asyncio.run(likeliest(str(tmp_path / "model"), "The sea", 3))
    import mlx.core as mx

    tokens = mx.array([tiny_tokenizer().encode("The sea")])
    logits = np.array(model(tokens)[0, -1]).astype(np.float64)
    chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = np.argsort(-chances)[:3]
    assert [n.probability for n in found] == pytest.approx(chances[best].tolist(), rel=1e-3)
    assert [n.token for n in found] == [tiny_tokenizer().decode([i]) for i in best.tolist()]
    with pytest.raises(InputError, match="type some"):
        asyncio.run(likeliest(None, ""))


def test_bars() -> None:
    one = [Next(" the", 0.5), Next("\x1b[31m", 0.25), Next("漢字", 0.0)]
    drawn = bars([("teacher", one), ("student", [Next(" a", 1.0)])], 60)
    assert drawn == [
        "teacher                        student",
        "' the'    ███████······· 0.50  ' a'      ██████████████ 1.00",
        "'\\x1b[31m ████·········· 0.25",
        "'漢字'    ·············· 0.00",
    ]
    assert bars([], 60) == [""]
    assert [i for i, _ in top([0.0, 3.0, 1.0], 2)] == [1, 2]
    assert sum(p for _, p in top([0.0, 3.0, 1.0], 3)) == pytest.approx(1)
    assert top([1e4, -1e4], 1) == [(0, 1.0)]  # no overflow


def test_fields_become_arguments() -> None:
    assert Order().arguments() == ["--out", "distilled"]
    order = Order("a 'b c'", "x.jsonl:0.7 y/", "9", "r.toml", "~/run", "ffn=0.25 --learned-masks 3")
    assert order.arguments() == [
        *("--config", "r.toml", "ffn=0.25", "--learned-masks", "3"),
        *("--teacher", "a", "b c", "--data", "x.jsonl:0.7", "y/"),
        *("--steps", "9", "--out", str(Path.home() / "run")),
    ]
    assert order.arguments(4)[-4:-2] == ["--steps", "4"]


def test_events_that_lack_something_change_nothing() -> None:
    watched = Watched()
    for event in ({}, {"event": "progress"}, {"event": "step"}, {"event": "new kind", "step": 9}):
        watched.see(event)
    assert (watched.step, watched.saved) == (0, 0)
    watched.see({"event": "progress", "stage": "importance", "done": 3, "total": 32})
    assert summary(watched, None, Folder(Path()))[0] == "✓ plan … importance 3 of 32"
    watched.see({"event": "resumed", "step": 7})
    watched.see({"event": "stopped", "reason": "no better perplexity"})
    assert watched.saved == 7 and "! no better perplexity" in summary(watched, None, Folder(Path()))


def test_curves_and_figures(tmp_path: Path) -> None:
    assert figures(Metrics(), 10) == ["no step is taken yet"]
    found = read_metrics(run_folder(tmp_path / "run") / "metrics.jsonl")
    drawn = curves(found)
    assert drawn["loss"]["train"] == [(1.0, 3.0), (2.0, 2.5)]
    assert drawn["KL"]["held-out"] == [(2.0, 0.9)]
    assert drawn["agreement %"] == {"train": [(1.0, 50.0), (2.0, 50.0)], "held-out": [(2.0, 62.5)]}
    assert figures(found, 40)[0] == "step 2 of 40, 192 tokens in 1.0 s, 19.0 s left"
    assert look_into(tmp_path / "run").teacher == "teacher"
    assert look_into(tmp_path / "run").student is None
    with pytest.raises(InputError, match="no folder of a run"):
        look_into(tmp_path)


def test_a_home_of_nobody() -> None:
    """pathlib raises a RuntimeError, which ended the app."""
    assert Order(out="~nobody-of-that-name/run").folder == Path("~nobody-of-that-name/run")
    assert Order(out="~/run").folder == Path.home() / "run"
