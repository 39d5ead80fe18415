"""A server on this machine plays the teacher: its answers, its refusals and its failures."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from afm_mlx.distill.answers import Answer
from afm_mlx.distill.endpoint import LONGEST_WAIT, Endpoint, EndpointOptions
from afm_mlx.errors import AFMError, GenerationError, InputError, ModelError
from afm_mlx.generation import GenerationOptions, SamplingMode
from afm_mlx.tokenizer import Message

import pytest

QUESTION = [Message("system", "Be brief."), Message("user", "Grüße?")]
OPTIONS = GenerationOptions(SamplingMode.random(probability_threshold=0.9, seed=7), 0.8, 50)
QUICK = EndpointOptions(first_wait=0.001, timeout=60)
KEY = "sk-secret-0123456789"
Reply = tuple[int, bytes, dict[str, str]]


def said(content: Any = "Hello.", reason: str | None = "stop", **more: Any) -> Reply:
    choice = {"message": {"role": "assistant", "content": content, **more}, "finish_reason": reason}
    return 200, json.dumps({"choices": [choice]}).encode(), {}


class Server(ThreadingHTTPServer):
    """Answers with ``replies`` in turn, the last one for ever, and notes what it is asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Reply | Callable[[], Reply]] = [said()]
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, dict(self.headers), body))
            replies = self.server.replies
            reply = replies.pop(0) if len(replies) > 1 else replies[0]
        status, data, headers = reply() if callable(reply) else reply
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: Server, count: int = 1, options: EndpointOptions = QUICK) -> list[Answer]:
    return Endpoint(server.url, "big", options).answers(QUESTION, count, OPTIONS)


def failure(server: Server, options: EndpointOptions = QUICK) -> AFMError:
    """The error of a request: one line, without the key."""
    with pytest.raises(AFMError) as caught:
        ask(server, options=options)
    assert "\n" not in str(caught.value) and KEY not in repr(caught.value)
    assert caught.value.__cause__ is None or KEY not in repr(caught.value.__cause__)
    return caught.value


def test_what_is_asked(server: Server) -> None:
    assert ask(server, count=3) == [Answer("Hello.")] * 3
    assert [path for path, _, _ in server.asked] == ["/v1/chat/completions"] * 3
    assert sorted(body.pop("seed") for _, _, body in server.asked) == [7, 8, 9]
    for _, headers, body in server.asked:
        assert "Authorization" not in headers
        assert body == {
            "model": "big",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Grüße?"},
            ],
            "max_tokens": 50,
            "temperature": 0.8,
            "top_p": 0.9,
            "stream": False,
        }


def test_greedy(server: Server) -> None:
    Endpoint(server.url, "big", QUICK).answers(QUESTION, 1, GenerationOptions())
    body = server.asked[0][2]
    assert body["temperature"] == 0 and not body.keys() & {"seed", "top_p", "top_k"}


def test_more_and_fewer_fields(server: Server) -> None:
    fields = '{"max_tokens": null, "max_completion_tokens": 9, "temperature": null}'
    ask(server, options=replace(QUICK, request_fields=fields))
    body = server.asked[0][2]
    assert body["max_completion_tokens"] == 9 and not body.keys() & {"max_tokens", "temperature"}


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:8080", "http://localhost:8080/v1/chat/completions"),
        ("http://localhost:8080/v1/", "http://localhost:8080/v1/chat/completions"),
        ("https://h/api/v1", "https://h/api/v1/chat/completions"),
        ("https://h/v1beta/openai/", "https://h/v1beta/openai/chat/completions"),
        ("https://h/vllm", "https://h/vllm/v1/chat/completions"),
        ("https://h/x/chat/completions?a=1#b", "https://h/x/chat/completions?a=1"),
    ],
)
def test_addresses(url: str, address: str) -> None:
    assert Endpoint(url, "big").address == address


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8080", "file:///etc/passwd", "ftp://h", "http://", "http://h:x", "http://h/a b",
     "http://h\r\nX: y", f"http://me:{KEY}@h/v1"],
)  # fmt: skip
def test_bad_addresses(url: str) -> None:
    """urllib itself would read files."""
    with pytest.raises(InputError) as caught:
        Endpoint(url, "big")
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"retries": -1}, {"concurrency": 0}, {"first_wait": float("nan")},
     {"thoughts": "no"}, {"request_fields": "[1]"}, {"request_fields": "{"}, {"api_key_env": KEY}],
)  # fmt: skip
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        EndpointOptions(**options)
    assert KEY not in str(caught.value)


THOUGHT = "<think>\nHm.\n</think>\n\nHello."


@pytest.mark.parametrize(
    ("reply", "stripped", "kept"),
    [
        (said("Hello."), Answer("Hello."), Answer("Hello.")),
        (said(None), Answer(""), Answer("")),
        (said("Hel", "length"), Answer("Hel", False), Answer("Hel", False)),
        (said("Hello.", None), Answer("Hello."), Answer("Hello.")),
        (said("Hello.", "content_filter"), Answer("Hello.", False), Answer("Hello.", False)),
        (said(THOUGHT), Answer("Hello."), Answer("Hello.", thoughts="Hm.")),
        (
            said("Hello.", reasoning_content="Hm."),
            Answer("Hello."),
            Answer("Hello.", thoughts="Hm."),
        ),
        (said("Hello.", reasoning="Hm."), Answer("Hello."), Answer("Hello.", thoughts="Hm.")),
        (said("\ud83d!"), Answer("?!"), Answer("?!")),  # half a pair cannot be written to a file
    ],
)
def test_answers(server: Server, reply: Reply, stripped: Answer, kept: Answer) -> None:
    server.replies = [reply]
    assert ask(server) == [stripped]
    assert ask(server, options=replace(QUICK, thoughts="keep")) == [kept]


def cut_off() -> Reply:
    """Part of a body: ``HTTPResponse.read`` with a limit took it for the whole."""
    return 200, b'{"choices"', {"Content-Length": "500", "Connection": "close"}


@pytest.mark.parametrize(
    "trouble", [(429, b"", {}), (500, b"oops", {}), (503, b"", {"Retry-After": "soon"}), cut_off]
)
def test_another_try(server: Server, trouble: Any) -> None:
    server.replies = [trouble, trouble, said()]
    assert ask(server) == [Answer("Hello.")]
    assert len(server.asked) == 3


def test_waits_grow_and_heed_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    late: Reply = (429, b"", {"Retry-After": "3"})
    busy: Reply = (503, b"", {})
    server.replies = [busy, late, busy, (429, b"", {"Retry-After": "1e9"}), said()]
    ask(server, options=EndpointOptions())
    assert waits == [1, 3, 4, LONGEST_WAIT]


def test_too_many_tries(server: Server) -> None:
    server.replies = [(429, b"", {})]
    error = failure(server, replace(QUICK, retries=2))
    assert isinstance(error, ModelError) and "3 tries (HTTP 429)" in str(error)
    assert len(server.asked) == 3


def test_timeout(server: Server) -> None:
    release = threading.Event()

    def hang() -> Reply:
        release.wait(60)
        return said()

    server.replies = [hang]
    started = time.monotonic()
    error = failure(server, replace(QUICK, timeout=0.05, retries=1))
    release.set()
    assert isinstance(error, ModelError) and "2 tries (timed out)" in str(error)
    assert time.monotonic() - started < 60  # it did not wait for the answer


def test_nobody_there(server: Server) -> None:
    gone = Endpoint("http://127.0.0.1:1", "big", replace(QUICK, retries=0))
    with pytest.raises(ModelError, match=r"1 tries \(connection refused\)"):
        gone.answers(QUESTION, 1, OPTIONS)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"{oops", b"[]", b"null", b"{}", b'{"choices": []}', b'{"choices": [{}]}',
     b'{"choices": [{"message": {"content": 7}}]}', b'{"choices": [{"message": null}]}',
     b"\xff\xfe\xfd", b"[" * 100_000],
)  # fmt: skip
def test_no_chat_completion(server: Server, body: bytes) -> None:
    server.replies = [(200, body, {})]
    error = failure(server)
    assert isinstance(error, ModelError) and "other than a chat completion" in str(error)
    assert len(server.asked) == 1


def test_the_key_is_sent_and_never_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", f" {KEY}\n")  # files of keys end with a line end
    options = replace(QUICK, api_key_env="TEACHER_KEY")
    ask(server, options=options)
    assert server.asked[0][1]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(Endpoint(server.url, "big", options))

    told = json.dumps({"error": {"message": f"Incorrect key {KEY}\nor {'x' * 130} {KEY}"}}).encode()
    for status in (400, 401, 402, 403, 404):
        server.replies = [(status, told, {})]
        error = failure(server, options)
        assert not re.search("sk-se", str(error))  # nor a part, where the text is cut
        assert ("TEACHER_KEY" in str(error)) == (status in (401, 403))


def test_a_key_is_wanted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.replies = [(401, b"", {})]
    assert "api_key_env" in str(failure(server))
    for value in ("", " ", f"{KEY}\nX: y", f"{KEY}é"):
        monkeypatch.setenv("TEACHER_KEY", value)
        error = failure(server, replace(QUICK, api_key_env="TEACHER_KEY"))
        assert "TEACHER_KEY holds no key" in str(error)
    assert len(server.asked) == 1


def test_a_refusal_breaks_off(server: Server) -> None:
    server.replies = [(400, b'{"err', {"Content-Length": "500", "Connection": "close"})]
    assert "refuses a prompt (HTTP 400)" in str(failure(server))


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_prompt_is_refused(server: Server, status: int) -> None:
    for body in (b'{"error": {"message": "Too\\nlong."}}', b'{"detail": "Too long"}', b"Too long."):
        server.replies = [(status, body, {})]
        error = failure(server)
        assert isinstance(error, GenerationError)
        assert f"HTTP {status}: Too long)" in str(error)


def test_unknown_model(server: Server) -> None:
    server.replies = [(404, b'{"error": "model not found"}', {})]
    error = failure(server)
    assert isinstance(error, ModelError) and "no model big (HTTP 404: model not" in str(error)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects(server: Server, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """urllib sends the headers, and so the key, to wherever it is told to go."""
    monkeypatch.setenv("TEACHER_KEY", KEY)
    server.replies = [(status, b"", {"Location": f"{server.url}/elsewhere"}), said()]
    assert "has moved" in str(failure(server, replace(QUICK, api_key_env="TEACHER_KEY")))
    assert len(server.asked) == 1


def test_this_machine_needs_no_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert ask(server) == [Answer("Hello.")]
    local = server.url.replace("127.0.0.1", "localhost")
    assert Endpoint(local, "big", QUICK).answers(QUESTION, 1, OPTIONS) == [Answer("Hello.")]
    away = Endpoint("http://teacher.invalid", "big", replace(QUICK, retries=0))
    with pytest.raises(ModelError, match="refused"):  # by the proxy, which others do need
        away.answers(QUESTION, 1, OPTIONS)


def test_at_a_time(server: Server) -> None:
    """Six requests, three at a time."""
    running, most = 0, 0
    everyone = threading.Barrier(3)

    def slow() -> Reply:
        nonlocal running, most
        with server.lock:
            running += 1
            most = max(most, running)
        everyone.wait(600)  # breaks if fewer come at a time
        with server.lock:
            running -= 1
        return said()

    server.replies = [slow]
    assert len(ask(server, count=6, options=replace(QUICK, concurrency=3))) == 6
    assert most == 3
