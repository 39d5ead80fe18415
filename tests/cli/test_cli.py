"""The command line: good input, bad input, pipes, exit codes. Models are tiny folders."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

from afm_mlx import checkpoint
from afm_mlx.cli import main
from afm_mlx.model import PRESETS
from tests.conftest import random_model, tiny_tokenizer

import pytest

COMMANDS = ["summarize", "proofread", "rewrite", "key-points", "reply", "change"]
STACK = {"app": "Mail", "group": "Ana", "notifications": [{"title": "Ana", "body": "Call me"}]}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder whose window is wide enough for every feature's prompt in bytes."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    args = replace(PRESETS["tiny"], max_position_embeddings=8192)
    checkpoint.save(folder, random_model(args), tiny_tokenizer(), base="tiny")
    return str(folder)


@dataclass
class Done:
    """How a command ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def afm(*arguments: str, stdin: bytes = b"") -> Done:
    """``afm`` in this process, which has imported MLX already, with a pipe at each end."""
    out, err = io.StringIO(), io.StringIO()
    piped = io.TextIOWrapper(io.BytesIO(stdin))
    with (
        mock.patch("sys.stdin", piped),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main(arguments)
    return Done(code, out.getvalue(), err.getvalue())


def afm_process(*arguments: str, stdin: bytes = b"", **env: str) -> Done:
    """``afm`` in a process of its own, as a person's shell starts it."""
    done = subprocess.run(
        [sys.executable, "-m", "afm_mlx", *arguments],
        input=stdin,
        capture_output=True,
        env={**os.environ, **env},
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def refused(done: Done) -> str:
    """The one line of an error, after checking that it is one."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("afm: ")
    return done.stderr.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_text_from_a_pipe(tiny: str, command: str) -> None:
    extra = ["--instruction", "shorter"] if command == "change" else []
    done = afm(command, "--model", tiny, "--json", *extra, stdin=b"The bus is late. ")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["metrics"]["generated_tokens"] > 0
    assert answer["parts"] == 1


def test_a_process_of_its_own(tiny: str) -> None:
    done = afm_process("summarize", "--model", tiny, stdin=b"The bus is late.")
    assert done.returncode == 0
    assert all(line.startswith("note: ") for line in done.stderr.splitlines())
    assert done.stdout.strip() and "note: " not in done.stdout
    refused(afm_process("summarize", "--model", "no-such", stdin=b"hello"))


def test_stack_as_json_and_plain(tiny: str, tmp_path: Path) -> None:
    file = tmp_path / "inbox.jsonl"
    file.write_text("\n".join(json.dumps({**STACK, "id": f"s{i}"}) for i in range(2)))
    done = afm("summarize", str(file), "--model", tiny, "--json")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(a["id"], a["feature"]) for a in answers] == [
        ("s0", "notification-summary"),
        ("s0", "priority"),
        ("s1", "notification-summary"),
        ("s1", "priority"),
    ]
    plain = afm("summarize", str(file), "--model", tiny).stdout
    assert plain.startswith("Mail · Ana: ")
    assert "\x1b" not in plain


def test_summary_of_a_thread(tiny: str) -> None:
    thread = json.dumps({"messages": [{"from": "Ana", "text": "Are you in?"}]}).encode()
    done = afm("summarize", "--model", tiny, "--json", stdin=thread)
    assert json.loads(done.stdout)["feature"] == "summary"


def test_same_seed_same_text(tiny: str) -> None:
    arguments = ["rewrite", "--model", tiny, "--temperature", "1", "--json"]

    def value(seed: str) -> str:
        done = afm(*arguments, "--seed", seed, stdin=b"The bus is late.")
        return str(json.loads(done.stdout)["value"])

    assert value("1") == value("1") != value("2")


def test_chat(tiny: str) -> None:
    done = afm("chat", "--model", tiny, "--max-tokens", "4", "--json", stdin=b"hi\n/new\nhi\n")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first == second
    assert first["prompt"].strip() == "hi"


@pytest.mark.parametrize("command", [*COMMANDS, "chat"])
def test_empty_input(tiny: str, command: str) -> None:
    assert "empty" in refused(afm(command, "--model", tiny, stdin=b" \n"))


@pytest.mark.parametrize("command", COMMANDS)
def test_megabyte_of_text(tiny: str, command: str) -> None:
    extra = ["--instruction", "shorter"] if command == "change" else []
    done = afm(command, "--model", tiny, *extra, stdin=b"word " * 200_000)
    assert "raise --max-characters" in refused(done)


@pytest.mark.parametrize("command", COMMANDS)
def test_invalid_utf8(tiny: str, command: str) -> None:
    error = refused(afm(command, "--model", tiny, stdin="Grüße".encode("latin1")))
    assert "not UTF-8" in error and "iconv" in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"app": "Mail", ', "line 1 is broken JSON"),
        ('{"app": "Mail"}\n{"app"\n', "line 2 is broken JSON"),
        ('{"app": "Mail", "notifications": 3}', "lacks the list 'notifications'"),
        ('[{"app": "A", "notifications": []}]', "no notifications"),
        ("[]", "no items"),
        ("{}", "lacks the text 'text'"),
        ('{"app": "A", "group": 5, "notifications": []}', "lacks the text 'group'"),
        ('[{"a":' * 100_000, "nested too deeply"),
        ('{"text": ' + "9" * 5000 + "}", "correct it"),
    ],
)
def test_broken_json(tiny: str, text: str, message: str) -> None:
    assert message in refused(afm("summarize", "--model", tiny, stdin=text.encode()))


def test_lines_of_json_may_hold_any_character(tiny: str) -> None:
    # Guards: str.splitlines() also cuts at U+2028 and U+0085, inside strings.
    rows = "\n".join(json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False) for _ in range(2))
    done = afm("summarize", "--model", tiny, "--json", stdin=rows.encode())
    assert len(done.stdout.splitlines()) == 2


def test_half_a_surrogate_pair(tiny: str) -> None:
    done = afm("summarize", "--model", tiny, "--json", stdin=b'{"text": "x \\ud83d"}')
    assert done.returncode == 0


def test_full_disk_behind_the_output(tiny: str) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("only Linux has /dev/full")
    command = f"{sys.executable} -m afm_mlx models list --json > /dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("afm: cannot write the output")


def test_bad_seed(tiny: str) -> None:
    arguments = ["--temperature", "1", "--seed", "-1"]
    assert "seed" in refused(afm("rewrite", "--model", tiny, *arguments, stdin=b"hello"))


def test_text_that_looks_like_json(tiny: str) -> None:
    done = afm("summarize", "--model", tiny, "--format", "text", "--json", stdin=b'{"app": ')
    assert json.loads(done.stdout)["feature"] == "summary"


def test_missing_file(tiny: str, tmp_path: Path) -> None:
    error = refused(afm("summarize", str(tmp_path / "none.txt"), "--model", tiny))
    assert "no such file" in error and "check the path" in error


@pytest.mark.parametrize("command", [*COMMANDS, "chat", "demo", "bench"])
def test_unknown_model(command: str) -> None:
    extra = ["--instruction", "x"] if command == "change" else []
    error = refused(afm(command, "--model", "no-such", *extra, stdin=b"hello"))
    assert "unknown model 'no-such'" in error and "smollm2-135m-instruct" in error


def test_no_network(tmp_path: Path) -> None:
    with socket.socket() as closed:  # a port of this machine where nothing answers
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)}
    for arguments in (["summarize", "--model", "me/tiny"], ["models", "download", "me/tiny"]):
        error = refused(afm_process(*arguments, stdin=b"hello", **settings))
        assert "the Hub cannot be reached" in error


def test_truncated_model(tiny: str, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    folder.mkdir()
    for file in Path(tiny).iterdir():
        (folder / file.name).write_bytes(file.read_bytes()[:4000])
    (folder / "config.json").write_bytes((Path(tiny) / "config.json").read_bytes())
    error = refused(afm("summarize", "--model", str(folder), stdin=b"hello"))
    assert "damaged or cut short" in error


def test_gguf_of_another_architecture(tmp_path: Path) -> None:
    from tests.test_gguf import write_gguf

    write_gguf(tmp_path / "m.gguf", "qwen3")
    error = refused(afm("summarize", "--model", str(tmp_path / "m.gguf"), stdin=b"hello"))
    assert "architecture 'qwen3'" in error


def test_change_without_instruction(tiny: str) -> None:
    assert "--instruction" in refused(afm("change", "--model", tiny, stdin=b"hello"))


def test_removing_what_is_not_there(tmp_path: Path) -> None:
    error = refused(afm_process("models", "remove", "me/tiny", HF_HOME=str(tmp_path)))
    assert "afm models list" in error


def test_models_list(tmp_path: Path) -> None:
    done = afm_process("models", "list", "--json", HF_HOME=str(tmp_path))
    assert done.returncode == 0
    assert {json.loads(line)["kind"] for line in done.stdout.splitlines()} <= {"embedded"}


def test_doctor() -> None:
    done = afm("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == int(any(c["remedy"] for c in checks.values()))
    assert {"system", "packages", "device", "memory", "embedded model"} <= set(checks)
    slow = afm_process("doctor", "--json", AFM_BLAS="off")
    if sys.platform == "linux":
        remedies = {c["name"]: c["remedy"] for c in json.loads(slow.stdout)}
        assert slow.returncode == 1 and remedies["BLAS"] == "unset AFM_BLAS"


def test_bench(tiny: str) -> None:
    arguments = ["--prompt-tokens", "9", "--generate-tokens", "3", "--repeats", "1", "--json"]
    done = afm("bench", "--model", tiny, *arguments)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for name in ("afm", "mlx_lm"):
        assert report[name]["prefill"] > 0 and report[name]["decode"] > 0
    assert report["prefix"]["second"] > 0
    if sys.platform == "linux":
        assert report["mlx_lm_as_installed"]["prefill"] > 0


@pytest.mark.parametrize("arguments", [[], ["--help"], ["summarize", "--help"]])
def test_help_teaches_and_is_quick(arguments: list[str]) -> None:
    done = afm_process(*arguments)
    assert done.returncode == 0
    assert "afm" in done.stdout
    light = (
        "import sys; from afm_mlx.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "assert not {'mlx.core', 'mlx_lm', 'transformers', 'textual'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", light], check=True, capture_output=True)


ANSWERING = """
import signal, sys
from afm_mlx import engine
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it

def generate(*given, plain=engine.generate):
    for snapshot in plain(*given):
        print("answering", flush=True)
        yield snapshot

engine.generate = generate
from afm_mlx.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_ends_cleanly(tiny: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ANSWERING, "chat", "--model", tiny, "--max-tokens", "8000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"answering\n"  # a busy machine may take long
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.decode().strip()) == (130, "afm: stopped")


def test_closed_pipe_is_no_error(tiny: str) -> None:
    command = f"{sys.executable} -m afm_mlx models list --json | true"
    done = subprocess.run(command, shell=True, capture_output=True)
    assert b"Traceback" not in done.stderr


def test_main_returns_codes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["summarize", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("afm: cannot read")
