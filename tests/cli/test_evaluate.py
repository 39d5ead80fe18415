"""``afm eval features``, run as a person runs it, on a tiny model and invented rows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx import checkpoint, cli
from afm_mlx.adapters import formats, library
from afm_mlx.model import PRESETS
from tests.adapters.made import random_adapter
from tests.conftest import random_model, tiny_tokenizer
from tests.evaluation.conftest import ROWS

import pytest

ARGS = replace(PRESETS["tiny"], num_hidden_layers=2, max_position_embeddings=8192)
SMALL = ("--model", "model", "--feature", "priority", "change")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model and evaluation rows; adapters belong into the same folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tmp_path / "model", random_model(ARGS), tiny_tokenizer(), base="tests")
    (tmp_path / "data").mkdir()
    for name, rows in ROWS.items():
        text = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / "data" / f"{name}.eval.jsonl").write_text(text)
    return tmp_path


def features(*arguments: str) -> int:
    return cli.main(["eval", "features", *arguments])


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_figures_with_and_without_an_adapter(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint.load("model").model
    formats.write(random_adapter(model, "strong"), place / "strong")
    arguments = ["data", *SMALL, "--adapter", "strong", "--save", "out/all.json", "--limit", "2"]
    assert features(*arguments, "--json") == 0
    report = printed(capsys)
    lines = {(line["kind"], line["figure"]): line for line in report["lines"]}
    assert {kind for kind, _ in lines} == {"priority", "change"}
    accuracy = lines["priority", "accuracy"]
    assert {*accuracy["values"]} == {"", "strong"} and {*accuracy["differences"]} == {"strong"}
    assert accuracy["values"][""]["rows"] == 2
    assert report == json.loads((place / "out" / "all.json").read_text())
    answers = (place / "out" / "all.answers.jsonl").read_text()
    assert len(answers.splitlines()) == 1 + 2 * 3

    # The same again asks the model nothing, and shows a table.
    assert features(*arguments) == 0
    table = capsys.readouterr().out
    assert (place / "out" / "all.answers.jsonl").read_text() == answers
    assert "model alone" in table and "strong" in table and "difference" in table
    assert "\x1b" not in table


def test_features_bring_their_adapters(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = checkpoint.load("model")
    made = random_adapter(base.model, "mine")
    about = replace(made.about, feature="change", base_signature=base.signature)
    formats.write(replace(made, about=about), library.home() / "mine")
    assert features("data", *SMALL, "--limit", "1", "--json") == 0
    lines = printed(capsys)["lines"]
    found = {(line["kind"], variant) for line in lines for variant in line["values"]}
    assert found == {("priority", ""), ("change", ""), ("change", "its adapter")}


def test_columns_are_of_the_same_rows(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Of the rows that mislead, an adapter for replies answers one; the model alone has them all.
    rows = [*ROWS["adversarial"], {**ROWS["adversarial"][0], "id": "a2"}]
    text = "\n".join(json.dumps(row) for row in rows)
    (place / "data" / "adversarial.eval.jsonl").write_text(text, "utf-8")
    base = checkpoint.load("model")
    made = random_adapter(base.model, "mine")
    about = replace(made.about, feature="smart-reply", base_signature=base.signature)
    formats.write(replace(made, about=about), library.home() / "mine")
    arguments = ["data", "--model", "model", "--feature", "adversarial", "--save", "all.json"]
    assert features(*arguments, "--json") == 0
    lines = {line["figure"]: line for line in printed(capsys)["lines"]}
    replaced = lines["replaced or cut"]
    assert {v: e["rows"] for v, e in replaced["values"].items()} == {"": 1, "its adapter": 1}
    assert features(*arguments) == 0
    (shown,) = (x for x in capsys.readouterr().out.splitlines() if "replaced or cut*" in x)
    assert shown.split("cut*")[1].split()[0] == "1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", *SMALL], "name the folder that has it"),
        (["data", "--model", "model", "--feature", "poem"], "there is no feature 'poem'"),
        (["data", *SMALL, "--adapter", "none"], "there is no adapter 'none'"),
        (["data", *SMALL, "--limit", "0"], "limit counts rows"),
        (["data", *SMALL, "--seed", "-1"], "seed counts draws"),
        (["data", *SMALL, "--save", "data"], "data is a folder: name a file in it"),
        (["data", *SMALL, "--save", "."], "is a folder: name a file in it"),
        (["data", "--model", "nowhere", "--save", "."], "is a folder: name a file in it"),
    ],
)
def test_bad_input_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert features(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("afm: ") and message in error and "\n" not in error


def test_eval_alone_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval"]) == 2
    assert "afm eval features DATA" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("adversarial", '{"id": "a", "feature": "poem", "input": {}}', "row a names none of"),
        ("changes", '{"id": "c", "text": "x", "instruction": "y"}', "row c lacks 'output'"),
        ("changes", "[1]", "a line is no object"),
        ("changes", "", "changes.eval.jsonl has no rows"),
        ("changes", "[" * 100_000, "cannot be read as evaluation data"),
        ("changes", '{"id": 5, "text": "x"}', "lacks 'id'"),
        (
            "changes",
            '{"id": "c", "instruction": "y", "output": "z"}',
            "jsonl: row c cannot be used",
        ),
    ],
)
def test_broken_rows_are_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], name: str, line: str, message: str
) -> None:
    (place / "data" / f"{name}.eval.jsonl").write_text(line + "\n", "utf-8")
    kind = "change" if name == "changes" else name
    assert features("data", "--model", "model", "--feature", kind) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_answers_of_another_form_are_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "all.answers.jsonl").write_text("[1]\n", "utf-8")
    assert features("data", *SMALL, "--save", "all.json") == 2
    assert "save to another file" in capsys.readouterr().err


def test_answers_of_another_model_are_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert features("data", *SMALL, "--save", "all.json", "--limit", "1") == 0
    other = random_model(ARGS, 1)
    checkpoint.save(place / "model", other, tiny_tokenizer(), base="tests", overwrite=True)
    capsys.readouterr()
    assert features("data", *SMALL, "--save", "all.json", "--limit", "1") == 2
    assert "(model changed)" in capsys.readouterr().err
