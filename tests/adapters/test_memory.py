"""The memory that training takes, beside what MLX measures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.adapters import lora
from afm_mlx.adapters.adapter import LoRAOptions
from afm_mlx.adapters.data import Lessons
from afm_mlx.adapters.memory import estimate
from afm_mlx.adapters.objective import Answers
from afm_mlx.data.packing import Batches, Windows
from afm_mlx.data.tokens import TokenStore
from afm_mlx.model import PRESETS
from afm_mlx.saves import Saves
from afm_mlx.training import TrainingOptions, train
from tests.conftest import random_model

import mlx.core as mx
import numpy as np
import pytest

FACTOR = 1.5
"""How far the estimate of memory may be from what MLX measures, on CPUs."""


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="fitted to CPUs")
@pytest.mark.parametrize(
    ("changes", "window", "windows", "options", "training"),
    [
        ({"num_hidden_layers": 6}, 192, 2, LoRAOptions(8), {}),
        ({"intermediate_size": 128, "num_attention_heads": 8}, 256, 2, LoRAOptions(8), {}),
        ({"vocab_size": 16384, "num_hidden_layers": 2}, 64, 2, LoRAOptions(64), {}),
        ({"num_hidden_layers": 8}, 128, 4, LoRAOptions(8, num_layers=3), {}),
        ({"num_hidden_layers": 8}, 128, 4, LoRAOptions(8), {"micro_batch": 1}),
        ({"num_hidden_layers": 8}, 128, 4, LoRAOptions(8), {"gradient_checkpointing": True}),
    ],
)
def test_memory_is_estimated(
    changes: dict[str, Any], window: int, windows: int, options: LoRAOptions, training: Any
) -> None:
    """A formula that forgets a part (attention scores, logits, moments) is off by more."""
    mx.clear_cache()
    nothing = mx.get_active_memory()
    model = random_model(replace(PRESETS["tiny"], **changes))
    lora.prepare(model, options)
    store = TokenStore(
        np.full(2 * windows * window, 7, np.uint32),
        np.tile(np.arange(window) >= window - 24, 2 * windows),
        np.arange(2 * windows + 1) * window,
        np.zeros(2 * windows, np.bool_),
    )
    packed = Windows.of(store, window)
    given = TrainingOptions(steps=2, batch_size=windows, **training)
    report: Any = type("Report", (), {"window": window})
    answers = Answers(model)
    found = estimate(answers, given, Lessons("", packed, None, report), windows)
    mx.reset_peak_memory()
    batches = Batches([packed], [1.0], windows)
    list(train(model, answers, batches, given, Saves(Path("nowhere"), writes=False)))
    measured = mx.get_peak_memory() - nothing
    assert 1 / FACTOR < found.needed / measured < FACTOR, (found.parts, measured)
