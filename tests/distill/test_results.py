"""What a run wrote while it trained is read once, whatever interrupted it."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.distill.results import Evaluation, Row, Step, architecture_rows, read_metrics
from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS

import pytest


def lines(*events: dict[str, Any]) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)


def step(number: int, loss: float) -> dict[str, Any]:
    return {"event": "step", "step": number, "tokens": number, "seconds": number, "loss": loss}


def evaluation(number: int, perplexity: float) -> dict[str, Any]:
    return {"event": "evaluation", "step": number, "tokens": 0, "seconds": 0} | {
        "perplexity": perplexity
    }


def test_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    full = step(1, 2.5) | {"tokens_per_second": 95.5, "parts": {"kl": 2.0}, "grad_norm": 0.8}
    scored = evaluation(1, 71.2) | {"kl": 0.61, "agreement": 0.62}
    stopped = {"event": "stopped", "reason": "out of time"}
    path.write_text(
        lines(full, step(2, math.nan), scored, {"event": "saved", "step": 1, "best": True})
        + lines({"event": "saved", "step": 2, "best": False}, {"event": "new"}, stopped)
    )
    metrics = read_metrics(path)
    assert metrics.steps[0] == Step(1, 1, 1.0, 2.5, 95.5, {"kl": 2.0})
    assert math.isnan(metrics.steps[1].loss) and metrics.tokens == 2
    assert metrics.evaluations == (Evaluation(1, 0, 0.0, 71.2, 0.61, 0.62),)
    assert metrics.tokens_per_second == 95.5 and metrics.seconds == 2.0
    assert (metrics.best, metrics.stopped, metrics.unreadable) == (1, "out of time", 0)


def test_steps_done_again_count_once(tmp_path: Path) -> None:
    """Steps 3 to 5 were lost in a crash; the resumed run ended at 4, so that 5 never was."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        lines(*(step(s, 1.0) for s in (1, 2, 3, 4, 5)), evaluation(2, 9.0), evaluation(5, 8.0))
        + lines({"event": "saved", "step": 5, "best": True}, {"event": "stopped", "reason": "x"})
        + lines({"event": "resumed", "step": 2}, step(3, 0.5), step(4, 0.25), step(4, 0.125))
    )
    metrics = read_metrics(path)
    assert [(s.step, s.loss) for s in metrics.steps] == [(1, 1.0), (2, 1.0), (3, 0.5), (4, 0.125)]
    assert [e.step for e in metrics.evaluations] == [2]
    assert (metrics.best, metrics.resumed, metrics.stopped) == (None, (2,), "")


def test_every_cut_of_the_last_line_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = lines(step(1, 2.0), step(2, 1.0)).encode()
    start = whole.index(b"\n") + 1
    for end in range(start + 1, len(whole) - 1):
        path.write_bytes(whole[:end])
        metrics = read_metrics(path)
        assert ([s.step for s in metrics.steps], metrics.unreadable) == ([1], 1)
        # The resumed run writes on in the same line: its first event must not be lost.
        path.write_bytes(
            whole[:end] + lines({"event": "resumed", "step": 1}, step(2, 3.0)).encode()
        )
        metrics = read_metrics(path)
        assert ([s.loss for s in metrics.steps], metrics.resumed) == ([2.0, 3.0], (1,))


def test_lines_that_lack_a_value_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"event":"step","step":1}\n[1]\n7\n"x"\nnull\n{"event":"resumed"}\n\xff\xfe\n'
        b'{"event":"step","step":1,"tokens":1,"seconds":1,"loss":1,"parts":[1]}\n\n'
        + lines(step(3, 1.0)).encode()
    )
    metrics = read_metrics(path)
    assert [s.step for s in metrics.steps] == [3] and metrics.unreadable == 8


def test_no_metrics(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics\.jsonl cannot be read .*: name the folder"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_architecture_rows() -> None:
    tiny = PRESETS["tiny"]
    rows = architecture_rows(tiny, replace(tiny, intermediate_size=(96, 128, 96, 96)))
    assert rows == (
        Row("layers", "4", "4"),
        Row("hidden size", "128", "128"),
        Row("FFN width", "512", "96 to 128"),
        Row("query / key-value heads", "4 / 2", "4 / 2"),
        Row("vocabulary", "259", "259"),
    )
