"""Tokenised once, kept whole on disk; only answers are learnt from conversations."""

from pathlib import Path
from typing import Any

from afm_mlx.data.sources import Sample, Source, read
from afm_mlx.data.tokens import TokenStore, cache_key, tokenize
from afm_mlx.errors import InputError, ModelError
from afm_mlx.tokenizer import Message, Tokenizer
from tests.conftest import TEMPLATE, tiny_tokenizer

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

IM_END = 2
CHAT = (
    Message("system", "S"),
    Message("user", "one"),
    Message("assistant", "<|im_end|> first"),
    Message("user", "two"),
    Message("assistant", "second"),
)
SAMPLES = [Sample("Grüße, <|im_end|>", source="a:1"), Sample(messages=CHAT, source="a:2")]


def learnt(store: TokenStore, i: int, tokenizer: Tokenizer) -> str:
    tokens, learn = store.sample(i)
    return tokenizer.decode(tokens[learn].tolist())


def test_texts_and_conversations(tmp_path: Path, tokenizer: Tokenizer) -> None:
    seen = []
    store = tokenize(SAMPLES, tokenizer, tmp_path, "key", lambda *a: seen.append(a))
    assert len(store) == 2 and store.splittable.tolist() == [True, False]
    assert seen[-1] == (2, store.num_tokens) and store.lengths.sum() == store.num_tokens
    assert (store.tokens.dtype, store.offsets.dtype) == (np.uint32, np.int64)

    tokens, learn = store.sample(0)
    assert tokens.tolist() == [*tokenizer.encode("Grüße, <|im_end|>"), IM_END]
    assert learn.all()
    tokens, _ = store.sample(1)
    assert tokens.tolist() == tokenizer.chat(CHAT, generate=False)
    # the answers and the markers that close them, but not the line ends after those
    assert learnt(store, 1, tokenizer) == "<|im_end|> first<|im_end|>second<|im_end|>"


def test_tokens_after_the_last_answer_are_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    messages = (*CHAT, Message("user", "three"))
    store = tokenize([Sample(messages=messages)], tokenizer, tmp_path, "key")
    assert store.sample(0)[0].tolist() == tokenizer.chat(CHAT, generate=False)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # Qwen 3's: earlier answers lose their thoughts, here all but the first letter.
        (
            TEMPLATE.replace(
                "{{ m['content'] }}",
                "{{ m['content'] if loop.last or m['role'] == 'user' else 'x' }}",
            ),
            "second<|im_end|>",
        ),
        # DeepSeek R1's: the opening of an answer has more than the answer then gets.
        (
            TEMPLATE.replace("assistant\n{%", "assistant\n[think]{%"),
            "<|im_end|> first<|im_end|>second<|im_end|>",
        ),
        # No marker closes a turn: the answer ends where the template's text does.
        (
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}",
            "<|im_end|> first\nsecond\n",
        ),
    ],
)
def test_other_templates(tmp_path: Path, template: str, expected: str) -> None:
    tokenizer = tiny_tokenizer(template)
    store = tokenize([Sample(messages=CHAT)], tokenizer, tmp_path, "key")
    assert learnt(store, 0, tokenizer) == expected


def test_template_whose_prompt_differs_before_the_answer(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("{{ messages | length }}" + TEMPLATE)
    with pytest.raises(ModelError, match="^b:7: the chat template changes what comes before"):
        tokenize([Sample(messages=CHAT, source="b:7")], tokenizer, tmp_path, "key")
    assert list(tmp_path.iterdir()) == []  # nothing half-written stays


def test_no_template_names_the_sample(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="^a:2: this model has no chat template"):
        tokenize(SAMPLES, tiny_tokenizer(None), tmp_path, "key")


def test_beginning_of_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    # Llama 3's tokenizer puts a token before each text; models without it are lost at first.
    tokenizer.backend.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    store = tokenize([Sample("a")], tokenizer, tmp_path, "key")
    assert store.sample(0)[0].tolist() == [1, *tokenizer.encode("a"), IM_END]


class Refuses:
    """Samples that must not be asked for."""

    def __iter__(self) -> Any:
        raise AssertionError("tokenised again")


def test_a_second_call_maps_the_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    first = tokenize(SAMPLES, tokenizer, tmp_path, "key")
    second = tokenize(Refuses(), tokenizer, tmp_path, "key")
    assert isinstance(second.tokens.base, np.memmap)
    for i in range(2):
        for a, b in zip(first.sample(i), second.sample(i), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(AssertionError, match="tokenised again"):
        tokenize(Refuses(), tokenizer, tmp_path, "other")
    assert [p.name for p in tmp_path.iterdir()] == ["key"]
    assert sorted(p.name for p in (tmp_path / "key").iterdir()) == [
        "learn.npy",
        "offsets.npy",
        "splittable.npy",
        "tokens.npy",
    ]


@pytest.mark.parametrize("name", ["tokens", "learn", "offsets", "splittable"])
@pytest.mark.parametrize("damage", ["short", "empty", "missing", "other"])
def test_damaged_stores_are_made_anew(
    tmp_path: Path, tokenizer: Tokenizer, name: str, damage: str
) -> None:
    whole = tokenize(SAMPLES, tokenizer, tmp_path, "key")
    expected = np.array(whole.tokens)
    file = tmp_path / "key" / f"{name}.npy"
    if damage == "short":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "missing":
        file.unlink()
    else:
        np.save(file, np.zeros(3, np.float32))
    again = tokenize(SAMPLES, tokenizer, tmp_path, "key")
    np.testing.assert_array_equal(again.tokens, expected)
    assert len(tokenize(Refuses(), tokenizer, tmp_path, "key")) == 2


def test_files_grow_past_their_first_header(tmp_path: Path, tokenizer: Tokenizer) -> None:
    # The header is rewritten in place: one grown by digits would run into the data.
    samples = [Sample("x" * 99) for _ in range(1200)]
    seen: list[tuple[int, int]] = []
    store = tokenize(iter(samples), tokenizer, tmp_path, "key", lambda *a: seen.append(a))
    assert store.num_tokens == 120_000 and seen == [(1000, 100_000), (1200, 120_000)]
    assert store.sample(0)[0].tolist() == store.sample(1199)[0].tolist()
    assert np.load(tmp_path / "key" / "tokens.npy").shape == (120_000,)


def test_no_samples(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="no samples to learn from"):
        tokenize([], tokenizer, tmp_path, "key")


def test_folder_that_cannot_be_written(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written .*: free some space"):
        tokenize(SAMPLES, tokenizer, tmp_path / "file", "key")


def test_key(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    source = Source(str(path))
    key = cache_key(tokenizer, [source], {"filters": ["dedupe"]})

    def same(tokenizer: Tokenizer, source: Source = source, **options: Any) -> bool:
        return cache_key(tokenizer, [source], {"filters": ["dedupe"]} | options) == key

    assert same(tiny_tokenizer())
    assert same(tokenizer, Source(str(path), weight=0.5))
    assert not same(tokenizer, Source(str(path), text_field="body"))
    assert not same(tokenizer, filters=[])
    assert not same(tiny_tokenizer(TEMPLATE + " "))
    other = tiny_tokenizer()
    other.backend.add_special_tokens(["<|new|>"])
    assert not same(other)
    path.write_text("two")
    assert not same(tokenizer)
    path.write_text("one")
    assert same(tokenizer)
    (tmp_path / "a.md").write_text("more")
    assert not same(tokenizer, Source(str(tmp_path)))


def test_from_file_to_store(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"prompt": "two", "completion": "3"}')
    source = Source(f"{tmp_path}/a.jsonl")
    store = tokenize(read(source), tokenizer, tmp_path / "cache", cache_key(tokenizer, [source]))
    assert learnt(store, 0, tokenizer) == "one<|im_end|>"
    assert learnt(store, 1, tokenizer) == "3<|im_end|>"
