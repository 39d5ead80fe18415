"""From a model and text to a low-bit folder, on a tiny model with real files."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx import checkpoint
from afm_mlx.compress import PLAN, Compression, Written, compress
from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS, Model
from afm_mlx.quant import quantize
from afm_mlx.quant.calibration import CalibrationOptions
from afm_mlx.quant.layers import PalettizedLinear, low_bit_layers
from afm_mlx.quant.quantize import Made, Planned, TargetOptions
from afm_mlx.quant.statistics import Progress
from afm_mlx.quant.variants import FormatOptions
from tests.conftest import random_model, tiny_tokenizer

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load as load_in_mlx_lm

WORDS = ("the boat leaves at nine and the band plays until the lamps go out " * 40).split()


def kl(reference: Model, other: Model) -> float:
    """Mean KL(reference || other) on text, in nats a token."""
    tokens = mx.array([list(" ".join(WORDS[:60]).encode())]) % 250 + 3
    p, q = (np.array(m(tokens)[0], np.float64) for m in (reference, other))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A model folder, a text file and a cache that the tests share."""
    folder = tmp_path_factory.mktemp("quantize")
    args = replace(PRESETS["tiny"], hidden_size=128, num_hidden_layers=2, intermediate_size=192)
    checkpoint.save(folder / "model", random_model(args), tiny_tokenizer(), base="tests")
    (folder / "text.txt").write_text(" ".join(WORDS), encoding="utf-8")
    return str(folder / "model"), str(folder / "text.txt"), str(folder / "cache")


def options(places: tuple[str, str, str], out: Path, **changes: Any) -> Compression:
    model, text, cache = places
    calibrated = CalibrationOptions(data=(text,), tokens=512, window=64)
    return replace(
        Compression(model, None, str(out), calibration=calibrated, cache=cache), **changes
    )


def run(given: Compression) -> tuple[Written, list[Any]]:
    events = list(compress(given))
    assert isinstance(events[-1], Written)
    return events[-1], events


@pytest.mark.parametrize("form", ["palette", "affine"])
def test_folder_runs_at_the_target(places: Any, tmp_path: Path, form: Any) -> None:
    target = 3.4 if form == "palette" else 3.6
    given = options(
        places, tmp_path / "small", format=FormatOptions(form=form), target=TargetOptions(target)
    )
    written, events = run(given)
    assert target - 0.3 <= written.account.linear <= target + 1e-9
    source, small = checkpoint.load(places[0]), checkpoint.load(str(written.folder))
    assert small.signature == written.signature
    far = kl(source.model, random_model(source.model.args, 5))
    near = kl(source.model, small.model)
    assert near < 0.25 * far
    weights = next(written.folder.glob("model*.safetensors")).stat().st_size
    assert weights == pytest.approx(written.account.size, rel=0.05)  # and a header
    plan = next(e for e in events if isinstance(e, Planned)).plan
    assert len(Counter(plan.bits.values())) > 1
    for name, layer in low_bit_layers(small.model):
        assert layer.bits == plan.bits[name]


def test_more_bits_are_closer_and_calibration_helps(places: Any, tmp_path: Path) -> None:
    source = checkpoint.load(places[0]).model
    found = {}
    for target, blind in ((2.6, False), (3.5, False), (3.5, True), (4.4, False)):
        out = tmp_path / f"{target}{blind}"
        run(options(places, out, target=TargetOptions(target), uncalibrated=blind))
        found[target, blind] = kl(source, checkpoint.load(str(out)).model)
    assert found[2.6, False] > found[3.5, False] > found[4.4, False]
    assert found[3.5, True] > found[3.5, False]


def test_plain_mlx_lm_runs_the_affine_form(places: Any, tmp_path: Path) -> None:
    given = options(
        places, tmp_path / "affine", format=FormatOptions(form="affine"), target=TargetOptions(3.6)
    )
    run(given)
    ours = checkpoint.load(given.out, dtype=mx.float32).model
    theirs: Any = load_in_mlx_lm(given.out)[0]
    theirs.set_dtype(mx.float32)
    tokens = mx.array([[5, 6, 7, 80, 9]])
    assert type(theirs).__module__ == "mlx_lm.models.llama"
    assert np.allclose(np.array(theirs(tokens)), np.array(ours(tokens)), atol=1e-3)


def test_plain_mlx_lm_refuses_palettes(places: Any, tmp_path: Path) -> None:
    run(options(places, tmp_path / "palette"))
    with pytest.raises(ValueError, match="afm"):
        load_in_mlx_lm(str(tmp_path / "palette"))


def test_same_source_and_recipe_give_the_same_bytes(places: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    run(options(places, first))
    run(options(places, second, cache=str(tmp_path / "cache")))
    for file in first.glob("*.safetensors"):
        assert file.read_bytes() == (second / file.name).read_bytes()


def test_second_target_calibrates_no_more(places: Any, tmp_path: Path) -> None:
    run(options(places, tmp_path / "a"))
    _, events = run(options(places, tmp_path / "b", target=TargetOptions(2.5)))
    assert not any(isinstance(e, Progress | Made) for e in events)


def test_broken_run_goes_on(places: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    events = compress(options(places, tmp_path / "a", cache=str(cache)))
    for event in events:
        if isinstance(event, Made):
            break
    events.close()  # type: ignore[attr-defined]
    made = sorted(cache.glob("*/*/block-*"))
    assert len(made) == 1 and not (tmp_path / "a").exists()
    made[0].write_bytes(made[0].read_bytes()[:100])  # as if the disk had lost its end
    _, again = run(options(places, tmp_path / "a", cache=str(cache)))
    assert [e.number for e in again if isinstance(e, Made)] == [1, 2]
    assert not any(isinstance(e, Progress) for e in again)


def test_edited_plan_is_followed(places: Any, tmp_path: Path) -> None:
    run(options(places, tmp_path / "a"))
    text = (tmp_path / "a" / PLAN).read_text("utf-8")
    name = "model.layers.0.self_attn.o_proj"
    bits = next(line for line in text.splitlines() if name in line)
    (tmp_path / "plan.toml").write_text(text.replace(bits, f'"{name}" = 2'), "utf-8")
    _, events = run(options(places, tmp_path / "b", plan=str(tmp_path / "plan.toml")))
    assert not any(isinstance(e, Progress | Made) for e in events)  # seconds, not minutes
    model = checkpoint.load(str(tmp_path / "b")).model
    assert isinstance(model.layers[0].self_attn.o_proj, PalettizedLinear)
    assert model.layers[0].self_attn.o_proj.bits == 2


def test_plan_of_another_model(places: Any, tmp_path: Path) -> None:
    run(options(places, tmp_path / "a"))
    text = (tmp_path / "a" / PLAN).read_text("utf-8")
    (tmp_path / "plan.toml").write_text(text.replace('base = "', 'base = "0'), "utf-8")
    with pytest.raises(InputError, match="another model"):
        run(options(places, tmp_path / "b", plan=str(tmp_path / "plan.toml")))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": TargetOptions(1.5)}, "cannot be reached"),
        ({"plan": "nowhere.toml"}, "is no plan"),
        ({"calibration": CalibrationOptions(data=("nowhere.txt",))}, "nowhere.txt"),
    ],
)
def test_bad_input_writes_nothing(
    places: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        list(compress(options(places, tmp_path / "a", **changes)))
    assert not (tmp_path / "a").exists()


def test_an_existing_folder_and_a_small_model_are_refused(places: Any, tmp_path: Path) -> None:
    run(options(places, tmp_path / "a"))
    with pytest.raises(InputError, match="exists already"):
        run(options(places, tmp_path / "a"))
    again = replace(options(places, tmp_path / "b"), model=str(tmp_path / "a"))
    with pytest.raises(InputError, match="few bits already"):
        run(again)


@pytest.mark.parametrize("inner", [True, False])
def test_weights_that_are_no_numbers(places: Any, tmp_path: Path, inner: bool) -> None:
    model = random_model(checkpoint.load(places[0]).model.args)
    weight = model.layers[1].mlp.up_proj.weight if inner else model.model.norm.weight
    weight[..., 0] = float("nan")
    checkpoint.save(tmp_path / "model", model, tiny_tokenizer(), base="tests")
    given = replace(options(places, tmp_path / "a"), model=str(tmp_path / "model"))
    with pytest.raises(InputError, match="no numbers"):
        list(compress(given))
    assert not (tmp_path / "a").exists()


def test_matrices_that_no_kernel_takes_stay_as_they_are(places: Any, tmp_path: Path) -> None:
    args = replace(PRESETS["tiny"], num_hidden_layers=2, intermediate_size=88)
    checkpoint.save(tmp_path / "model", random_model(args), tiny_tokenizer(), base="tests")
    given = replace(options(places, tmp_path / "a"), model=str(tmp_path / "model"))
    given = replace(given, target=TargetOptions(9.0))
    written, _ = run(given)
    assert "model.layers.0.mlp.down_proj" in written.account.left
    assert 8 < written.account.linear <= 9.0  # they count, at 16 bits
    with pytest.raises(InputError, match="cannot be reached"):
        list(compress(replace(given, overwrite=True, target=TargetOptions(5.0))))
    assert len(written.account.left) == 6
    small = checkpoint.load(given.out).model
    assert kl(random_model(args), small) < 0.5


@pytest.mark.parametrize("form", ["palette", "affine"])
def test_widths_of_a_pruned_model(tmp_path: Path, form: Any) -> None:
    # Pruning leaves multiples of 32, MLX's groups are of 64.
    args = replace(PRESETS["tiny"], num_hidden_layers=2, hidden_size=96, intermediate_size=128)
    checkpoint.save(tmp_path / "model", random_model(args), tiny_tokenizer(), base="tests")
    given = Compression(str(tmp_path / "model"), out=str(tmp_path / "a"), uncalibrated=True)
    form = FormatOptions(form=form)
    given = replace(given, cache=str(tmp_path / "c"), format=form, target=TargetOptions(14.0))
    written, _ = run(given)
    assert checkpoint.load(given.out).signature == written.signature


def test_nothing_fits(places: Any, tmp_path: Path) -> None:
    given = options(places, tmp_path / "a", format=FormatOptions(group_size=28))
    with pytest.raises(InputError, match="no matrix of the model"):
        list(compress(given))


def test_an_adapter_counts_where_it_is_asked_for(places: Any, tmp_path: Path) -> None:
    plain, _ = run(options(places, tmp_path / "a", target=TargetOptions(3.5)))
    with_it, _ = run(options(places, tmp_path / "b", target=TargetOptions(3.5, adapter_rank=2)))
    assert with_it.account.linear < plain.account.linear - 0.3


def test_embedding_counts_where_it_is_asked_for(places: Any, tmp_path: Path) -> None:
    whole = TargetOptions(4.2, count="model")
    written, _ = run(options(places, tmp_path / "a", target=whole))
    assert written.account.model <= 4.2 + 1e-9
    assert written.account.linear < written.account.model


def test_what_if_answers_follow_a_change(places: Any, tmp_path: Path) -> None:
    given = options(places, tmp_path / "a")
    _, events = run(given)
    plan = next(e for e in events if isinstance(e, Planned)).plan
    loaded = checkpoint.load(places[0])
    *_, shop = quantize.prepare(
        loaded.model,
        loaded.signature,
        (  # found by its name alone
            _text_name(given, loaded),
            [],
        ),
        given.format,
        given.folder,
    )
    assert isinstance(shop, quantize.Workshop)
    name = "model.layers.1.mlp.down_proj"
    accounts = [quantize.account(shop, plan.changed(name, b), True) for b in (2, 3, 4)]
    assert [a.size for a in accounts] == sorted(a.size for a in accounts)
    assert [a.cost for a in accounts] == sorted((a.cost for a in accounts), reverse=True)
    with pytest.raises(InputError, match="not with 8"):
        quantize.account(shop, plan.changed(name, 8), True)
    shutil.rmtree(tmp_path / "a")


def _text_name(given: Compression, loaded: checkpoint.Checkpoint) -> str:
    from afm_mlx.quant import calibration

    return calibration.windows(given.calibration, loaded.tokenizer, given.folder)[0]
