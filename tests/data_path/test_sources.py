"""Every kind of file is read; what cannot be used is named by file and line, or skipped."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from afm_mlx.data.sources import Sample, Source, files, read
from afm_mlx.errors import InputError
from afm_mlx.tokenizer import Message

import pytest

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
MESSAGES = (Message("user", "Hi"), Message("assistant", "Hello"))


def write(path: Path, *lines: Any) -> Source:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return Source(str(path))


def test_all_records(tmp_path: Path) -> None:
    source = write(
        tmp_path / "a.jsonl",
        {"text": " Grüße\n", "id": 1},
        {"messages": TURNS, "prompt": "unused"},
        TURNS,
        {"prompt": "Hi", "completion": "Hello"},
        {"text": None, "messages": TURNS},  # rows of tables have every column
    )
    found = list(read(source))
    assert found[0] == Sample(" Grüße\n", source=f"{tmp_path}/a.jsonl:1")
    assert [s.messages for s in found[1:]] == [MESSAGES] * 4
    assert [s.source[-2:] for s in found] == [":1", ":2", ":3", ":4", ":5"]


def test_text_field(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, {"text": "no", "body": "yes"})
    assert [s.text for s in read(Source(str(path), text_field="body"))] == ["yes"]
    (tmp_path / "b.txt").write_text("a document")
    assert [s.text for s in read(Source(f"{tmp_path}/b.txt", text_field="body"))] == ["a document"]


def test_files_by_suffix(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".cache").mkdir()
    write(tmp_path / "sub" / "b.jsonl", {"text": "b1"}, {"text": "b2"})
    (tmp_path / "c.json").write_text(json.dumps([{"text": "c1"}, TURNS]))
    (tmp_path / "a.txt").write_text("a1\n\na2\n")
    (tmp_path / "z.MD").write_bytes(b"\xef\xbb\xbf# z\r\n")
    (tmp_path / ".cache" / "hidden.txt").write_text("no")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    found = list(read(Source(str(tmp_path))))
    assert [s.content for s in found] == ["a1\n\na2\n", "c1", "Hi\nHello", "b1", "b2", "# z\r\n"]
    assert [Path(s.source).name for s in found[:4]] == [
        "a.txt:1",
        "c.json item 1",
        "c.json item 2",
        "b.jsonl:1",
    ]


BAD = {
    "no JSON": (b"{oops", "is broken JSON"),
    "not UTF-8": (b'{"text": "caf\xe9"}', "is not UTF-8 text (byte 13)"),
    "nested": (b"[" * 200_000, "is nested too deeply"),
    "a long number": (b"1" * 5000, "cannot be read"),
    "no object": (b"7", "is no JSON object"),
    "a string": (b'"text"', "is no JSON object"),
    "empty text": (b'{"text": " \\n"}', "'text' is empty"),
    "no string": (b'{"text": ["a"]}', "'text' is no text"),
    "no keys": (b'{"txt": "a"}', "has neither 'text' nor 'messages'"),
    "half a pair": (b'{"prompt": "a"}', "has neither"),
    "empty completion": (b'{"prompt": "a", "completion": ""}', "'completion' is empty"),
    "no messages": (b'{"messages": []}', "has no list of messages"),
    "an object": (b'{"messages": {"role": "user"}}', "has no list of messages"),
    "wrong role": (b'[{"role": "tool", "content": "a"}]', "message 1 has the role 'tool'"),
    "odd role": (b'[{"role": ["user"], "content": "a"}]', "message 1 has the role"),
    "no content": (b'[{"role": "user"}]', "message 1 has no 'role' and 'content'"),
    "parts": (b'[{"role": "user", "content": [{"text": "a"}]}]', "message 1 is no text"),
    "no answer": (b'[{"role": "user", "content": "a"}]', "has no assistant message"),
    "late system": (
        b'[{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]',
        "message 2 is a system message",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines(tmp_path: Path, name: str) -> None:
    line, reason = BAD[name]
    path = tmp_path / "a.jsonl"
    # \x85 ends a line for str.splitlines, but not in JSON Lines
    path.write_bytes(b'{"text": "one\xc2\x85more"}\n\n' + line + b'\n{"text": "two"}')
    with pytest.raises(InputError) as error:
        list(read(Source(str(path))))
    assert str(error.value).startswith(f"{path}:3 ")
    assert reason in str(error.value) and "--skip-bad" in str(error.value)
    assert "\n" not in str(error.value)

    report: list[str] = []
    found = list(read(Source(str(path)), skip_bad=True, report=report))
    assert [s.text for s in found] == ["one\x85more", "two"]
    assert len(report) == 1 and report[0].startswith(f"{path}:3 {reason.split(' (')[0]}")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\xef\xbb\xbf\n \n", "is empty"),
        ("a.txt", b" \n", "is empty"),
        ("a.md", b"\xff\xfe", "is not UTF-8"),
        ("a.json", b"", "is empty"),
        ("a.json", b"[]", "is empty"),
        ("a.json", b'{"text": "a"}', "is no JSON list"),
        ("a.json", b'{"text": "a"}\n{"text": "b"}', "is broken JSON"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "good.txt").write_text("good")
    with pytest.raises(InputError, match=f"{name}.* {reason}.*--skip-bad"):
        list(read(Source(str(tmp_path))))
    report: list[str] = []
    assert [s.text for s in read(Source(str(tmp_path)), True, report)] == ["good"]
    assert len(report) == 1
    # a file without one good sample is an error even then
    with pytest.raises(InputError, match="no usable sample"):
        list(read(Source(str(tmp_path / name)), skip_bad=True))


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no .*nowhere.txt: check the path"):
        list(read(Source(str(tmp_path / "nowhere.txt"))))
    with pytest.raises(InputError, match="holds no .json, .jsonl, .md, .txt files"):
        files(Source(str(tmp_path)))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="a.parquet cannot be read: convert it to .jsonl"):
        files(Source(str(tmp_path / "a.parquet")))


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    # tokenizers raise on lone surrogates, which JSON can hold
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\\ud83d"}')
    assert [s.text for s in read(Source(f"{tmp_path}/a.jsonl"))] == ["a?"]


@pytest.mark.parametrize(
    ("spec", "path", "weight"),
    [
        ("data/chat.jsonl:0.3", "data/chat.jsonl", 0.3),
        ("data/chat.jsonl", "data/chat.jsonl", 1.0),
        ("C:/data", "C:/data", 1.0),
        ("odd:name:2", "odd:name", 2.0),
        ("hf:owner/name", "hf:owner/name", 1.0),
        ("hf:owner/name:train:5e-1", "hf:owner/name:train", 0.5),
        ("hf:owner/name/all@main:train", "hf:owner/name/all@main:train", 1.0),
    ],
)
def test_parse(spec: str, path: str, weight: float) -> None:
    assert Source.parse(spec) == Source(path, weight)


@pytest.mark.parametrize("spec", ["a:0", "a:-1", "a:nan", "a:inf", "", ":1", "hf:name", "hf:"])
def test_bad_sources(spec: str) -> None:
    with pytest.raises(InputError, match="write|give"):
        Source.parse(spec)


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(**options: Any) -> Any:
        asked.append(options)
        return iter([{"text": "a"}, {"text": ""}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    report: list[str] = []
    found = list(read(Source("hf:owner/name/all@v1:test"), True, report))
    assert found == [Sample("a", source="hf:owner/name/all@v1:test row 1")]
    assert report == ["hf:owner/name/all@v1:test row 2 'text' is empty"]
    list(read(Source("hf:owner/name"), True))
    assert asked == [
        {"path": "owner/name", "name": "all", "revision": "v1", "split": "test", "streaming": True},
        {"path": "owner/name", "split": "train", "streaming": True},
    ]

    def broken(**_: Any) -> Any:
        raise ConnectionError("no network\nmore")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=broken))
    with pytest.raises(InputError, match="cannot be read .no network.: check name, split"):
        next(read(Source("hf:owner/name")))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'afm-mlx\[datasets\]'"):
        next(read(Source("hf:owner/name")))


def test_sample() -> None:
    text, chat = Sample("abc", source="a:1"), Sample(messages=MESSAGES, source="a:2")
    assert text.map(str.upper) == Sample("ABC", source="a:1")
    assert chat.content == "Hi\nHello"
    assert [m.content for m in chat.map(str.upper).messages] == ["HI", "HELLO"]
    assert chat.map(str.upper).messages[0].role == "user"
    for wrong in ({}, {"text": "a", "messages": MESSAGES}):
        with pytest.raises(InputError, match="either a text or messages"):
            Sample(**wrong)  # type: ignore[arg-type]
