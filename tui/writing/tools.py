"""The writing tools, in the order they are shown, and what each does with an answer."""

from dataclasses import dataclass
from typing import Any, Literal

from afm_mlx.features import (
    CHANGE,
    CONCISE,
    FRIENDLY,
    KEY_POINTS,
    LIST,
    PROFESSIONAL,
    PROOFREAD,
    REWRITE,
    SMART_REPLY,
    SUMMARY,
    TABLE,
    Feature,
)
from afm_mlx.features.run import WARMTH
from afm_mlx.generation import GenerationOptions, SamplingMode

Kind = Literal["proofread", "rewrite", "list", "summary", "reply"]


@dataclass(frozen=True)
class Tool:
    """A feature as a button.

    Attributes:
        kind: a ``rewrite`` keeps what is protected and works around blocks, a ``list`` has all
            facts in another form, a ``summary`` leaves things out.
    """

    feature: Feature[Any]
    kind: Kind
    about: str
    title: str = ""

    @property
    def name(self) -> str:
        return self.feature.name

    @property
    def label(self) -> str:
        return self.title or self.feature.title


CHANGING = Tool(CHANGE, "rewrite", "Change the text as you say", "Change")
TOOLS = (
    Tool(PROOFREAD, "proofread", "Correct spelling, grammar and punctuation, one by one"),
    Tool(REWRITE, "rewrite", "The same facts, better to read"),
    Tool(FRIENDLY, "rewrite", "The same facts in a warm tone"),
    Tool(PROFESSIONAL, "rewrite", "The same facts in a polite, factual tone"),
    Tool(CONCISE, "rewrite", "The same facts in fewer words"),
    Tool(SUMMARY, "summary", "What it says in up to three sentences"),
    Tool(KEY_POINTS, "summary", "What matters, point by point"),
    Tool(LIST, "list", "All of it as a list"),
    Tool(TABLE, "list", "All of it as a table"),
    Tool(SMART_REPLY, "reply", "Two short answers to a pasted conversation", "Reply"),
)
BY_NAME = {tool.name: tool for tool in (*TOOLS, CHANGING)}


def another(tool: Tool, text: str, attempt: int) -> GenerationOptions | None:
    """Options for the answer number ``attempt``, from 0: the first is as the feature asks.

    A token is a byte at least, so the limit is one that no answer misses an end for.
    """
    if not attempt:
        return None
    tokens = min(len(text.encode("utf-8", "replace")), tool.feature.part_tokens)
    return GenerationOptions(
        SamplingMode.random(seed=attempt),
        WARMTH,
        tool.feature.answer_tokens(tokens),
    )
