"""Recovery of a tiny low-bit model by its source."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx import checkpoint
from afm_mlx.compress import Compression, compress
from afm_mlx.data.packing import Batch
from afm_mlx.errors import InputError
from afm_mlx.fidelity import Judge
from afm_mlx.model import PRESETS, Model
from afm_mlx.quant.calibration import CalibrationOptions
from afm_mlx.quant.quantize import TargetOptions
from afm_mlx.quant.variants import FormatOptions
from afm_mlx.recover import TRAINING, Recovered, Recovery, RecoveryData, recover
from tests.conftest import random_model, tiny_tokenizer

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tuner.utils import load_adapters

WORDS = "the boat leaves at nine and the band plays until the lamps go out . ".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, text, and low-bit models of both forms."""
    folder = tmp_path_factory.mktemp("recover")
    args = replace(PRESETS["tiny"], num_hidden_layers=2, intermediate_size=128)
    checkpoint.save(folder / "source", random_model(args), tiny_tokenizer(), base="tests")
    rng = np.random.default_rng(0)
    text = "\n\n".join(" ".join(rng.choice(WORDS, 60)) for _ in range(60))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    for form, target in (("palette", 2.5), ("affine", 2.6)):
        made = Compression(
            str(folder / "source"),
            out=str(folder / form),
            format=FormatOptions(form=form, choices=(2,)),  # type: ignore[arg-type]
            target=TargetOptions(target),
            calibration=CalibrationOptions(data=(str(folder / "text.txt"),), tokens=512, window=64),
            cache=str(folder / "cache"),
        )
        list(compress(made))
    return folder


def recovery(folder: Path, form: str) -> Recovery:
    return Recovery(
        str(folder / form),
        str(folder / "source"),
        None,
        RecoveryData(data=(str(folder / "text.txt"),), window=64, held_out=0.1),
        training=replace(TRAINING, steps=24, learning_rate=5e-3, evaluate_every=12),
    )


def run(given: Recovery, stage: Any, out: Path, work: Path) -> Recovered:
    *_, last = recover(given, stage, out, work)
    assert isinstance(last, Recovered)
    return last


def kl(source: Model, other: Model) -> float:
    """KL on other sentences of the same words."""
    text = " ".join(np.random.default_rng(9).choice(WORDS, 100))
    tokens = np.array([tiny_tokenizer().encode(text)[:256]], np.int32)
    ones = np.ones_like(tokens)
    return Judge(source, [Batch(tokens, ones, ones > 0, np.arange(1))])(other).kl


@pytest.mark.parametrize("form", ["palette", "affine"])
def test_tables_come_closer_at_the_same_size(folder: Path, tmp_path: Path, form: str) -> None:
    source = checkpoint.load(str(folder / "source")).model
    before = checkpoint.load(str(folder / form))
    found = run(recovery(folder, form), "tables", tmp_path / "out", tmp_path / "work")
    limit = {"palette": 0.9, "affine": 0.99}[form]  # fewer numbers to learn
    assert found.after["kl"] < limit * found.before["kl"]
    after = checkpoint.load(str(tmp_path / "out"))
    assert kl(source, after.model) < kl(source, before.model)
    sizes = [
        next(Path(p).glob("model*.safetensors")).stat().st_size
        for p in (folder / form, tmp_path / "out")
    ]
    assert abs(sizes[0] - sizes[1]) < 200  # the header may differ
    for name in ("gate_proj", "down_proj"):
        old, new = (m.model.layers[0].mlp[name] for m in (before, after))
        assert mx.array_equal(old.weight, new.weight)
        assert not mx.array_equal(old.scales, new.scales)


def test_adapter_comes_closer_and_loads_in_mlx_lm(folder: Path, tmp_path: Path) -> None:
    given = replace(recovery(folder, "palette"), training=replace(TRAINING, steps=24))
    found = run(given, "adapter", tmp_path / "adapter", tmp_path / "work")
    assert found.after["kl"] < 0.9 * found.before["kl"]
    source = checkpoint.load(str(folder / "source")).model
    small = checkpoint.load(str(folder / "palette"))
    plain = kl(source, small.model)
    config = (tmp_path / "adapter" / "adapter_config.json").read_text("utf-8")
    assert small.signature in config
    load_adapters(small.model, str(tmp_path / "adapter"))
    assert kl(source, small.model) < plain


def test_broken_recovery_goes_on_to_the_same_end(folder: Path, tmp_path: Path) -> None:
    given = recovery(folder, "palette")
    given = replace(given, training=replace(given.training, save_every=6))
    whole = run(given, "tables", tmp_path / "whole", tmp_path / "work-a")
    events = recover(given, "tables", tmp_path / "cut", tmp_path / "work-b")
    for event in events:
        if getattr(event, "step", 0) == 9:
            break
    events.close()  # type: ignore[attr-defined]
    assert not (tmp_path / "cut").exists()
    again = run(given, "tables", tmp_path / "cut", tmp_path / "work-b")
    assert again.after["kl"] == pytest.approx(whole.after["kl"], rel=1e-5)


def test_runs_that_share_a_work_folder_do_not_mix(folder: Path, tmp_path: Path) -> None:
    # Saves that no model was named in were taken up by the next model's run.
    first = replace(recovery(folder, "palette"), training=replace(TRAINING, steps=6))
    second = replace(first, model=str(folder / "affine"))
    work = tmp_path / "work"
    run(first, "adapter", tmp_path / "a", work)
    mixed = run(second, "adapter", tmp_path / "b", work)
    alone = run(second, "adapter", tmp_path / "c", tmp_path / "other")
    assert mixed.after == alone.after
    weights = [(tmp_path / n / "adapters.safetensors").read_bytes() for n in "bc"]
    assert weights[0] == weights[1]


def test_only_what_costs_no_bits_is_trained(folder: Path, tmp_path: Path) -> None:
    run(recovery(folder, "palette"), "tables", tmp_path / "out", tmp_path / "work")
    before, after = (checkpoint.load(str(p)).model for p in (folder / "palette", tmp_path / "out"))
    assert not mx.array_equal(before.model.norm.weight, after.model.norm.weight)
    assert mx.array_equal(before.model.embed_tokens.weight, after.model.embed_tokens.weight)
    assert mx.array_equal(before.model.embed_tokens.scales, after.model.embed_tokens.scales)
    assert "base_model: " + str(folder / "source") in (tmp_path / "out/README.md").read_text()


def test_tables_under_an_adapter_are_not_changed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "recovery").mkdir(parents=True)
    with pytest.raises(InputError, match="belongs to the tables"):
        run(recovery(folder, "palette"), "tables", tmp_path / "out", tmp_path / "work")


def test_what_cannot_be_recovered(folder: Path, tmp_path: Path) -> None:
    dense = replace(recovery(folder, "palette"), model=str(folder / "source"))
    with pytest.raises(InputError, match="no low-bit layers"):
        run(dense, "tables", tmp_path / "out", tmp_path / "work")
    other = random_model(checkpoint.load(str(folder / "source")).model.args, 5)
    checkpoint.save(tmp_path / "other", other, tiny_tokenizer(), base="tests")
    stranger = replace(recovery(folder, "palette"), source=str(tmp_path / "other"))
    with pytest.raises(InputError, match="was not made from"):
        run(stranger, "tables", tmp_path / "out", tmp_path / "work")
