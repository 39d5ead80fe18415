"""What teacher and student are asked at both ends of a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.data.packing import Windows
from afm_mlx.data.sources import Source, read
from afm_mlx.data.tokens import cache_key, tokenize
from afm_mlx.distill.corpus import Corpus
from afm_mlx.distill.objective import Examination
from afm_mlx.distill.recipe import Recipe
from afm_mlx.distill.teachers import Committee
from afm_mlx.tokenizer import Message, Tokenizer

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step

SAMPLE_TOKENS = 40
"""Length of the samples that are shown side by side."""
QUESTION = "Write one sentence about the sea."
TEST_WINDOWS = 64
"""Windows of the test text that are measured on."""


def on_test(
    recipe: Recipe, tokenizer: Tokenizer, committee: Committee | None = None
) -> Examination:
    """An examination on the beginning of the recipe's test text."""
    data = recipe.data
    source = Source(data.test, text_field=data.text_field)
    key = cache_key(tokenizer, [source])
    store = tokenize(read(source), tokenizer, Path(recipe.out) / "tokens", key)
    windows = Windows.of(store, data.window)
    few = replace(windows, numbers=tuple(n[:TEST_WINDOWS] for n in windows.numbers))
    return Examination(few, committee)


def prompts(corpus: Corpus, tokenizer: Tokenizer) -> list[list[int]]:
    """The beginning of a held-out window, and a question in the chat template."""
    window = corpus.held_out.batch(np.concatenate(corpus.held_out.numbers)[:1])
    found = [window.tokens[0, : min(32, window.tokens.shape[1] // 2)].tolist()]
    if tokenizer.wrapper.has_chat_template:
        found.append(tokenizer.chat([Message("user", QUESTION)]))
    return found


def say(model: Any, tokenizer: Tokenizer, prompt: list[int]) -> str:
    """The likeliest continuation of a prompt."""
    ids: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=SAMPLE_TOKENS):
        if token in tokenizer.eos_token_ids:
            break
        ids.append(token)
    return tokenizer.decode(ids)
