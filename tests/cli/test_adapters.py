"""``afm adapters``, run as a person runs it."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx import checkpoint, cli
from afm_mlx.adapters import formats, library
from afm_mlx.adapters.train import train_adapter
from afm_mlx.cli import adapters as commands
from afm_mlx.model import PRESETS
from afm_mlx.training import Step
from tests.adapters.made import random_adapter
from tests.adapters.pupil import rows, write
from tests.conftest import random_model, tiny_tokenizer

import pytest

ARGS = replace(PRESETS["tiny"], num_hidden_layers=2, hidden_size=64, intermediate_size=96)
SMALL = [
    *("--name", "notes", "--model", "model", "--rank", "4", "--held-out", "0.2", "--steps", "6"),
    *("--learning-rate", "5e-3", "--evaluate-every", "3", "--save-every", "2"),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model and samples; data and caches go into the same folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tmp_path / "model", random_model(ARGS), tiny_tokenizer(), base="tests")
    write(tmp_path / "chat.jsonl", rows())
    return tmp_path


def afm(*arguments: str) -> int:
    return cli.main(["adapters", *arguments])


def learn(*more: str) -> int:
    model = [
        "chat.jsonl",
        "--name",
        "notes",
        "--model",
        "model",
        "--steps",
        "6",
        "--save-every",
        "2",
    ]
    return afm("train", *model, *SMALL, *more)


def lines(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_train_list_show_export_remove(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(place / "chat.jsonl", [*rows(), {"other": 1}])
    assert learn("--feature", "proofread") == 0
    shown = capsys.readouterr()
    for words in (
        "24 samples for model",
        "memory:",
        "fits",
        "after step 6",
        "tokens right without",
    ):
        assert words in shown.out
    assert "skipped chat.jsonl:31" in shown.err
    folder = place / "share" / "afm-mlx" / "adapters" / "notes"
    assert folder == library.home() / "notes" and (folder / "README.md").is_file()
    assert not (place / "adapters").exists()

    assert afm("list") == 0
    assert "notes" in (listed := capsys.readouterr().out) and "proofread" in listed
    assert afm("show", "notes", "--json") == 0
    (known,) = lines(capsys)
    assert known["rank"] == 4 and known["feature"] == "proofread" and known["metrics"]["loss"] > 0
    assert known["base_signature"] == checkpoint.load("model").signature
    assert afm("show", str(folder)) == 0
    assert "base signature" in capsys.readouterr().out

    assert afm("export", "notes", "there", "--form", "peft") == 0
    assert (place / "there" / "adapter_model.safetensors").is_file()
    assert afm("import", "there", "--name", "back", "--model", "model") == 0
    home = library.home()
    one, two = formats.read(home / "notes"), formats.read(home / "back")
    assert all((one.weights[k] == two.weights[k]).all() for k in one.weights)
    assert two.about == one.about

    capsys.readouterr()
    assert afm("remove", "notes") == 2
    assert "--yes" in capsys.readouterr().err and folder.exists()
    assert list((place / "kept" / "afm-mlx" / "adapters").glob("notes-*"))
    assert afm("remove", "notes", "--yes") == 0
    assert not folder.exists() and (home / "back").exists()
    # What training kept goes too: its text, and what the next run of that name would go on from.
    assert not list((place / "kept" / "afm-mlx" / "adapters").iterdir())


def test_json_and_going_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert learn("--json", "--out", "elsewhere") == 0
    found = lines(capsys)
    names = [e["event"] for e in found]
    assert names[0] == "plan" and names[-1] == "finished" and names.count("step") == 6
    assert found[0]["verdict"] == "fits" and found[0]["data"]["samples"] == 24
    assert found[-1]["folder"] == "elsewhere" and (place / "elsewhere").is_dir()
    assert afm("list", "--json") == 0 and not lines(capsys)
    assert learn("--json", "--out", "elsewhere", "--steps", "8") == 0
    again = lines(capsys)
    assert again[0]["done"] == 6 and [e["step"] for e in again if e["event"] == "step"] == [7, 8]


def test_plan_writes_no_adapter(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert learn("--plan") == 0
    assert "memory:" in capsys.readouterr().out
    assert not library.home().exists()


def test_ctrl_c_keeps_the_best_and_says_how_to_go_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*given: Any) -> Iterator[Any]:
        for event in train_adapter(*given):
            yield event
            if isinstance(event, Step) and event.step == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(commands, "train_adapter", interrupted)
    assert learn() == 130
    said = capsys.readouterr().err
    assert "step 4 and the best one, step 3, are saved: the same command goes on" in said
    assert not library.home().exists()
    monkeypatch.setattr(commands, "train_adapter", train_adapter)
    assert learn() == 0
    assert "goes on after step 4" in capsys.readouterr().out


def test_remove_asks(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    formats.write(random_adapter(random_model(ARGS)), Path("mine") / "one")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    said = iter(["", "yes"])
    monkeypatch.setattr("builtins.input", lambda _: next(said))
    assert afm("remove", "one", "--adapters", "mine") == 0
    assert (place / "mine" / "one").exists()
    assert afm("remove", "one", "--adapters", "mine", "--json") == 0
    assert not (place / "mine" / "one").exists()


def test_a_damaged_adapter_does_not_hide_the_others(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    formats.write(random_adapter(random_model(ARGS)), library.home() / "good")
    formats.write(random_adapter(random_model(ARGS)), library.home() / "cut")
    weights = library.home() / "cut" / "adapters.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert afm("list") == 0
    shown = capsys.readouterr().out
    assert "good" in shown and "not known" in shown and "cut short" in shown


@pytest.mark.parametrize(
    "config",
    [
        '{"lora_parameters": {"rank": 1e999, "scale": 1}}',
        '{"lora_parameters": {"rank": 4, "scale": 1, "keys": [1, 2]}}',
        '{"a": ' * 100_000,
    ],
)
def test_a_senseless_description_does_not_hide_the_others(
    place: Path, capsys: pytest.CaptureFixture[str], config: str
) -> None:
    for name in ("good", "odd"):
        formats.write(random_adapter(random_model(ARGS)), library.home() / name)
    (library.home() / "odd" / formats.CONFIG).write_text(config, "utf-8")
    assert afm("list", "--json") == 0
    good, odd = lines(capsys)
    assert good["rank"] == 4 and str(library.home() / "odd") in odd["problem"]
    assert afm("show", "odd") == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--name", "x"], "nothing to learn from"),
        (["train", "chat.jsonl", "--name", "../x"], "no name for an adapter"),
        (["train", "chat.jsonl", "--name", "x", "--feature", "poetry"], "there is no feature"),
        (["train", "none.jsonl", "--name", "x", "--model", "model"], "there is no none.jsonl"),
        (["train", "chat.jsonl", "--name", "x", "--model", "nowhere"], "nowhere"),
        (["train", "chat.jsonl", "--name", "x", "--model", "model", "--keys", "q"], "no layer is"),
        (["show", "none"], "there is no adapter 'none'"),
        (["remove", "none", "--yes"], "there is no adapter 'none'"),
        (["export", "none", "out"], "there is no adapter 'none'"),
        (["import", "model", "--name", "x"], "is no adapter"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert afm(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (library.home() / "x").exists()


def test_import_refuses_what_does_not_fit(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = random_model(replace(ARGS, hidden_size=32))
    formats.write(random_adapter(other), place / "wide")
    assert afm("import", "wide", "--model", "model") == 2
    assert "it is for another model" in capsys.readouterr().err
    assert afm("import", "wide") == 0
    assert "names no model" in capsys.readouterr().err
