"""The embedded model at 3.5 bits, calibrated on little text."""

import asyncio
from pathlib import Path

from afm_mlx import Engine, LanguageModelSession, checkpoint
from afm_mlx.compress import Compression, Written, compress
from afm_mlx.data.packing import Batch
from afm_mlx.fidelity import Judge
from afm_mlx.generation import GenerationOptions
from afm_mlx.quant.calibration import CalibrationOptions
from afm_mlx.tokenizer import Message

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

QUESTION = "Why is the sky blue? Answer in two sentences."


def _inner(path: str, layer: nn.Module) -> bool:
    return path.startswith("model.layers") and isinstance(layer, nn.Linear)


@pytest.mark.slow
def test_the_embedded_model_at_three_and_a_half_bits(gguf_path: Path, tmp_path: Path) -> None:
    little = CalibrationOptions(tokens=512)
    made = Compression(out=str(tmp_path / "small"), calibration=little, cache=str(tmp_path / "c"))
    *_, written = compress(made)
    assert isinstance(written, Written) and written.account.linear <= 3.5
    assert written.account.size < 0.3 * 269e6
    source = checkpoint.load(dtype=mx.float32)
    tokens = np.array([source.tokenizer.chat([Message("user", QUESTION)])], np.int32)
    ones = np.ones_like(tokens)
    judge = Judge(source.model, [Batch(tokens, ones, ones > 0, np.array([0]))])
    small = checkpoint.load(made.out, dtype=mx.float32)
    ours = judge(small.model).kl
    nn.quantize(source.model, 64, 3, class_predicate=_inner)
    assert ours < 0.7 * judge(source.model).kl  # even 4-bit weights' own grid does not help it
    with Engine(lambda: small) as engine:
        session = LanguageModelSession(engine)
        options = GenerationOptions(maximum_response_tokens=12)
        assert asyncio.run(session.respond(QUESTION, options=options)).strip()
