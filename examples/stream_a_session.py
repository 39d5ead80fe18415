"""Talk to a model and show its answer as it is written.

uv run python examples/stream_a_session.py "Why is the sea salty?"
"""

import asyncio
import sys

from afm_mlx import Engine, GenerationOptions, LanguageModelSession


async def main() -> None:
    prompt = " ".join(sys.argv[1:]) or "Why is the sea salty?"
    with Engine.open() as engine:
        session = LanguageModelSession(engine, instructions="Answer in one short sentence.")
        shown = ""
        options = GenerationOptions(maximum_response_tokens=60)
        async for text in session.stream_response(prompt, options=options):
            print(text[len(shown) :], end="", flush=True)
            shown = text
        speed = session.metrics.tokens_per_second
        print(f"\n{session.metrics.generated_tokens} tokens, {speed:.1f} tok/s")


if __name__ == "__main__":
    asyncio.run(main())
