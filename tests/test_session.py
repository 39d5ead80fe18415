"""Sessions under Apple's names: turns, snapshots, errors, cancelling."""

import asyncio
from collections.abc import AsyncGenerator

from afm_mlx import GenerationOptions, LanguageModelSession, SamplingMode
from afm_mlx.engine import Engine
from afm_mlx.errors import (
    CancelledRequestError,
    ConcurrentRequestsError,
    ExceededContextWindowSizeError,
    InputError,
)
from afm_mlx.tokenizer import Message
from tests.conftest import tiny_checkpoint

import pytest

SHORT = GenerationOptions(maximum_response_tokens=6)


def test_respond_and_transcript(engine: Engine) -> None:
    async def work() -> None:
        session = LanguageModelSession(engine, instructions="Be brief.")
        answer = await session.respond("Hello", options=SHORT)
        assert session.transcript == [
            Message("system", "Be brief."),
            Message("user", "Hello"),
            Message("assistant", answer),
        ]
        assert session.metrics.generated_tokens == 6
        assert not session.is_responding

    asyncio.run(work())


def test_snapshots_are_cumulative_and_end_as_the_answer(engine: Engine) -> None:
    async def work() -> None:
        session = LanguageModelSession(engine)
        texts = [t async for t in session.stream_response("Hello", options=SHORT)]
        assert texts[-1] == session.transcript[-1].content
        assert all(b.startswith(a) for a, b in zip(texts, texts[1:], strict=False))

    asyncio.run(work())


def test_second_turn_reuses_the_first(engine: Engine) -> None:
    async def work() -> None:
        session = LanguageModelSession(engine)
        await session.respond("Hello, who are you?", options=SHORT)
        first = session.metrics
        await session.respond("And now?", options=SHORT)
        assert first.cached_tokens == 0
        assert session.metrics.cached_tokens >= first.prompt_tokens

        fresh = LanguageModelSession(engine)
        fresh.transcript = session.transcript[:2]
        engine.forget().result()
        again = await fresh.respond("And now?", options=SHORT)
        assert again == session.transcript[-1].content

    asyncio.run(work())


def test_sampling_options(engine: Engine) -> None:
    async def answer(seed: int) -> str:
        options = GenerationOptions(
            sampling=SamplingMode.random(top=50, seed=seed), maximum_response_tokens=12
        )
        return await LanguageModelSession(engine).respond("Hello", options=options)

    # MLX's random state belongs to a thread: the seed must reach the engine's.
    assert asyncio.run(answer(3)) == asyncio.run(answer(3)) != asyncio.run(answer(4))


def test_one_request_at_a_time(engine: Engine) -> None:
    async def work() -> None:
        session = LanguageModelSession(engine)
        stream = session.stream_response("Hello", options=SHORT)
        await anext(stream)
        assert session.is_responding
        with pytest.raises(ConcurrentRequestsError, match="wait for it"):
            await session.respond("Again")
        assert isinstance(stream, AsyncGenerator)  # aclose is no part of AsyncIterator
        await stream.aclose()
        assert not session.is_responding
        await session.respond("Again", options=SHORT)

    asyncio.run(work())


def test_cancelled_request_leaves_no_trace(engine: Engine) -> None:
    async def work() -> None:
        session = LanguageModelSession(engine)
        long = GenerationOptions(maximum_response_tokens=900)
        task = asyncio.create_task(session.respond("Hello", options=long))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert session.transcript == []
        assert await session.respond("Hello", options=SHORT)

    asyncio.run(work())


def test_closing_the_engine_leaves_no_half_turn() -> None:
    async def work() -> None:
        engine = Engine(tiny_checkpoint)
        session = LanguageModelSession(engine)
        long = GenerationOptions(maximum_response_tokens=900)
        stream = session.stream_response("Hello", options=long)
        await anext(stream)
        await asyncio.to_thread(engine.close)
        with pytest.raises(CancelledRequestError):
            async for _ in stream:
                pass
        assert session.transcript == []

    asyncio.run(work())


def test_context_window_error_counts(engine: Engine) -> None:
    async def work() -> None:
        session = LanguageModelSession(engine)
        with pytest.raises(ExceededContextWindowSizeError) as error:
            await session.respond("x" * 2000)
        assert error.value.excess == error.value.tokens - 1023
        assert str(error.value.excess) in str(error.value)
        assert session.transcript == []

    asyncio.run(work())


def test_empty_prompt(engine: Engine) -> None:
    with pytest.raises(InputError, match="empty"):
        asyncio.run(LanguageModelSession(engine).respond(" \n"))
