"""Text files as they are, paths that are completed, pasted conversations."""

import os
from pathlib import Path

from afm_mlx.errors import InputError
from afm_mlx.features import ChatMessage
from afm_mlx.tui.writing import clipboard, textfile, thread

import pytest


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"plain\n",
        b"no end",
        "Grüße 👩‍👩‍👧 שלום\n".encode(),
        b"\xef\xbb\xbfmarked\r\n",
        "UTF-16 – ok\r\n".encode("utf-16"),
        "\ufeffbig\n".encode("utf-16-be"),
        b"caf\xe9 \x80\n",
        b"\x81 is in no code page\n",
        b"old\rmac\r",
    ],
)
def test_a_file_is_written_as_it_was_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    path.chmod(0o640)
    file, text = textfile.read(path)
    assert "\r" not in text and "\ufeff" not in text
    written = textfile.write(file, text)
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o640
    assert not textfile.changed_outside(written)


def test_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\ntwo\r\nthree\nfour\u2028five\f".encode())
    file, text = textfile.read(path)
    assert text == "one\ntwo\nthree\nfour\nfive\n"
    assert file.newline == "\r\n"
    assert "line ends differ" in file.note and "2 unusual" in file.note
    path.write_bytes(b"caf\xe9")
    assert "windows-1252" in textfile.read(path)[0].note


def test_a_link_stays_one(tmp_path: Path) -> None:
    # Replacing the link left the file behind it as it was.
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    link.symlink_to(real)
    file, _ = textfile.read(link)
    textfile.write(file, "new")
    assert link.is_symlink() and real.read_text() == "new"


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    binary = tmp_path / "a.bin"
    binary.write_bytes(b"a\0b")
    broken = tmp_path / "b.txt"
    broken.write_bytes(b"\xff\xfeabc")
    large = tmp_path / "c.txt"
    with large.open("wb") as stream:
        stream.truncate(textfile.MOST_BYTES + 1)
    for path, said in (
        (binary, "no text"),
        (broken, "damaged"),
        (large, "open a part"),
        (tmp_path / "none.txt", "check its name"),
        (tmp_path, "no file"),
        (Path("/dev/zero"), "no file"),  # it has no end
    ):
        with pytest.raises(InputError, match=said):
            textfile.read(path)


def test_characters_that_an_encoding_lacks(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")
    file, text = textfile.read(path)
    assert textfile.unwritable(file, text) == ""
    assert textfile.unwritable(file, f"{text} 🙂!") == "🙂"
    with pytest.raises(InputError, match="as UTF-8"):
        textfile.write(file, "🙂")
    assert path.read_bytes() == b"caf\xe9"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be written"):
        textfile.write(textfile.TextFile(tmp_path / "no" / "a.txt"), "x")


def test_changes_by_others_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    file, _ = textfile.read(path)
    assert not textfile.changed_outside(file)
    os.utime(path, ns=(1, 1))
    assert textfile.changed_outside(file)
    path.unlink()
    assert not textfile.changed_outside(file)


def test_paths_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("letter.txt", "list.txt", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "lib").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert textfile.complete("l") == ["lib/", "letter.txt", "list.txt"]
    assert textfile.complete("") == ["lib/", "letter.txt", "list.txt"]
    assert textfile.complete(".h") == [".hidden"]
    assert textfile.complete("~/le") == ["~/letter.txt"]
    assert textfile.complete(f"{tmp_path}/li") == [f"{tmp_path}/lib/", f"{tmp_path}/list.txt"]
    assert textfile.complete("nowhere/x") == []
    assert textfile.complete("~nobody-of-that-name/x") == []


def test_a_conversation_is_read() -> None:
    text = "Ana: Tea at 19:30?\n\n- Me: where:\nhttps://a.org/x\nDr. Bo Li:  at mine\nand cake\n"
    assert thread.parse(text).messages == (
        ChatMessage("Ana", "Tea at 19:30?"),
        ChatMessage("me", "where:\nhttps://a.org/x"),
        ChatMessage("Dr. Bo Li", "at mine\nand cake"),
    )
    assert thread.with_reply("Ana: Hi\n\n", "Hello") == "Ana: Hi\nme: Hello\n\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hello", "no name"),
        ("https://a.org", "no name"),
        ("", "no messages"),
        ("Ana:", "no messages"),
        ("Ana: hi\nME: hello", "your own"),
    ],
)
def test_what_is_no_conversation(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        thread.parse(text)


def test_what_a_copy_reaches() -> None:
    assert clipboard.outcome("abc", {"TERM": "xterm"})[1]
    assert not clipboard.outcome("abc", {"TERM": "linux"})[1]
    assert not clipboard.outcome("abc", {})[1]
    assert not clipboard.outcome("abc", {"TERM": "xterm", "TERM_PROGRAM": "Apple_Terminal"})[1]
    said, reaches = clipboard.outcome("ü" * 40_000, {"TERM": "xterm"})
    assert not reaches and "may refuse" in said
