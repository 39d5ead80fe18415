"""Text to token ids and back, with user text always kept as data.

A chat template mixes the model's own markers (``<|im_start|>``) with what people wrote. Here
the template is rendered around placeholders, its markers become special tokens, and the
people's text is encoded by a copy of the tokenizer that knows no special tokens: a message
that contains ``<|im_end|>`` is spelled out letter by letter and can end nothing.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from afm_mlx.errors import ModelError, first_line

import tokenizers
from jinja2 import TemplateError
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, StreamingDetokenizer, TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_wrapper
from transformers import PretrainedConfig, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


class Tokenizer:
    """Encodes plain text and conversations; ``wrapper`` is mlx-lm's view of the same."""

    def __init__(self, wrapper: TokenizerWrapper) -> None:
        self.wrapper = wrapper
        self.eos_token_ids = frozenset(wrapper.eos_token_ids)

    @classmethod
    def load(
        cls, folder: Path, eos_token_id: Any = None, model_type: str | None = None
    ) -> "Tokenizer":
        """Read the tokenizer files of a Hugging Face model folder.

        ``eos_token_id`` (one or a list) names ends of text beside the tokenizer's own.
        """
        ends = [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id
        # transformers warns of model types that it does not know, if it finds them itself.
        extra = {"config": PretrainedConfig()} if model_type == "afm" else None
        try:
            return cls(load_wrapper(folder, extra, eos_token_ids=ends))
        except Exception as error:  # whatever a damaged folder makes transformers raise
            raise ModelError(
                f"{folder} has no readable tokenizer ({first_line(error)}):"
                " download the model again"
            ) from error

    @classmethod
    def from_backend(
        cls, backend: tokenizers.Tokenizer, chat_template: str | None, **special: str | None
    ) -> "Tokenizer":
        """Wrap a ``tokenizers.Tokenizer``; ``special`` are ``bos_token``, ``eos_token``..."""
        hf = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            clean_up_tokenization_spaces=False,
            **{name: token for name, token in special.items() if token is not None},
        )
        hf.chat_template = chat_template
        return cls(TokenizerWrapper(hf, BPEStreamingDetokenizer))

    @property
    def backend(self) -> tokenizers.Tokenizer:
        return self.wrapper._tokenizer.backend_tokenizer

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        state = json.loads(self.backend.to_str())
        state["added_tokens"], state["post_processor"] = [], None
        return tokenizers.Tokenizer.from_str(json.dumps(state))

    @cached_property
    def _markers(self) -> re.Pattern[str]:
        added = [t.content for t in self.backend.get_added_tokens_decoder().values()]
        longest_first = sorted(filter(None, added), key=len, reverse=True)
        if not longest_first:
            return re.compile("((?!))")  # splits nothing
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, with special tokens in it spelled out as ordinary text."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens included."""
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def chat(self, messages: Sequence[Message], generate: bool = True) -> list[int]:
        """Token ids of a conversation in the model's chat template.

        With ``generate`` the opening of the assistant's next turn is added.

        Raises:
            ModelError: the model has no chat template.
        """
        if not self.wrapper.has_chat_template:
            raise ModelError("this model has no chat template: choose an instruct model")
        # \x1c is white space no template writes: if it is gone, the template trims its input.
        turns = [
            {"role": m.role, "content": f"\x1c\ue000{i}\ue001\x1c"} for i, m in enumerate(messages)
        ]
        try:
            rendered: str = self.wrapper.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=generate
            )
        except TemplateError as error:
            raise ModelError(
                f"the model's chat template refuses this conversation ({first_line(error)}):"
                " leave out the instructions, or choose another model"
            ) from error

        def fill(match: re.Match[str]) -> str:
            content = messages[int(match[2])].content
            return content if match[1] and match[3] else content.strip()

        ids: list[int] = []
        for i, piece in enumerate(self._markers.split(rendered)):
            if i % 2:
                ids += self.backend.encode(piece, add_special_tokens=False).ids
            else:
                ids += self.encode(re.sub("(\x1c?)\ue000(\\d+)\ue001(\x1c?)", fill, piece))
        return ids

    def detokenizer(self) -> StreamingDetokenizer:
        """A fresh streaming detokenizer; it never shows half a character."""
        return self.wrapper.detokenizer

    def save(self, folder: Path) -> None:
        self.wrapper._tokenizer.save_pretrained(folder)

    @property
    def special_ids(self) -> dict[str, Any]:
        """``bos_token_id`` and ``eos_token_id`` for a ``config.json``."""
        ends = sorted(self.eos_token_ids)
        bos = self.wrapper._tokenizer.bos_token_id
        return {"bos_token_id": bos, "eos_token_id": ends[0] if len(ends) == 1 else ends}
