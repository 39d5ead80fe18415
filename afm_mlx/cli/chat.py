"""``afm chat``: a conversation in the terminal."""

import asyncio
import sys

from afm_mlx.cli.commands import Chat
from afm_mlx.cli.output import console, errors, print_json, timing
from afm_mlx.cli.work import options as sampling
from afm_mlx.engine import Engine
from afm_mlx.errors import ExceededContextWindowSizeError, InputError
from afm_mlx.generation import GenerationOptions
from afm_mlx.quant.kv import KVOptions
from afm_mlx.session import LanguageModelSession

from rich.live import Live
from rich.text import Text


def run(command: Chat) -> int:
    options = sampling(command, command.max_tokens) or GenerationOptions(
        maximum_response_tokens=command.max_tokens
    )
    asked = False
    with Engine.open(command.model, command.revision, KVOptions.parse(command.kv)) as engine:
        _ = engine.checkpoint  # a model that cannot be loaded is reported before the prompt
        session = LanguageModelSession(engine, command.instructions)
        while (line := _read_line()) is not None:
            if line.strip() == "/new":
                session = LanguageModelSession(engine, command.instructions)
            elif line.strip():
                asked = True
                _answer(command, session, line, options)
    if not asked and not sys.stdin.isatty():
        raise InputError("standard input is empty: give a message, one a line")
    return 0


def _answer(
    command: Chat, session: LanguageModelSession, prompt: str, options: GenerationOptions
) -> None:
    try:
        answer = asyncio.run(_stream(session, prompt, options, live=not command.json))
    except ExceededContextWindowSizeError as error:
        if not sys.stdin.isatty():
            raise
        errors.print(Text(f"afm: {error} (/new)"))
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        console.print(Text("  stopped", style="yellow"))
    else:
        if command.json:
            print_json({"prompt": prompt, "response": answer})


async def _stream(
    session: LanguageModelSession, prompt: str, options: GenerationOptions, live: bool
) -> str:
    text = ""
    if not live or not console.is_terminal:
        text = await session.respond(prompt, options=options)
        if live:
            console.print(Text(text))
        return text
    with Live(console=console, refresh_per_second=12, vertical_overflow="visible") as view:
        async for text in session.stream_response(prompt, options=options):
            view.update(Text(text))
    console.print(Text(timing(session.metrics), style="dim"))
    return text


def _read_line() -> str | None:
    try:
        if sys.stdin.isatty():
            import readline  # noqa: F401 - line editing for input()

            return input("> ")
        line = sys.stdin.buffer.readline()
        return line.decode("utf-8").rstrip("\r\n") if line else None  # as input() does
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise InputError("standard input is not UTF-8 text: convert it first") from error
