"""A whole run by two processes, as ``mlx.launch`` starts them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx import checkpoint
from afm_mlx.distill import distill
from afm_mlx.distill.recipe import from_values, parse_setting
from afm_mlx.model import PRESETS
from afm_mlx.training import Step
from tests.conftest import random_model, tiny_tokenizer
from tests.test_parallel import finish, ring, values

import pytest


@pytest.mark.slow
def test_two_processes_distil_as_one(tmp_path: Path) -> None:
    """The same losses as alone; one student, one report, the second process writes apart."""
    args = replace(PRESETS["tiny"], num_hidden_layers=2)
    checkpoint.save(tmp_path / "teacher", random_model(args), tiny_tokenizer(), base="none")
    (tmp_path / "text.txt").write_text("The sea is salty, and so are some lakes of old. " * 60)

    def command(out: str) -> list[str]:
        settings: dict[str, Any] = {
            "teacher": [str(tmp_path / "teacher")], "data": [str(tmp_path / "text.txt")],
            "out": str(tmp_path / out), "window": 32, "held_out": 4, "calibration": 4, "steps": 4,
            "top_k": 16, "batch_size": 4, "evaluate_every": 2,
        }  # fmt: skip
        return ["-m", "afm_mlx.distill", "--json"] + [
            f"{name}={json.dumps(value)}" for name, value in settings.items()
        ]

    with ring(tmp_path, command("both"), command("both")) as processes:
        (code, events, error), (code_b, events_b, error_b) = finish(processes)
    assert (code, code_b) == (0, 0), error + error_b
    assert not events_b and events[-1]["event"] == "finished"
    assert (tmp_path / "both" / "student" / "model.safetensors").exists()
    second = tmp_path / "both" / "rank-1"
    assert {p.name.partition("-")[0] for p in second.iterdir()} >= {"tokens", "logits"}
    assert not (second / "student").exists() and not (second / "saves").exists()

    alone = from_values(dict(parse_setting(x) for x in command("alone")[3:]))
    losses = [e.loss for e in distill(alone) if isinstance(e, Step)]
    assert values(events, "step", "loss") == pytest.approx(losses, abs=1e-4)
