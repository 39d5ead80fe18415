"""Ask teachers for answers; the ones here run on this machine, see ``endpoint`` for others.

A :class:`Respondent` answers a conversation several times over. :func:`sample` decodes many
prompts at once without padding: all rows stand at the same position, and a row whose prompt
goes on is given its next token in place of a drawn one. So rotary positions and causal masks
are those of a single prompt, for every model class, and a seed always draws the same text.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from afm_mlx.distill.teachers import Teacher
from afm_mlx.errors import ExceededContextWindowSizeError, InputError
from afm_mlx.generation import PREFILL_STEP, GenerationOptions
from afm_mlx.losses import log_softmax
from afm_mlx.tokenizer import Message

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import apply_top_k, apply_top_p

Thoughts = Literal["strip", "keep"]
Draw = Callable[[mx.array, mx.array], mx.array]
"""(logits ``[B, V]``, random key) to token ids ``[B]``."""

_THOUGHT = re.compile(r"<think>(.*?)(?:</think>|$)", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """What a teacher said.

    Attributes:
        text: the answer itself, without thoughts.
        complete: whether it ended by itself; false where a limit cut it short.
        thoughts: the chain of thought before it, if it is kept.
    """

    text: str
    complete: bool = True
    thoughts: str = ""

    @property
    def content(self) -> str:
        """Thoughts in ``<think>`` tags and the answer, as a student learns them."""
        if not self.thoughts:
            return self.text
        return f"<think>\n{self.thoughts}\n</think>\n\n{self.text}"

    @classmethod
    def of(cls, text: str, complete: bool, thoughts: Thoughts, apart: str = "") -> "Answer":
        """Tell answer and thoughts apart; ``apart`` are thoughts that came separately."""
        inside, text = split_thoughts(text)
        found = "\n".join(filter(None, (apart.strip(), inside)))
        return cls(text, complete, found if thoughts == "keep" else "")


def split_thoughts(text: str) -> tuple[str, str]:
    """Thoughts in ``<think>`` tags, and the rest of ``text``.

    The first tag may be missing, since some templates put it into the prompt; a thought that
    never ends takes all that follows.
    """
    first = text.find("</think>")
    if first >= 0 and "<think>" not in text[:first]:
        text = f"<think>{text}"
    thoughts = (t.strip() for t in _THOUGHT.findall(text))
    return "\n".join(filter(None, thoughts)), _THOUGHT.sub("", text).strip()


class Respondent(Protocol):
    """Somebody who answers; ``name`` tells members of a committee apart."""

    @property
    def name(self) -> str: ...

    def answers(
        self, messages: Sequence[Message], count: int, options: GenerationOptions
    ) -> list[Answer]:
        """``count`` answers to a conversation.

        Raises:
            GenerationError: this conversation cannot be answered, others may be.
            ModelError: nothing can be answered; the message says what to do.
        """
        ...


@dataclass(frozen=True, eq=False)
class LocalRespondent:
    """A loaded model; the same seed gives the same answers."""

    teacher: Teacher
    thoughts: Thoughts = "strip"

    @property
    def name(self) -> str:
        return self.teacher.name

    def answers(
        self, messages: Sequence[Message], count: int, options: GenerationOptions
    ) -> list[Answer]:
        """``count`` answers, decoded side by side.

        Raises:
            ExceededContextWindowSizeError: no room for the prompt and one token of answer.
            ModelError: the chat template refuses the conversation.
        """
        model, tokenizer = self.teacher.model, self.teacher.tokenizer
        prompt = tokenizer.chat(messages)
        most = options.maximum_response_tokens
        window = getattr(model.args, "max_position_embeddings", None)  # not all classes name it
        if window:
            if len(prompt) > window - 1:
                raise ExceededContextWindowSizeError(len(prompt), window - 1)
            most = min(most, window - len(prompt))
        seed = options.sampling.seed
        found = sample(
            model,
            [prompt] * count,
            [most] * count,
            tokenizer.eos_token_ids,
            drawing(options),
            mx.random.key(0 if seed is None else seed),
        )
        answers = []
        for tokens in found:
            ended = tokens[-1] in tokenizer.eos_token_ids
            text = tokenizer.decode(tokens[:-1] if ended else tokens)
            answers.append(Answer.of(text, ended, self.thoughts))
        return answers


def drawing(options: GenerationOptions) -> Draw:
    """How tokens are drawn; randomness comes from the key alone."""
    mode = options.sampling
    if mode.kind == "greedy" or options.temperature == 0:
        return lambda logits, key: mx.argmax(logits, axis=-1)

    def draw(logits: mx.array, key: mx.array) -> mx.array:
        logs = log_softmax(logits.astype(mx.float32))
        if mode.probability_threshold is not None and mode.probability_threshold < 1:
            logs = apply_top_p(logs, mode.probability_threshold)
        if mode.top is not None and mode.top < logs.shape[-1]:
            logs = apply_top_k(logs, mode.top)
        return mx.random.categorical(logs * (1 / options.temperature), key=key)

    return draw


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    most: Sequence[int],
    ends: frozenset[int],
    draw: Draw,
    key: mx.array,
) -> list[list[int]]:
    """The tokens that ``model`` puts after each prompt, with the end token where one came.

    Args:
        model: any model of mlx-lm's protocol.
        most: for each prompt the largest number of tokens, at least 1.
        ends: token ids that end an answer.
        key: MLX random key; the same key and weights draw the same tokens.
    """
    if not all(prompts) or len(most) != len(prompts) or min(most, default=1) < 1:
        raise InputError("each prompt needs at least one token, and room for one of answer")
    found: list[list[int]] = [[] for _ in prompts]
    rows: list[int] = []
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        # Rows in lockstep cost the gap to the next longer prompt, rows apart another answer.
        if rows and len(prompts[i]) - len(prompts[rows[-1]]) > max(most):
            key = _lockstep(model, prompts, most, ends, draw, key, rows, found)
            rows = []
        rows.append(i)
    if rows:
        _lockstep(model, prompts, most, ends, draw, key, rows, found)
    return found


def _lockstep(
    model: Any,
    prompts: Sequence[Sequence[int]],
    most: Sequence[int],
    ends: frozenset[int],
    draw: Draw,
    key: mx.array,
    rows: Sequence[int],
    found: list[list[int]],
) -> mx.array:
    """Decode ``rows`` together into ``found``; gives the key for what comes next."""
    key, own = mx.random.split(key)
    lengths = np.array([len(prompts[i]) for i in rows])
    first, last = int(lengths.min()) - 1, max(len(prompts[i]) + most[i] - 1 for i in rows)
    given = np.zeros((len(rows), last + 1), np.uint32)
    for row, i in enumerate(rows):
        given[row, : len(prompts[i])] = prompts[i]
    equal = (given[:, :first] == given[0, :first]).all(0)
    shared = int(np.argmin(equal)) if not equal.all() else first
    cache = make_prompt_cache(model)
    if shared:  # a common beginning is computed once
        _prefill(model, given[:1, :shared], cache)
        for c in cache:
            c.state = tree_map(lambda x: _repeated(x, len(rows)), c.state)
    _prefill(model, given[:, shared:first], cache)

    prompt, goes_on = mx.array(given), mx.array(lengths)
    keys = mx.random.split(own, last - first)

    def advance(position: int, token: mx.array) -> mx.array:
        """The tokens after those at ``position``, ``[B]``."""
        logits = model(token[:, None], cache=cache)[:, -1]
        drawn = draw(logits, keys[position - first]).astype(mx.uint32)
        token = mx.where(goes_on > position + 1, prompt[:, position + 1], drawn)
        mx.async_eval(token)
        return token

    running = set(range(len(rows)))
    token = advance(first, prompt[:, first])
    for position in range(first + 1, last + 1):
        current = token
        if position < last:  # the next tokens are computed while these are read
            token = advance(position, current)
        values = np.array(current).tolist()
        for row in [r for r in running if position >= lengths[r]]:
            tokens = found[rows[row]]
            tokens.append(values[row])
            if values[row] in ends or len(tokens) == most[rows[row]]:
                running.remove(row)
        if not running:
            break
    return key


def _prefill(model: Any, tokens: np.ndarray[Any, Any], cache: list[Any]) -> None:
    """Put ``tokens`` ``[B, L]`` into the cache; no logits are computed."""
    for start in range(0, tokens.shape[1], PREFILL_STEP):
        model(mx.array(tokens[:, start : start + PREFILL_STEP]), cache=cache)
        mx.eval([c.state for c in cache])


def _repeated(x: Any, count: int) -> Any:
    return mx.repeat(x, count, axis=0) if isinstance(x, mx.array) else x
