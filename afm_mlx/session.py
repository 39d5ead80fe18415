"""Conversations with a model, under the names of Apple's Foundation Models SDK for Python.

    model = Engine.open()
    session = LanguageModelSession(model, instructions="Answer in one sentence.")
    print(await session.respond("Why is the sea salty?"))

Differences from Apple's: the model comes first, since there are many; ``stream_response``
takes the same options; a running request can be cancelled by cancelling its task or by
closing the stream (``contextlib.aclosing`` does it at the end of a ``with``).
"""

from collections.abc import AsyncIterator

from afm_mlx.engine import Engine
from afm_mlx.errors import CancelledRequestError, ConcurrentRequestsError, InputError
from afm_mlx.generation import GenerationOptions, Metrics, Request, Snapshot
from afm_mlx.tokenizer import Message


class LanguageModelSession:
    """A conversation: instructions, then prompts and answers in turn.

    Args:
        adapter: name of a loaded adapter (:meth:`afm_mlx.engine.Engine.load_adapter`); the
            engine's default one if left out.

    Attributes:
        adapter: the same; what it is set to counts from the next request on.
        transcript: all finished turns; a cancelled or failed request leaves none.
        metrics: what the last request cost.
    """

    def __init__(
        self,
        model: Engine | None = None,
        instructions: str | None = None,
        adapter: str | None = None,
    ) -> None:
        self._engine = model if model is not None else Engine.open()
        self._owns_engine = model is None
        self.transcript: list[Message] = []
        if instructions:
            self.transcript.append(Message("system", instructions))
        self.adapter = adapter
        self.metrics = Metrics()
        self._responding = False

    @property
    def is_responding(self) -> bool:
        """Whether a request is running."""
        return self._responding

    async def respond(self, prompt: str, *, options: GenerationOptions | None = None) -> str:
        """The whole answer to ``prompt``."""
        answer = ""
        async for snapshot in self.stream_response(prompt, options=options):
            answer = snapshot
        return answer

    async def stream_response(
        self, prompt: str, *, options: GenerationOptions | None = None
    ) -> AsyncIterator[str]:
        """The answer as growing snapshots: each holds all text so far.

        Raises:
            InputError: the prompt is empty.
            ConcurrentRequestsError: another request of this session is running.
            ExceededContextWindowSizeError: the conversation outgrew the model's window.
            CancelledRequestError: the engine was closed meanwhile.
        """
        if not prompt.strip():
            raise InputError("the prompt is empty: write something to answer")
        if self._responding:
            raise ConcurrentRequestsError(
                "this session is still answering: wait for it, or open another session"
            )
        self._responding = True
        try:
            turns = [*self.transcript, Message("user", prompt)]
            tokenizer = (await self._engine.ready()).tokenizer
            tokens = tokenizer.chat(turns)
            options = options or GenerationOptions()
            run = self._engine.generate(
                Request(tokens, options, keep_answer=True, adapter=self.adapter)
            )
            snapshot = Snapshot("")
            async for snapshot in run:
                self.metrics = snapshot.metrics
                yield snapshot.text
            if snapshot.finish_reason == "cancelled":
                raise CancelledRequestError("the engine was closed: open another one")
            self.transcript = [*turns, Message("assistant", snapshot.text)]
        finally:
            self._responding = False

    def close(self) -> None:
        """End the engine, if the session opened it itself."""
        if self._owns_engine:
            self._engine.close()

    async def __aenter__(self) -> "LanguageModelSession":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
