"""Tokenise samples once; later runs map the same files into memory.

A store is a folder of four plain ``.npy`` files. It is written under a temporary name, flushed
and renamed, so that one which can be opened is whole. Its name is a key over all that decides
its content, so that a changed file or tokenizer gets a store of its own.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from afm_mlx.data.sources import Sample, Source, files
from afm_mlx.errors import InputError, ModelError, first_line
from afm_mlx.tokenizer import Message, Tokenizer

import numpy as np

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int], None]
"""Called with the samples and tokens so far."""

_FORMAT = 1  # of the files, and of how samples become tokens; part of every key
_TYPES = {"tokens": np.uint32, "learn": np.bool_, "offsets": np.int64, "splittable": np.bool_}
_EVERY = 1000  # samples between two reports of progress


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Tokenised samples, mapped from disk.

    Attributes:
        tokens: uint32 ``[num_tokens]``, the samples end to end.
        learn: bool ``[num_tokens]``, whether predicting this token counts: all of a text, the
            assistant's turns of a conversation.
        offsets: int64 ``[len + 1]``, where each sample begins.
        splittable: bool ``[len]``, whether a sample may be cut anywhere (texts may).
    """

    tokens: Array
    learn: Array
    offsets: Array
    splittable: Array

    def __len__(self) -> int:
        return len(self.splittable)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> Array:
        """Tokens of each sample, int64."""
        return np.diff(self.offsets)

    def sample(self, i: int) -> tuple[Array, Array]:
        """Tokens of sample ``i`` and whether each is to be learnt."""
        piece = slice(self.offsets[i], self.offsets[i + 1])
        return self.tokens[piece], self.learn[piece]


def cache_key(
    tokenizer: Tokenizer, sources: Sequence[Source], options: Mapping[str, Any] | None = None
) -> str:
    """SHA-256 over what decides a store: tokenizer, contents of the files, ``options``.

    ``options`` is what else changes the samples, such as filters, as JSON has it. Weights do
    not count. A data set of the Hub counts by its name alone: pin its revision.
    """
    hf = tokenizer.wrapper
    parts: list[Any] = [
        _FORMAT,
        tokenizer.backend.to_str(),
        hf.chat_template,
        [hf.bos_token_id, hf.eos_token_id],
        sorted(tokenizer.eos_token_ids),
        dict(options or {}),
    ]
    for source in sources:
        parts.append(source.text_field)
        if source.is_hub:
            parts.append(source.path)
            continue
        for file in files(source):
            try:
                with file.open("rb") as f:
                    parts.append([file.suffix, hashlib.file_digest(f, "sha256").hexdigest()])
            except OSError as error:
                raise InputError(
                    f"cannot read {file} ({first_line(error)}): check its permissions"
                ) from error
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenize(
    samples: Iterable[Sample],
    tokenizer: Tokenizer,
    folder: Path,
    key: str,
    progress: Progress | None = None,
) -> TokenStore:
    """The store ``folder/key``; if it is not there or damaged it is made from ``samples``.

    Otherwise ``samples`` is not touched. Texts end with the tokenizer's end-of-text token, and
    begin with its beginning-of-text token where the tokenizer puts one there.

    Raises:
        InputError: there are no samples, or the disk is full or not writable.
        ModelError: the chat template is missing or refuses a conversation.
    """
    folder = Path(folder)
    store = _open(folder / key)
    if store is not None:
        return store
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{key[:16]}.", dir=folder))
        _write(samples, tokenizer, temporary, progress)
        if _open(folder / key) is None:  # else another process was quicker
            shutil.rmtree(folder / key, ignore_errors=True)
            temporary.chmod(0o755)
            temporary.rename(folder / key)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({first_line(error)}): free some space or choose"
            " another folder"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    store = _open(folder / key)
    if store is None:
        raise InputError(f"{folder / key} cannot be read back: choose another folder")
    return store


def _open(folder: Path) -> TokenStore | None:
    """The store in ``folder``, or ``None`` where there is none or its files do not agree."""
    try:
        arrays = {
            name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in _TYPES
        }
    except (OSError, ValueError, EOFError):  # missing, cut short, empty
        return None
    store = TokenStore(**arrays)
    whole = (
        all(a.dtype == _TYPES[name] and a.ndim == 1 for name, a in arrays.items())
        and len(store.offsets) == len(store) + 1
        and store.offsets[-1] == len(store.tokens) == len(store.learn)
    )
    return store if whole else None


class _Column:
    """A one-dimensional ``.npy`` file that grows."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file: BinaryIO = (folder / f"{name}.npy").open("wb")
        self.dtype, self.length = np.dtype(_TYPES[name]), 0
        self._header()

    def _header(self) -> None:
        # numpy leaves room for the digits of the first axis, so a later header fits in place.
        np.lib.format.write_array_header_1_0(
            self.file,
            {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)},
        )

    def append(self, values: Any) -> None:
        array = np.asarray(values, dtype=self.dtype)
        self.file.write(array.tobytes())
        self.length += array.size

    def close(self) -> None:
        self.file.seek(0)
        self._header()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def _write(
    samples: Iterable[Sample], tokenizer: Tokenizer, folder: Path, progress: Progress | None
) -> None:
    columns = {name: _Column(folder, name) for name in _TYPES}
    try:
        encode = _Encoder(tokenizer)
        columns["offsets"].append([0])
        count = total = 0
        for sample in samples:
            tokens, learn = encode(sample)
            total += len(tokens)
            count += 1
            columns["tokens"].append(tokens)
            columns["learn"].append(learn)
            columns["offsets"].append([total])
            columns["splittable"].append([sample.text is not None])
            if progress is not None and count % _EVERY == 0:
                progress(count, total)
        if not count:
            raise InputError("there are no samples to learn from: give more, or filter less")
        if progress is not None:
            progress(count, total)
        for column in columns.values():
            column.close()
    finally:
        for column in columns.values():
            column.file.close()


class _Encoder:
    """Samples to token ids and to whether each is to be learnt."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        hf = tokenizer.wrapper
        ends = [hf.eos_token_id] if hf.eos_token_id is not None else sorted(tokenizer.eos_token_ids)
        if not ends:
            raise ModelError("the tokenizer has no end-of-text token: choose another model")
        self.end = ends[:1]
        opening = tokenizer.backend.encode("").ids[:1]  # Llama 3 begins texts with a token
        self.begin = opening if opening == [hf.bos_token_id] else []

    def __call__(self, sample: Sample) -> tuple[list[int], Array]:
        if sample.text is not None:
            tokens = [*self.begin, *self.tokenizer.encode(sample.text), *self.end]
            return tokens, np.ones(len(tokens), dtype=np.bool_)
        try:
            tokens, answers = self.conversation(sample.messages)
        except ModelError as error:
            raise ModelError(f"{sample.source}: {error}") from error
        learn = np.zeros(len(tokens), dtype=np.bool_)
        for start, stop in answers:
            learn[start:stop] = True
        return tokens, learn

    def conversation(self, messages: Sequence[Message]) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens up to the last answer, and where the assistant's answers lie in them.

        Answer ``i`` begins where the prompt before it (``messages[:i]`` with the assistant's
        opening) ends, and ends with the marker that closes its turn. That holds if the
        conversation up to it is a beginning of the whole. Some templates render earlier turns
        another way once later ones follow (thoughts are left out); then only the last answer
        is learnt.
        """
        turns = [i for i, m in enumerate(messages) if m.role == "assistant"]
        if not turns:
            raise ModelError("no assistant message, so nothing to learn: leave it out")
        last = turns[-1]
        whole = self.tokenizer.chat(messages[: last + 1], generate=False)
        answer = self._answer(messages[:last], whole)
        if answer is None:
            raise ModelError(
                "the chat template changes what comes before the answer, so that it cannot be"
                " told from the prompt: choose another model"
            )
        answers = []
        for i in turns[:-1]:
            closed = self.tokenizer.chat(messages[: i + 1], generate=False)
            earlier = self._answer(messages[:i], closed)
            if earlier is None or whole[: len(closed)] != closed:
                return whole, [answer]
            answers.append(earlier)
        return whole, [*answers, answer]

    def _answer(self, before: Sequence[Message], closed: list[int]) -> tuple[int, int] | None:
        """Where the last answer lies in ``closed``, the tokens of ``before`` and the answer."""
        opened = self.tokenizer.chat(before)
        common = next(
            (n for n, (a, b) in enumerate(zip(opened, closed, strict=False)) if a != b),
            min(len(opened), len(closed)),
        )
        # The opening itself may differ: line ends melt into the answer's, or it has a thought.
        if common < len(opened) - self.opening_length:
            return None
        ends = self.tokenizer.eos_token_ids
        stop = next((n + 1 for n in range(common, len(closed)) if closed[n] in ends), len(closed))
        return common, stop

    @cached_property
    def opening_length(self) -> int:
        """Tokens that open the assistant's turn, at least 1."""
        question = [Message("user", "?")]
        opened, bare = (self.tokenizer.chat(question, generate=g) for g in (True, False))
        return max(len(opened) - len(bare), 1)
