"""``python -m afm_mlx.distill --json`` as a process of its own, read event by event.

The command has no pause of its own: an interrupt ends it, what it saved stays whole, and the same
command goes on after the last save. Told to take no more steps than are saved, it writes the
student of the best save.
"""

import asyncio
import json
import shlex
import signal
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afm_mlx.distill.recipe import Recipe
from afm_mlx.errors import InputError
from afm_mlx.training import TrainingOptions
from afm_mlx.tui.settings import expanded

COMMAND = (sys.executable, "-m", "afm_mlx.distill")
PATIENCE = 20.0
"""Seconds that an interrupted run gets to end by itself."""
LONGEST = 2**24
"""Bytes of the longest line: the last one holds the whole report."""
KEPT = 2000
"""Bytes kept of what a run says of errors."""


@dataclass(frozen=True)
class Order:
    """What a person asks for, as text; what is empty is left to the recipe and its defaults.

    Attributes:
        recipe: a TOML file.
        more: further settings, such as ``ffn=0.25 --learned-masks 30``.
    """

    teacher: str = ""
    data: str = ""
    steps: str = ""
    recipe: str = ""
    out: str = ""
    more: str = ""

    @property
    def folder(self) -> Path:
        """Where the run goes."""
        return expanded(self.out or Recipe().out)

    def arguments(self, steps: int | None = None) -> list[str]:
        """The arguments of the command.

        Args:
            steps: in the place of those asked for.

        Raises:
            InputError: a quotation mark is open, or steps are no number.
        """
        wanted = self.steps if steps is None else str(steps)
        if wanted and not wanted.isdecimal():
            raise InputError(f"steps must be a whole number, not {wanted!r}: correct it")
        found = ["--config", *_words(self.recipe)] if self.recipe else []
        found += _words(self.more)
        for name, text in (("teacher", self.teacher), ("data", self.data)):
            found += [f"--{name}", *_words(text)] if text else []
        found += ["--steps", wanted] if wanted else []
        return [*found, "--out", str(self.folder)]


FIELDS = ("teacher", "data", "steps", "recipe", "out", "more")


def usual() -> Mapping[str, str]:
    """What is done where the fields are empty."""
    return {"steps": str(TrainingOptions().steps), "out": str(Recipe().out)}


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"a quotation mark in {text} is open: close it") from error


class Process:
    """A run of the command; :meth:`events` starts it, :meth:`interrupt` ends it early.

    Attributes:
        interrupted: whether it was told to end.
    """

    def __init__(self, arguments: Sequence[str], command: Sequence[str] = COMMAND) -> None:
        self._command = [*command, *arguments, "--json"]
        self._process: asyncio.subprocess.Process | None = None
        self._last = b""
        self.interrupted = False

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """What the run says, line by line; lines that are no JSON objects are left out.

        Raises:
            InputError: it ended by itself, with an error.
        """
        pipe = asyncio.subprocess.PIPE
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            limit=LONGEST,
        )
        assert process.stdout is not None and process.stderr is not None
        listening = asyncio.ensure_future(self._listen(process.stderr))
        if self.interrupted:  # before it was there
            self._signal()
        try:
            async for line in process.stdout:
                event = _event(line)
                if event:
                    yield event
            await process.wait()
            await listening
        finally:
            if process.returncode is None:
                self.interrupt()
                await asyncio.shield(process.wait())
            await listening
        if process.returncode and not self.interrupted:
            raise InputError(_last_words(self._last, process.returncode))

    def interrupt(self) -> None:
        """Have it end soon; what it saved stays."""
        self.interrupted = True
        if self._process is not None:
            self._signal()

    def _signal(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            process.terminate()  # it inherited that, and saves are whole whatever ends it
            return
        process.send_signal(signal.SIGINT)
        asyncio.get_running_loop().call_later(PATIENCE, self._terminate)

    def _terminate(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        while piece := await stream.read(KEPT):
            self._last = (self._last + piece)[-KEPT:]


def _event(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _last_words(said: bytes, code: int) -> str:
    """The line in which the run says what is wrong and what to do."""
    if code in (130, -signal.SIGINT, -signal.SIGTERM):
        return "the run was ended by someone else: start it again, it goes on after its last save"
    lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "it said nothing"
    if last.startswith("afm: "):
        return last.removeprefix("afm: ")
    return f"the run ended with code {code} ({last}): start it again, it goes on"
