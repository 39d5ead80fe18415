"""The folder of a distillation that somebody else started, and what it writes."""

import json
from pathlib import Path
from typing import Any


def lines(*events: dict[str, Any]) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)


def step(number: int, loss: float) -> dict[str, Any]:
    return {
        "event": "step",
        "step": number,
        "tokens": 96 * number,
        "seconds": 0.5 * number,
        "loss": loss,
        "tokens_per_second": 192.0,
        "parts": {"agreement": 0.5},
    }


def look(number: int, kl: float) -> dict[str, Any]:
    return {
        "event": "evaluation",
        "step": number,
        "tokens": 96 * number,
        "seconds": 0.5 * number,
        "perplexity": 9.5,
        "kl": kl,
        "agreement": 0.625,
        "better": True,
    }


def run_folder(folder: Path, steps: int = 40) -> Path:
    """The folder of a run that somebody else started."""
    folder.mkdir()
    recipe = {"teacher": ["teacher"], "student": "", "training": {"steps": steps}}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    start = {
        "teacher": {"perplexity": 4.5, "kl": 0.0, "agreement": 1.0},
        "pruned": {"perplexity": 30.0, "kl": 1.25, "agreement": 0.25},
    }
    (folder / "start.json").write_text(json.dumps(start))
    text = lines(step(1, 3.0), step(2, 2.5), look(2, 0.9), {"event": "saved", "step": 2})
    (folder / "metrics.jsonl").write_text(text)
    return folder
