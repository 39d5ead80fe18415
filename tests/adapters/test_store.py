"""The store: what it takes in, keeps in memory, puts in, and refuses."""

import shutil
from dataclasses import replace
from pathlib import Path

from afm_mlx.adapters.adapter import About, Adapter, LoRAOptions
from afm_mlx.adapters.formats import write
from afm_mlx.adapters.lora import put, taken
from afm_mlx.adapters.store import BARE, Store
from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS, Model
from tests.adapters.made import random_adapter
from tests.conftest import random_model

import mlx.core as mx
import pytest

TOKENS = mx.array([[1, 2, 3, 4, 5]])
TINY = replace(PRESETS["tiny"], num_hidden_layers=2, hidden_size=64, intermediate_size=96)
OPTIONS = {
    "one": LoRAOptions(4),
    "two": LoRAOptions(8, 1.0, keys=("self_attn.q_proj",)),
    "three": LoRAOptions(2, keys=("mlp.up_proj",), dora=True),
}


@pytest.fixture
def model() -> Model:
    return random_model(TINY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three adapters for the model."""
    model = random_model(TINY)
    for seed, (name, options) in enumerate(OPTIONS.items()):
        about = About(feature=name, base_signature="right")
        write(random_adapter(model, name, options, about, seed), tmp_path / name)
    return tmp_path


def open_store(model: Model, folder: Path, budget: int = 10**9) -> Store:
    store = Store(model, lambda: "right", budget)
    for name, path in Store.find(folder).items():
        store.add(name, path)
    return store


def alone(folder: Path, name: str) -> mx.array:
    """The output of a model that never had another adapter."""
    model = random_model(TINY)
    store = open_store(model, folder / name)
    store.put(name)
    return model(TOKENS)


def test_adapters_are_found(folder: Path) -> None:
    (folder / "other").mkdir()
    # What a process that was killed while it wrote has left, maybe without its last files.
    shutil.copytree(folder / "one", folder / ".one.x1y2")
    assert Store.find(folder) == {n: folder / n for n in sorted(OPTIONS)}
    assert Store.find(folder / "one") == {"one": folder / "one"}
    assert Store.find(folder / "missing") == {}


def test_every_order_of_swaps_gives_the_same(model: Model, folder: Path) -> None:
    # Adapters with other layers, ranks and DoRA must leave nothing of themselves.
    plain = model(TOKENS)
    store = open_store(model, folder)
    wanted = {name: alone(folder, name) for name in OPTIONS}
    for name in ("one", "two", "three", "two", "one", "three", "three", "one"):
        store.put(name)
        assert mx.array_equal(model(TOKENS), wanted[name]), name
    store.put(None)
    assert mx.array_equal(model(TOKENS), plain)
    assert not taken(model)


def test_a_swap_makes_no_arrays(model: Model, folder: Path) -> None:
    # Converted lazily, matrices cost the first token after a swap more than the swap saves.
    store = open_store(model, folder)
    store.put("one")
    first = {id(matrix) for matrix in taken(model).values()}
    store.put("two")
    before = mx.get_active_memory()
    store.put("one")
    assert {id(matrix) for matrix in taken(model).values()} == first
    assert mx.get_active_memory() == before


def test_default_counts_where_none_is_named(model: Model, folder: Path) -> None:
    plain = model(TOKENS)
    store = open_store(model, folder)
    store.default = "two"
    store.put(None)
    assert mx.array_equal(model(TOKENS), alone(folder, "two"))
    store.put(BARE)
    assert mx.array_equal(model(TOKENS), plain)
    assert [x.name for x in store.listed() if x.default] == ["two"]


def test_least_recently_used_leave_memory_and_come_back(model: Model, folder: Path) -> None:
    sizes = {x.name: x.nbytes for x in open_store(model, folder).listed()}
    store = open_store(model, folder, sizes["one"] + sizes["two"])

    def loaded() -> list[str]:
        return [x.name for x in store.listed() if x.loaded]

    assert loaded() == ["three", "two"]  # added in the order of their names: one, three, two
    store.put("three")
    store.put("one")
    assert loaded() == ["one", "three"]
    assert store.nbytes == sizes["one"] + sizes["three"] <= store.budget
    assert store.names == sorted(OPTIONS)
    assert mx.array_equal(model(TOKENS), alone(folder, "one"))


def test_one_stays_however_small_the_budget(model: Model, folder: Path) -> None:
    store = open_store(model, folder, 1)
    store.put("one")
    assert [x.name for x in store.listed() if x.loaded] == ["one"]
    assert mx.array_equal(model(TOKENS), alone(folder, "one"))


def test_identity_names_contents(model: Model, folder: Path) -> None:
    # A KV cache must not pass for one that a newer adapter of the same name wrote.
    store = open_store(model, folder)
    first, second = store.put("one"), store.put("two")
    assert len({first, second, store.put(BARE)}) == 3
    assert store.put("one") == first
    assert store.put(BARE) == 0
    store.add("one", folder / "two")
    assert store.put("one") not in (first, second)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_memory_is_that_of_the_type_computed_in(
    model: Model, folder: Path, dtype: mx.Dtype
) -> None:
    model.set_dtype(dtype)
    mx.eval(model.parameters())
    before = mx.get_active_memory()
    store = open_store(model, folder)
    listed = {x.name: x for x in store.listed()}
    count = sum(4 * (k + n) for k, n in shapes(model))
    assert listed["one"].nbytes == dtype.size * count
    # Row lengths of the base are kept once, for all adapters with DoRA.
    lengths = 4 * 2 * 96
    counted = sum(x.nbytes for x in listed.values()) + lengths
    assert counted <= mx.get_active_memory() - before <= counted + 4096
    assert listed["one"].options == replace(OPTIONS["one"], keys=listed["one"].options.keys)
    assert listed["one"].about.feature == "one"


def shapes(model: Model) -> list[tuple[int, int]]:
    adapter = random_adapter(random_model(TINY))
    return [(m.lora_a.shape[0], m.lora_b.shape[1]) for m in adapter.places.values()]


def test_sixteen_bit_models_hold_their_own_type(folder: Path) -> None:
    # Converting at every step would cost a GPU two small kernels per layer.
    model = random_model(TINY)
    model.set_dtype(mx.bfloat16)
    store = open_store(model, folder)
    store.put("one")
    assert {w.dtype for w in taken(model).values()} == {mx.bfloat16}
    assert model(TOKENS).dtype == mx.bfloat16


def test_refused_adapters_change_nothing(model: Model, folder: Path) -> None:
    store = open_store(model, folder)
    store.put("one")
    before, listed = model(TOKENS), store.listed()
    wide = random_model(replace(TINY, intermediate_size=128))
    bad = {
        "foreign": random_adapter(random_model(TINY), about=About(base_signature="wrong")),
        "wide": random_adapter(wide, about=About(base_signature="right")),
        "deep": random_adapter(random_model(replace(TINY, num_hidden_layers=3))),
    }
    for name, adapter in bad.items():
        write(adapter, folder / name)
    write(random_adapter(random_model(TINY)), folder / "cut")
    file = folder / "cut" / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    messages = {
        "foreign": "another model .base signature wrong",
        "wide": "128 by 64 numbers",
        "deep": "no linear layer",
        "cut": "cut short",
        "missing": "no adapter",
    }
    for name, message in messages.items():
        with pytest.raises(InputError, match=message):
            store.add(name, folder / name)
        with pytest.raises(InputError, match=message):
            store.add("one", folder / name)
        assert store.listed() == listed
        assert mx.array_equal(model(TOKENS), before)
    store.put("one")
    assert mx.array_equal(model(TOKENS), before)
    with pytest.raises(InputError, match="no adapter 'four' here .one, three, two."):
        store.put("four")
    assert mx.array_equal(model(TOKENS), before)
    with pytest.raises(InputError, match="needs a name"):
        store.add(BARE, folder / "one")


def test_folder_that_changed_for_the_worse_is_refused_when_wanted(
    model: Model, folder: Path
) -> None:
    store = open_store(model, folder, 1)
    store.put("two")
    before = model(TOKENS)
    (folder / "one" / "adapters.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cut short"):
        store.put("one")
    assert mx.array_equal(model(TOKENS), before)


def test_signature_is_asked_only_where_it_counts(model: Model, tmp_path: Path) -> None:
    # It reads all weights; adapters of others name none.
    def never() -> str:
        raise AssertionError

    write(random_adapter(model), tmp_path / "a")
    store = Store(model, never)
    store.add("a", tmp_path / "a")
    store.put("a")


def test_removed_adapter_is_gone(model: Model, folder: Path) -> None:
    plain = model(TOKENS)
    store = open_store(model, folder)
    store.default = "one"
    store.put("one")
    store.remove("one")
    assert store.names == ["three", "two"]
    assert store.default == BARE
    assert mx.array_equal(model(TOKENS), plain)
    with pytest.raises(InputError, match="no adapter 'one'"):
        store.remove("one")


def test_matrices_left_by_others_do_not_stay(model: Model, folder: Path) -> None:
    # A job that trains puts its own into the slots.
    store = open_store(model, folder)
    store.put("two")
    put(model, random_adapter(random_model(TINY), "stray"))
    store.put("two")
    assert mx.array_equal(model(TOKENS), alone(folder, "two"))


def test_rows_take_adapters_of_their_own(model: Model, folder: Path) -> None:
    store = open_store(model, folder)
    names = ["one", BARE, "three", "two", "one"]
    tokens = mx.array([[i, 2, 9, i + 40, 5] for i in range(5)])
    wanted = []
    for row, name in enumerate(names):
        store.put(name)
        wanted.append(model(tokens[row : row + 1])[0])
    store.use_rows([store.get(name) for name in names])
    found = model(tokens)
    for row in range(5):
        assert mx.abs(found[row] - wanted[row]).max() < 1e-4
    kept = mx.array([4, 2])
    store.keep_rows(kept)
    assert mx.abs(model(tokens[kept]) - found[kept]).max() < 1e-4
    store.put("two")
    assert mx.array_equal(model(TOKENS), alone(folder, "two"))


def test_adapters_without_a_signature_are_taken_by_shape(model: Model, tmp_path: Path) -> None:
    adapter = random_adapter(model)
    write(Adapter("x", adapter.weights, adapter.options), tmp_path / "x", "peft")
    assert open_store(model, tmp_path).names == ["x"]
