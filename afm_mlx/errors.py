"""Errors that a person can act on: each says in one line what is wrong and what to do.

The generation errors carry the names of Apple's Foundation Models SDK for Python, so that
code written for it reads the same here.
"""


def first_line(error: BaseException) -> str:
    """What ``error`` says, as part of a one-line message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


class AFMError(Exception):
    """Base of every error this package raises on purpose; ``str(error)`` is one line."""


class InputError(AFMError):
    """The text, file or option that was given cannot be used."""


class ModelError(AFMError):
    """A model, tokenizer or checkpoint cannot be found, read or written."""


class GenerationError(AFMError):
    """Base of the errors a running request can end with."""


class ExceededContextWindowSizeError(GenerationError):
    """The prompt does not fit the model's context window.

    Attributes:
        tokens: length of the prompt in tokens.
        limit: the largest prompt the window takes, in tokens.
    """

    def __init__(self, tokens: int, limit: int) -> None:
        self.tokens, self.limit = tokens, limit
        super().__init__(
            f"the prompt is {tokens} tokens, {tokens - limit} too many for this model's window:"
            f" shorten it to {limit} tokens or start a new session"
        )

    @property
    def excess(self) -> int:
        """How many tokens are too many."""
        return self.tokens - self.limit


class ConcurrentRequestsError(GenerationError):
    """The session is still answering an earlier request."""


class CancelledRequestError(GenerationError):
    """The engine was closed while the request was running."""


class DecodingFailureError(GenerationError):
    """The model's answer cannot be read as what was asked for."""
