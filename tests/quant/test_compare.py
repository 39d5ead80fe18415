"""The report of ``afm quantize --report`` on a tiny model."""

from dataclasses import replace
from pathlib import Path

from afm_mlx import checkpoint
from afm_mlx.compare import FIGURE, Compared, CompareOptions, Row, compare, model_bits, stock
from afm_mlx.compress import Compression
from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS
from afm_mlx.quant.calibration import CalibrationOptions
from tests.conftest import random_model, tiny_tokenizer

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

WORDS = "the boat leaves at nine and the band plays until the lamps go out . ".split()


@pytest.fixture
def given(tmp_path: Path) -> Compression:
    args = replace(PRESETS["tiny"], num_hidden_layers=8, intermediate_size=128)
    checkpoint.save(tmp_path / "model", random_model(args), tiny_tokenizer(), base="tests")
    text = " ".join(np.random.default_rng(0).choice(WORDS, 400))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    return Compression(
        str(tmp_path / "model"),
        calibration=CalibrationOptions(data=(str(tmp_path / "text.txt"),), tokens=512, window=64),
        cache=str(tmp_path / "cache"),
    )


def test_report(given: Compression, tmp_path: Path) -> None:
    options = CompareOptions(test_tokens=512, targets=(2.2, 3.5))
    events = list(compare(given, options, tmp_path / "out"))
    done = events[-1]
    assert isinstance(done, Compared)
    rows = {(r.name, round(r.bits, 1)): r.found["text.txt"].kl for r in done.rows}
    ours, affine = "palettes, calibrated, planned", "affine, calibrated, planned"
    assert rows[ours, 3.5] < rows[ours, 2.2]
    assert rows[ours, 3.5] < rows["MLX affine, 3 bits", 3.5]
    assert rows[affine, 3.5] < rows["MLX affine, 3 bits", 3.5]
    assert (affine, 2.2) not in rows  # 2 bits and scales take 2.5
    assert sum(isinstance(e, Row) for e in events) == len(done.rows) == 3 + 3 + 4
    report = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert report.count("\n| ") >= len(done.rows) and "text.txt" in report
    assert b"<svg" in (tmp_path / "out" / FIGURE).read_bytes()


def test_nothing_is_measured_on_text_of_the_calibration(given: Compression, tmp_path: Path) -> None:
    short = replace(given, calibration=replace(given.calibration, tokens=65536))
    with pytest.raises(InputError, match="leaves no text"):
        list(compare(short, CompareOptions(), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_stock_rows_have_the_bits_that_mlx_lm_says() -> None:
    model = random_model(replace(PRESETS["tiny"], num_hidden_layers=8, intermediate_size=128))
    dense = model.layers[0].mlp.up_proj.weight
    nn.quantize(model, 64, 4, class_predicate=stock(model)["MLX affine, 3 bits"])
    assert model_bits(model) == pytest.approx(3.5)
    assert isinstance(model.model.embed_tokens, nn.Embedding)
    layer = model.layers[0].mlp.up_proj
    expected = mx.dequantize(*mx.quantize(dense, 64, 3), 64, 3)
    read = mx.dequantize(layer.weight, layer.scales, layer.biases, 64, 3)
    assert mx.array_equal(read, expected)
