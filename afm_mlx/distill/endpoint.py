"""A teacher behind an OpenAI-compatible address: its answers are all that is seen of it.

Chat completions as OpenAI, vLLM, llama.cpp, Ollama, LM Studio and ``mlx_lm.server`` offer them.
Prompts leave this machine: they go to the address that was named, and nowhere else, so redirects
are not followed. The key is read from the environment for each request and is in no message.
"""

import ipaddress
import json
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from typing import Any
from urllib import request
from urllib.error import HTTPError
from urllib.parse import SplitResult, urlsplit, urlunsplit

from afm_mlx.distill.answers import Answer, Thoughts
from afm_mlx.errors import AFMError, GenerationError, InputError, ModelError, first_line
from afm_mlx.generation import GenerationOptions
from afm_mlx.tokenizer import Message

LONGEST_WAIT = 60.0
"""Seconds between two tries at most, whatever the server asks for."""
_AGAIN = frozenset({408, 409, 425, 429})
_THIS_PROMPT = frozenset({400, 413, 422})
_VERSION = re.compile(r"/v\d\w*(/|$)")


@dataclass(frozen=True)
class EndpointOptions:
    """How to ask a server."""

    api_key_env: str = ""
    """Environment variable that holds the server's key; no key is sent if left out."""
    thoughts: Thoughts = "strip"
    """Whether a chain of thought is kept in front of the answer."""
    timeout: float = 300.0
    """Seconds without a byte after which a request counts as failed."""
    retries: int = 5
    """Further tries if the server is busy, failing or out of reach."""
    first_wait: float = 1.0
    """Seconds before the first further try; each later wait is twice as long."""
    concurrency: int = 4
    """Requests at a time."""
    request_fields: str = ""
    """More fields of the request, a JSON object; null leaves one out. OpenAI's newest models need
    {"max_tokens": null, "max_completion_tokens": 2048, "temperature": null}."""

    def __post_init__(self) -> None:
        for name in ("timeout", "concurrency"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("retries", "first_wait"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} must not be below 0: {getattr(self, name)}")
        if self.thoughts not in ("strip", "keep"):
            raise InputError(f"thoughts are strip or keep, not {self.thoughts!r}")
        if re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env or "none", re.ASCII) is None:
            # somebody may have put the key itself there, so it is not shown
            raise InputError(
                "api_key_env is no name of an environment variable: export the key as one, e.g."
                " OPENAI_API_KEY, and give that name"
            )
        try:
            if not isinstance(json.loads(self.request_fields or "{}"), dict):
                raise ValueError("no object")
        except ValueError as error:
            raise InputError(
                f"request_fields is no JSON object ({first_line(error)}):"
                ' write it like {"top_k": 20}'
            ) from error


@dataclass(frozen=True)
class Endpoint:
    """A model behind ``url``, such as ``http://localhost:8080`` or ``https://host/api/v1``."""

    url: str
    model: str
    options: EndpointOptions = EndpointOptions()

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # a port that is no number
            valid = False
        if not valid or re.search(r"[^!-~]", self.url):
            raise InputError(
                "the address of a teacher must be like http://localhost:8080 or"
                " https://api.openai.com/v1: correct its url"
            )
        if parts.username is not None or parts.password is not None:
            raise InputError(
                f"the address of {parts.hostname} holds a password: put the key into an environment"
                " variable and name that as api_key_env"
            )
        if not self.model:
            raise InputError(f"name the model to ask at {self.url}")

    @property
    def name(self) -> str:
        return self.model

    @cached_property
    def _parts(self) -> SplitResult:
        return urlsplit(self.url)

    @cached_property
    def address(self) -> str:
        """Where requests go: the ``url`` with what is missing of ``/v1/chat/completions``."""
        path = self._parts.path.rstrip("/")
        if not path.endswith("/chat/completions"):
            path += ("" if _VERSION.search(path) else "/v1") + "/chat/completions"
        return urlunsplit(self._parts._replace(path=path, fragment=""))

    @property
    def _shown(self) -> str:
        return self.address.partition("?")[0]  # what follows may be a key

    def answers(
        self, messages: Sequence[Message], count: int, options: GenerationOptions
    ) -> list[Answer]:
        """``count`` answers, a request each; see :class:`~afm_mlx.distill.answers.Respondent`."""
        bodies = [self._body(messages, options, number) for number in range(count)]
        with ThreadPoolExecutor(min(self.options.concurrency, max(count, 1))) as pool:
            return list(pool.map(self._answer, bodies))

    def _body(self, messages: Sequence[Message], options: GenerationOptions, number: int) -> bytes:
        mode = options.sampling
        greedy = mode.kind == "greedy"
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "max_tokens": options.maximum_response_tokens,
            "temperature": 0.0 if greedy else options.temperature,
            "top_p": None if greedy else mode.probability_threshold,
            "top_k": None if greedy else mode.top,
            "seed": None if mode.seed is None else (mode.seed + number) % 2**31,
            "stream": False,
        }
        fields |= json.loads(self.options.request_fields or "{}")
        return json.dumps({k: v for k, v in fields.items() if v is not None}).encode()

    def _answer(self, body: bytes) -> Answer:
        data = self._sent(body)
        try:
            choice = json.loads(data)["choices"][0]
            message = choice["message"]
            text = message.get("content") or ""  # null where a model says nothing
            thoughts = message.get("reasoning_content") or message.get("reasoning") or ""
            if not isinstance(text, str) or not isinstance(thoughts, str):
                raise TypeError("content that is no text")
            complete = choice.get("finish_reason") in ("stop", None)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise ModelError(
                f"{self._shown} answered with something other than a chat completion: give the"
                " address of an OpenAI-compatible server"
            ) from None
        return Answer.of(_whole(text), complete, self.options.thoughts, _whole(thoughts))

    def _sent(self, body: bytes) -> bytes:
        """What the server says to ``body``, after as many tries as needed."""
        headers = {"Content-Type": "application/json", "User-Agent": "afm-mlx"}
        key = self._key()
        if key:
            headers["Authorization"] = f"Bearer {key}"
        asked = request.Request(self.address, body, headers, method="POST")
        trouble, pause = "", self.options.first_wait
        for left in range(self.options.retries, -1, -1):
            wanted = 0.0
            try:
                with self._opener.open(asked, timeout=self.options.timeout) as response:
                    data: bytes = response.read()
                    return data
            except HTTPError as error:
                with error:
                    if error.code not in _AGAIN and error.code < 500:
                        raise self._refusal(error, key) from None
                    trouble, wanted = f"HTTP {error.code}", _seconds(error.headers["Retry-After"])
            except (OSError, HTTPException) as error:
                reason = getattr(error, "reason", error)  # urllib wraps what happened
                trouble = first_line(reason if isinstance(reason, Exception) else error)
            if left:
                time.sleep(min(max(pause, wanted), LONGEST_WAIT))
                pause *= 2
        raise ModelError(
            f"{self._shown} did not answer in {self.options.retries + 1} tries ({trouble}): check"
            " that the server runs, and run the same command again later"
        )

    def _key(self) -> str:
        name = self.options.api_key_env
        if not name:
            return ""
        key = os.environ.get(name, "").strip()
        if not key or re.search(r"[^!-~]", key):  # http.client would show a key that it refuses
            raise InputError(f"the environment variable {name} holds no key: export it")
        return key

    def _refusal(self, error: HTTPError, key: str) -> AFMError:
        """The error for an HTTP status that further tries would not change."""
        if 300 <= error.code < 400:
            return ModelError(f"{self._shown} has moved: give its new url")
        if error.code in (401, 403):
            remedy = f"put a valid key into {self.options.api_key_env}"
            if not key:
                remedy = "export its key as an environment variable, and name that as api_key_env"
            return ModelError(f"{self._shown} refuses access (HTTP {error.code}): {remedy}")
        said = _message(error, key)
        if error.code in (404, 405):
            return ModelError(
                f"{self._shown} knows no model {self.model} (HTTP {error.code}{said}): check url"
                " and name"
            )
        text = (
            f"{self.model} refuses a prompt (HTTP {error.code}{said}): shorten or change it, or"
            " adapt the request with request_fields"
        )
        return GenerationError(text) if error.code in _THIS_PROMPT else ModelError(text)

    @cached_property
    def _opener(self) -> request.OpenerDirector:
        host = self._parts.hostname or ""
        try:
            loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = host == "localhost"
        # A proxy of the environment cannot reach this machine's own servers.
        proxies = request.ProxyHandler({}) if loopback else request.ProxyHandler()
        return request.build_opener(proxies, _NoRedirect())


class _NoRedirect(request.HTTPRedirectHandler):
    """urllib would send the key along to wherever it is told to go."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _seconds(header: str | None) -> float:
    """A ``Retry-After`` in seconds; 0 for none, or a date."""
    try:
        return max(float(header or 0), 0.0)
    except ValueError:
        return 0.0


def _message(error: HTTPError, key: str) -> str:
    """What a server says about an error, short and on one line, to follow its status."""
    try:
        text = error.read().decode("utf-8", "replace")
    except (OSError, HTTPException):  # it broke off
        return ""
    text = text.replace(key, "***") if key else text
    try:
        said = json.loads(text)
        for name in ("error", "detail", "message"):
            if isinstance(said, dict) and name in said:
                said = said[name]
        text = said if isinstance(said, str) else text
    except (ValueError, RecursionError):
        pass
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return f": {text[:200].rstrip('. ')}" if text else ""


def _whole(text: str) -> str:
    """``text`` as UTF-8 can hold it: JSON may have half a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")
