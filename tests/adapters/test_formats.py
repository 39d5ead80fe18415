"""Adapter folders, there and back: mlx-lm reads ours and we read its own; PEFT by its layout."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.adapters.adapter import About, Adapter, LoRAOptions
from afm_mlx.adapters.formats import read, write
from afm_mlx.adapters.lora import put, strip
from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS, Model
from tests.adapters.made import random_adapter
from tests.conftest import random_model

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx_lm.lora import CONFIG_DEFAULTS
from mlx_lm.tuner.trainer import TrainingArgs, train
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import save_config
from safetensors.numpy import load_file, save_file

TOKENS = mx.array([[1, 2, 3, 4, 5]])
TINY = replace(PRESETS["tiny"], num_hidden_layers=2, hidden_size=64, intermediate_size=96)
ABOUT = About("summary", "5ig", "da7a", {"kl": 0.25}, "cc-by-4.0")
KINDS = {
    "all": LoRAOptions(4),
    "dora": LoRAOptions(4, dora=True),
    "stabilised": LoRAOptions(9, 3.0, rank_stabilised=True),
    "some": LoRAOptions(4, 5.0, 0.1, ("self_attn.q_proj", "mlp.up_proj"), num_layers=1),
    "table": LoRAOptions(4, keys=("mlp.up_proj", "model.embed_tokens")),
}


def output(model: Model, adapter: Adapter | None = None) -> mx.array:
    put(model, adapter)
    return model(TOKENS)


def close(a: mx.array, b: mx.array, tolerance: float = 1e-5) -> bool:
    return bool(mx.abs(a - b).max() <= tolerance * mx.abs(b).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["mlx", "peft"])
def test_what_is_written_is_read(tmp_path: Path, kind: str, form: Any) -> None:
    model = random_model(TINY)
    adapter = random_adapter(model, options=KINDS[kind], about=ABOUT)
    write(adapter, tmp_path / "a", form)
    found = read(tmp_path / "a")
    assert (found.name, found.about) == ("a", ABOUT)
    assert found.options.multiplier == pytest.approx(adapter.options.multiplier)
    assert found.options.dora == adapter.options.dora
    assert found.options.rank_stabilised == adapter.options.rank_stabilised
    assert set(found.weights) == set(adapter.weights)
    assert all(mx.array_equal(w, found.weights[n]) for n, w in adapter.weights.items())
    assert close(output(model, found), output(model, adapter))


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_lm_reads_ours(tmp_path: Path, kind: str) -> None:
    model, theirs = random_model(TINY), random_model(TINY)
    adapter = random_adapter(model, options=KINDS[kind], about=ABOUT)
    write(adapter, tmp_path / "a")
    load_adapters(theirs, str(tmp_path / "a"))
    theirs.eval()
    assert close(theirs(TOKENS), output(model, adapter), 1e-3)  # it computes in 16 bits here
    assert not close(output(model, adapter), output(model), 1e-2)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_we_read_what_the_trainer_of_mlx_lm_saves(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its step, uncompiled: for CPUs that takes half a minute.
    monkeypatch.setattr("mlx_lm.tuner.trainer.partial", lambda *_, **__: lambda step: step)
    theirs = random_model(TINY)
    theirs.freeze()
    keys = ["self_attn.v_proj", "mlp.up_proj"]
    parameters = {"rank": 4, "dropout": 0.0, "scale": 20.0, "keys": keys}
    linear_to_lora_layers(theirs, 1, parameters, use_dora=kind == "dora")
    settings = {"num_layers": 1, "lora_parameters": parameters, "fine_tune_type": kind}
    save_config({**CONFIG_DEFAULTS, **settings}, tmp_path / "adapter_config.json")
    rows = [(list(range(i, i + 12)), 0) for i in range(4)]
    args = TrainingArgs(2, 3, adapter_file=str(tmp_path / "adapters.safetensors"))
    train(theirs, optim.Adam(1e-2), rows, args=args)
    theirs.eval()
    model = random_model(TINY)
    adapter = read(tmp_path)
    assert adapter.options == LoRAOptions(4, 20.0, 0.0, tuple(keys), 1, dora=kind == "dora")
    assert {w.dtype for n, w in adapter.weights.items() if not n.endswith(".m")} == {mx.float16}
    assert close(output(model, adapter), theirs(TOKENS), 1e-3)  # theirs has 32 bits
    assert not close(output(model, adapter), output(model), 1e-2)


def test_folder_of_mlx_lm_without_keys(tmp_path: Path) -> None:
    # Its own default names no layers.
    model = random_model(TINY)
    adapter = random_adapter(model)
    write(adapter, tmp_path / "a")
    edit(tmp_path / "a", lambda c: c["lora_parameters"].pop("keys"))
    assert len(read(tmp_path / "a").options.keys) == 7


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    change(config)
    path.write_text(json.dumps(config), "utf-8")


def peft_folder(folder: Path, **config: Any) -> dict[str, np.ndarray[Any, Any]]:
    """A folder as PEFT's ``save_pretrained`` leaves it; the full changes by layer."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    shapes = {
        "model.layers.0.self_attn.q_proj": (64, 64 if TINY.head_dim == 16 else 128),
        "model.layers.1.mlp.down_proj": (96, 64),
    }
    tensors, changes = {}, {}
    for place, (k, n) in shapes.items():
        a, b = rng.standard_normal((4, k)), 0.1 * rng.standard_normal((n, 4))
        tensors[f"base_model.model.{place}.lora_A.weight"] = a.astype(np.float32)
        tensors[f"base_model.model.{place}.lora_B.weight"] = b.astype(np.float32)
        changes[place] = b @ a
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 6,
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "down_proj"],
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": False,
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(described), "utf-8")
    return changes


@pytest.mark.parametrize(("stabilised", "factor"), [(False, 6 / 4), (True, 6 / 2)])
def test_peft_multiplies_by_alpha_over_rank(
    tmp_path: Path, stabilised: bool, factor: float
) -> None:
    changes = peft_folder(tmp_path / "p", use_rslora=stabilised)
    model, dense = random_model(TINY), random_model(TINY)
    modules = dict(dense.named_modules())
    for place, change in changes.items():
        modules[place].weight = modules[place].weight + mx.array((factor * change), mx.float32)
    found = read(tmp_path / "p")
    assert found.options.keys == ("mlp.down_proj", "self_attn.q_proj")
    assert close(output(model, found), dense(TOKENS), 2e-3)  # 16 bits


def test_peft_folder_has_its_names_and_shapes(tmp_path: Path) -> None:
    model = random_model(TINY)
    options = LoRAOptions(4, 3.0, dora=True, keys=("mlp.up_proj",))
    adapter = random_adapter(model, options=options)
    write(adapter, tmp_path / "p", "peft")
    tensors = load_file(tmp_path / "p" / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.0.mlp.up_proj"
    assert tensors[f"{stem}.lora_A.weight"].shape == (4, 64)
    assert tensors[f"{stem}.lora_B.weight"].shape == (96, 4)
    assert tensors[f"{stem}.lora_magnitude_vector"].shape == (96,)
    config = json.loads((tmp_path / "p" / "adapter_config.json").read_text("utf-8"))
    assert (config["r"], config["lora_alpha"], config["use_dora"]) == (4, 12.0, True)
    assert "feature" not in config  # older versions of PEFT stop at keys they do not know


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "no DoRA adapter"),
        ({"r": 5}, "says rank 5"),
        ({"lora_alpha": None}, "no description"),
        ({"r": 0}, "no description"),
        ({"r": 0, "use_rslora": True}, "no description.*rank must be at least 1"),
        ({"r": 1e999}, "no description"),
        ({"lora_alpha": 0}, "no description.*scale above 0"),
        ({"lora_alpha": -6}, "no description.*scale above 0"),
    ],
)
def test_peft_adapters_of_other_kinds_are_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    peft_folder(tmp_path / "p", **config)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "p")
    if "no description" in message:  # else the message names what the adapter has
        assert str(tmp_path / "p") in str(caught.value) and "train it again" in str(caught.value)


def test_more_than_matrices_is_refused(tmp_path: Path) -> None:
    peft_folder(tmp_path / "p")
    file = tmp_path / "p" / "adapter_model.safetensors"
    name = "base_model.model.lm_head.weight"
    save_file({**load_file(file), name: np.ones((2, 2), np.float32)}, file)
    with pytest.raises(InputError, match="modules_to_save"):
        read(tmp_path / "p")


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    peft_folder(tmp_path / "p")
    (tmp_path / "p" / "adapter_model.safetensors").unlink()
    marker = tmp_path / "ran"

    class Harm:
        def __reduce__(self) -> Any:
            return marker.touch, ()

    (tmp_path / "p" / "adapter_model.bin").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(InputError, match="safe_serialization=True"):
        read(tmp_path / "p")
    assert not marker.exists()


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_files_cut_short_are_refused(tmp_path: Path, cut: int) -> None:
    # MLX maps a file that lacks its end, and reads zeros or dies there.
    write(random_adapter(random_model(TINY)), tmp_path / "a")
    file = tmp_path / "a" / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(InputError, match="cut short"):
        read(tmp_path / "a")


@pytest.mark.parametrize("shape", [(384,), (4, 96, 1)])
def test_matrices_of_another_form_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    adapter = random_adapter(random_model(TINY), options=KINDS["all"])
    name = next(n for n in adapter.weights if n.endswith("lora_b"))
    weights = {**adapter.weights, name: mx.zeros(shape)}
    with pytest.raises(InputError, match="another form"):
        replace(adapter, weights=weights).places  # noqa: B018


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_numbers_that_are_none_are_refused(tmp_path: Path, value: float) -> None:
    # 1e6 is infinite in the 16 bits that are kept.
    adapter = random_adapter(random_model(TINY))
    name = "model.layers.0.mlp.up_proj.lora_b"
    weights = {**adapter.weights, name: mx.full((4, 96), value)}
    with pytest.raises(InputError, match=name):
        write(replace(adapter, weights=weights), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    write(adapter, tmp_path / "a")
    mx.save_safetensors(str(tmp_path / "a" / "adapters.safetensors"), weights)
    with pytest.raises(InputError, match=name):
        read(tmp_path / "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[]", "no JSON object"),
        ("{}", "no description"),
        ('{"lora_parameters": 3}', "no description"),
        ('{"lora_parameters": {"rank": "x", "scale": 1}}', "no description"),
        ('{"lora_parameters": {"rank": 4, "scale": -1}}', "a/adapter_config.*scale above 0"),
        ('{"lora_parameters": {"rank": 0, "scale": 1}}', "a/adapter_config.*rank must be"),
        ('{"lora_parameters": {"rank": 1e999, "scale": 1}}', "no description"),
        ('{"lora_parameters": {"rank": 4, "scale": 1}, "num_layers": 1e999}', "no description"),
        ('{"lora_parameters": {"rank": 4, "scale": 1, "keys": [1, 2]}}', "no names of layers"),
        ('{"lora_parameters": {"rank": 4, "scale": 1, "keys": "q"}}', "no names of layers"),
        ("[" * 100_000, "damaged"),
        ('{"lora_parameters": {"rank": 4, "scale": 1}, "metrics": 3}', "no description"),
        ('{"fine_tune_type": "full", "lora_parameters": {}}', "'full'"),
    ],
)
def test_configurations_that_make_no_sense(tmp_path: Path, text: str, message: str) -> None:
    write(random_adapter(random_model(TINY)), tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text(text, "utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_no_folder_is_replaced_by_mistake(tmp_path: Path) -> None:
    # What stands at the path goes away whole: it must be an adapter, and be meant.
    adapter = random_adapter(random_model(TINY))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="exists already"):
            write(adapter, tmp_path / "mine", overwrite=overwrite)
    write(adapter, tmp_path / "a", extra={"README.md": b"hello"})
    with pytest.raises(InputError, match="exists already"):
        write(adapter, tmp_path / "a")
    write(adapter, tmp_path / "a", "peft", overwrite=True)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    with pytest.raises(InputError, match="no adapter"):
        read(tmp_path / "mine")


def test_same_file_whatever_the_type_in_memory(tmp_path: Path) -> None:
    model = random_model(TINY)
    adapter = random_adapter(model)
    full = {n: w.astype(mx.float32) for n, w in adapter.weights.items()}
    write(replace(adapter, weights=full), tmp_path / "a")
    found = read(tmp_path / "a", "other")
    assert found.name == "other"
    assert found.nbytes == adapter.nbytes
    strip(model)
