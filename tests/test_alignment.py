"""Spans of two tokenizers cover the same bytes, and batches point to the right places."""

import json
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

from afm_mlx.alignment import Aligner, Span, align, common_tokens, token_bytes
from afm_mlx.cross_vocabulary import MAX_GROUP, Rows
from afm_mlx.errors import ModelError
from afm_mlx.tokenizer import Message, Tokenizer
from tests.conftest import TEMPLATE, tiny_tokenizer

import numpy as np
import pytest
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Backend

TEXT = (Path(__file__).parents[1] / "LICENSE").read_text() + "Schöne Grüße an die Welt. " * 9
SAMPLES = ["Grüße, 世界! 👋🏽", "a  b\n\tc ", "def tiny_checkpoint() -> Checkpoint:\n    return 1"]


@cache
def byte_level(size: int, *specials: str) -> Tokenizer:
    """GPT-2's kind; ``size`` counts special tokens and bytes too."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = specials or ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    backend.train_from_iterator(
        TEXT.splitlines(keepends=True),
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[AddedToken(s, normalized=False) for s in specials],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return Tokenizer.from_backend(backend, TEMPLATE, eos_token=specials[-1])


@cache
def sentence_piece(prefix: bool = False, nfkc: bool = False) -> Tokenizer:
    """Gemma's kind: ``▁`` for blanks, bytes for unknown characters, an opening ``<s>``."""
    steps: list[normalizers.Normalizer] = [normalizers.NFKC()] if nfkc else []
    steps += [normalizers.Prepend("▁")] if prefix else []
    normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    raw = Backend(models.BPE())
    raw.normalizer = normalizer
    raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    raw.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=400, limit_alphabet=60, show_progress=False)
    )
    learnt = json.loads(raw.to_str())["model"]
    fallback = [f"<0x{b:02X}>" for b in range(256)]
    names = ["<unk>", "<s>", "</s>", *fallback, *learnt["vocab"], "\n\n"]
    backend = Backend(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=[tuple(m) for m in learnt["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.add_tokens(["\n\n"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return Tokenizer.from_backend(backend, None, bos_token="<s>", eos_token="</s>")


def pieces(tokenizer: Tokenizer, text: str) -> list[bytes]:
    table = token_bytes(tokenizer)
    return [table[i] for i in tokenizer.encode(text)]


def covered(span: Span, ours: Sequence[bytes], theirs: Sequence[bytes]) -> tuple[bytes, bytes]:
    return b"".join(ours[slice(*span.student)]), b"".join(theirs[slice(*span.teacher)])


# --- vocabularies


@pytest.mark.parametrize("tokenizer", [byte_level(300), byte_level(420), sentence_piece()])
def test_bytes_of_tokens_give_the_text(tokenizer: Tokenizer) -> None:
    for text in (*SAMPLES, TEXT):
        assert b"".join(pieces(tokenizer, text)) == text.encode()


def test_markers_have_no_bytes_but_other_added_tokens_do() -> None:
    # Gemma adds runs of line breaks as tokens that are not special: they are text.
    table = token_bytes(sentence_piece())
    assert table[:4] == [b"", b"", b"", b"\x00"]
    assert table.index(b"\n\n") == sentence_piece().backend.token_to_id("\n\n")
    assert token_bytes(byte_level(300))[:3] == [b"", b"", b""]


def test_other_kinds_of_vocabulary() -> None:
    backend = Backend(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ModelError, match="neither byte-level nor .* choose another teacher"):
        token_bytes(Tokenizer.from_backend(backend, None))


def test_common_tokens_have_the_same_bytes_or_name() -> None:
    student, teacher = byte_level(300), sentence_piece()
    ours, theirs = common_tokens(student, teacher)
    table, teacher_table = token_bytes(student), token_bytes(teacher)
    assert [table[i] for i in ours] == [teacher_table[i] for i in theirs]
    assert len(set(ours)) == len(set(theirs)) == len(ours)
    # "e" is there as a letter and as <0x65>, which stands for no text that is ever written
    assert teacher.backend.token_to_id("<0x65>") not in theirs
    assert teacher.backend.token_to_id("e") in theirs
    assert {len(table[i]) for i in ours} > {1, 2}
    ours, theirs = common_tokens(student, byte_level(420, "<|im_end|>", "<pad>"))
    assert [0] == [t for s, t in zip(ours, theirs, strict=True) if s == 2]
    assert len(ours) == 300 - 2


def test_given_markers_are_common_too() -> None:
    student, teacher = byte_level(300), byte_level(420, "<eos>", "<|im_end|>")
    ours, theirs = common_tokens(student, teacher, {0: 0, 1: 0, 2: 1})
    pairs = list(zip(ours.tolist(), theirs.tolist(), strict=True))
    assert {(0, 0), (2, 1)} < set(pairs)
    assert len(set(theirs)) == len(theirs)  # a probability must not count twice


# --- alignment


@pytest.mark.parametrize("teacher", [byte_level(420), sentence_piece()])
def test_spans_are_the_smallest_that_cover_all(teacher: Tokenizer) -> None:
    for text in (*SAMPLES, TEXT):
        ours, theirs = pieces(byte_level(300), text), pieces(teacher, text)
        spans, skipped = align(ours, theirs)
        assert skipped == 0
        assert [n for s in spans for n in range(*s.student)] == list(range(len(ours)))
        assert [n for s in spans for n in range(*s.teacher)] == list(range(len(theirs)))
        for span in spans:
            a, b = covered(span, ours, theirs)
            assert a == b
        ends = set(np.cumsum([len(p) for p in ours])) & set(np.cumsum([len(p) for p in theirs]))
        assert len(spans) == len(ends)
    assert any(s.student[1] - s.student[0] > 1 for s in spans)


def test_equal_tokenizers_align_one_to_one() -> None:
    ours = pieces(byte_level(300), TEXT)
    spans, _ = align(ours, ours)
    assert spans == [Span((n, n + 1), (n, n + 1)) for n in range(len(ours))]


def test_groups_of_several_tokens() -> None:
    assert align([b"un", b"happ", b"y", b" me"], [b"unh", b"appy", b" ", b"me"])[0] == [
        Span((0, 3), (0, 2)),
        Span((3, 4), (2, 4)),
    ]


def test_markers_belong_to_no_span() -> None:
    spans, skipped = align([b"", b"hi", b"", b"", b"you"], [b"h", b"i", b"", b"you", b""])
    assert spans == [Span((1, 2), (0, 2)), Span((4, 5), (3, 4))]
    assert skipped == 0
    # one of them inside a group
    assert align([b"ab", b"", b"cd", b"e"], [b"abcd", b"e"]) == ([Span((3, 4), (1, 2))], 4)


@pytest.mark.parametrize(
    ("ours", "theirs", "spans", "skipped"),
    [
        # NFKC: one ligature of three bytes, in two tokens, becomes two letters
        (
            [b"a ", b"\xef\xac", b"\x81", b"sh and", b" chips"],
            [b"a ", b"fi", b"sh", b" and", b" chips"],
            [((0, 1), (0, 1)), ((3, 4), (2, 4)), ((4, 5), (4, 5))],
            3,
        ),
        # a blank before the text
        ([b"Hello", b" world"], [b" Hello", b" world"], [((1, 2), (1, 2))], 5),
        # the nearest common place, not the first one in either text
        (
            [b"x", b"same words", b"y", b"same words", b"."],
            [b"same words", b"z", b"same words", b"."],
            [((1, 2), (0, 1)), ((3, 4), (2, 3)), ((4, 5), (3, 4))],
            2,
        ),
        ([b"abc", b"def"], [b"abc", b"xyz"], [((0, 1), (0, 1))], 3),
        ([b"abc", b"def"], [b"abc"], [((0, 1), (0, 1))], 3),
        ([b"abc"], [b"abc", b"def"], [((0, 1), (0, 1))], 0),
        ([b"abc"], [], [], 3),
        ([], [b"abc"], [], 0),
    ],
)
def test_texts_that_differ_are_skipped_over(
    ours: list[bytes],
    theirs: list[bytes],
    spans: list[tuple[tuple[int, int], tuple[int, int]]],
    skipped: int,
) -> None:
    assert align(ours, theirs) == ([Span(*s) for s in spans], skipped)


def test_random_texts_that_differ() -> None:
    generator = np.random.default_rng(0)

    def cut(text: bytes) -> list[bytes]:
        ends = sorted({0, len(text), *generator.integers(0, len(text) + 1, 20).tolist()})
        marked = [[text[a:b], b""][: 1 + (generator.random() < 0.1)] for a, b in pairwise(ends)]
        return [piece for group in marked for piece in group]

    for _ in range(300):
        text = bytes(generator.choice([*b"abc "], 60))
        other = bytearray(text)
        for at in sorted(generator.integers(0, 55, generator.integers(3)), reverse=True):
            other[at : at + generator.integers(3)] = b"xyz"[: generator.integers(4)]
        ours, theirs = cut(text), cut(bytes(other))
        spans, skipped = align(ours, theirs)
        done = [covered(s, ours, theirs) for s in spans]
        assert all(a == b != b"" for a, b in done)
        assert sum(len(a) for a, _ in done) + skipped == len(text)
        for before, after in pairwise(spans):
            assert before.student[1] <= after.student[0] < after.student[1]
            assert before.teacher[1] <= after.teacher[0] < after.teacher[1]


def test_normalising_tokenizer_loses_little() -> None:
    text = TEXT.replace("fi", "ﬁ").replace("...", "…")
    ours, theirs = pieces(byte_level(300), text), pieces(sentence_piece(True, True), text)
    spans, skipped = align(ours, theirs)
    for span in spans:
        a, b = covered(span, ours, theirs)
        assert a == b
    assert 0 < skipped < 0.1 * len(text)


# --- batches

CHAT = [Message("user", "Grüße!"), Message("assistant", "Hello, 世界.")]


def packed(samples: Sequence[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """One row ``[1, length]`` of samples, numbered from 1."""
    tokens, segments = np.zeros((1, length), np.int64), np.zeros((1, length), np.int64)
    at = 0
    for n, ids in enumerate(samples, 1):
        tokens[0, at : at + len(ids)], segments[0, at : at + len(ids)] = ids, n
        at += len(ids)
    return tokens, segments


def by_span(rows: Rows, spans: int) -> list[list[tuple[int, int, int]]]:
    out: list[list[tuple[int, int, int]]] = [[] for _ in range(spans)]
    for row, position, token, span in zip(
        rows.row, rows.position, rows.token, rows.span, strict=True
    ):
        out[span].append((int(row), int(position), int(token)))
    return out


@pytest.mark.parametrize("teacher", [byte_level(420), sentence_piece(), sentence_piece(True, True)])
def test_batches_point_before_the_same_bytes(teacher: Tokenizer) -> None:
    student = byte_level(300)
    rows = [
        packed([student.encode(t) for t in SAMPLES[:2]], 90),
        packed([student.encode(SAMPLES[2]), student.chat(CHAT, generate=False)], 90),
    ]
    tokens, segments = (np.concatenate(x) for x in zip(*rows, strict=True))
    aligner = Aligner(student, teacher)
    batch = aligner.prepare(tokens, segments, 120)
    assert batch.tokens.shape == batch.segments.shape == (2, 120)
    assert batch.size == sum(len(token_bytes(student)[t]) for t in tokens.flat)

    count = len(batch.targets.weight)
    assert count > 40 and batch.targets.weight.all()
    tables = token_bytes(student), token_bytes(teacher)
    grids = (tokens, segments), (batch.tokens, batch.segments)
    sides = batch.targets.student, batch.targets.teacher
    known = [tables[0][i] for i in aligner.common[0]]
    places = (by_span(side, count) for side in sides)
    for ours, theirs, event in zip(*places, batch.targets.event, strict=True):
        texts, numbers = [], []
        for places, table, (ids, numbering) in zip((ours, theirs), tables, grids, strict=True):
            row = places[0][0]
            start = places[0][1]
            assert places == [(row, start + n, places[n][2]) for n in range(len(places))]
            assert [ids[row, p + 1] for _, p, _ in places] == [t for *_, t in places]
            segment = set(numbering[row, start : start + len(places) + 1])
            assert len(segment) == 1 and segment != {0}  # nothing is predicted across samples
            texts.append(b"".join(table[t] for *_, t in places))
            numbers.append((row, *segment))
        assert texts[0] == texts[1] and numbers[0] == numbers[1]
        if texts[0]:
            assert event == (known.index(texts[0]) if texts[0] in known else len(known))
        else:
            assert aligner.common[0][event] == ours[0][2]
    for side in sides:
        assert (side.span[:count] == np.arange(count)).all()
        assert (np.diff(side.span[count:]) >= 0).all()


def test_teacher_reads_its_own_tokens() -> None:
    student, teacher = byte_level(300), sentence_piece()
    tokens, segments = packed([student.encode(t) for t in SAMPLES], 120)
    batch = Aligner(student, teacher).prepare(tokens, segments, 150)
    expected = [[1, *teacher.encode(t)] for t in SAMPLES]  # each sample opens with <s>
    wanted = packed(expected, 150)
    assert (batch.tokens == wanted[0]).all() and (batch.segments == wanted[1]).all()
    assert batch.skipped == 0


def test_opening_comes_once() -> None:
    tokenizer = sentence_piece()
    tokens, segments = packed([[1, *tokenizer.encode("a Grüße")], [1, 1]], 20)
    batch = Aligner(tokenizer, tokenizer).prepare(tokens, segments, 20)
    assert (batch.tokens == tokens).all() and (batch.segments == segments).all()


def test_markers_of_the_same_meaning_are_learnt() -> None:
    student, teacher = byte_level(300), byte_level(420, "<eos>", "<|im_end|>")
    tokens, segments = packed([student.chat(CHAT, generate=False)], 90)
    batch = Aligner(student, teacher).prepare(tokens, segments, 90)
    targets = batch.targets
    count = len(targets.weight)
    pairs = set(zip(targets.student.token[:count], targets.teacher.token[:count], strict=True))
    assert (2, 1) in pairs  # <|im_end|>
    # <|im_start|> is unknown to the teacher, so "user" after it is no target: the teacher
    # stands at the end of another line there.
    assert 1 not in targets.student.token[:count] and 1 not in tokens[0, targets.student.position]
    known = Aligner(student, teacher, {1: 0}).prepare(tokens, segments, 90).targets
    assert (1, 0) in set(zip(known.student.token, known.teacher.token, strict=False))
    assert len(known.weight) > count


def test_only_masked_in_tokens_are_targets() -> None:
    student = byte_level(300)
    tokens, segments = packed([student.encode(TEXT[:60])], 60)
    mask = np.zeros(tokens.shape, np.bool_)
    mask[0, 10:20] = True
    targets = Aligner(student, byte_level(420)).prepare(tokens, segments, 60, mask).targets
    assert len(targets.weight) and {*targets.student.position + 1} <= {*range(10, 20)}
    same = Aligner(student, student).prepare(tokens, segments, 60, mask).targets
    assert (same.student.position + 1 == np.arange(10, 20)).all()


def test_text_beyond_the_window_is_cut_off() -> None:
    student = byte_level(300)
    ids = student.encode(TEXT[:80])
    tokens, segments = packed([ids, student.encode("more")], 100)
    batch = Aligner(student, student).prepare(tokens, segments, 20)
    assert (batch.tokens[0] == ids[:20]).all() and (batch.segments == 1).all()
    assert (batch.targets.teacher.position == np.arange(19)).all()
    assert batch.skipped == batch.size - sum(len(token_bytes(student)[t]) for t in ids[:20])


def test_half_a_character_at_the_cut_is_skipped() -> None:
    # Windows of a packed stream begin and end anywhere, also within a character.
    student = tiny_tokenizer()
    ids = student.encode("世界 and so on, 世界")[1:-1]
    tokens, segments = packed([ids], len(ids))
    batch = Aligner(student, byte_level(420)).prepare(tokens, segments, 60)
    assert batch.skipped == 4
    assert len(batch.targets.weight) > 5
    # The teacher has not read the half, so its first token follows nothing.
    assert (batch.targets.teacher.position >= 0).all()


def test_very_long_groups_are_left_out() -> None:
    student = tiny_tokenizer()
    state = json.loads(student.backend.to_str())
    long = "-" * 2 * MAX_GROUP
    for n in (1, 2, 4, 8, 16):
        state["model"]["vocab"]["-" * 2 * n] = 258 + n
        state["model"]["merges"].append(["-" * n, "-" * n])
    teacher = Tokenizer.from_backend(Backend.from_str(json.dumps(state)), None)
    assert len(teacher.encode(long)) == 1
    tokens, segments = packed([student.encode(f"ab{long}cd")], 40)
    batch = Aligner(student, teacher).prepare(tokens, segments, 40)
    assert batch.skipped == len(long)
    assert len(batch.targets.weight) == 3  # b, c and d
