"""What the teacher said, on disk: later epochs and longer runs need not ask it again.

For each position the ``k`` likeliest tokens and their log-probabilities (float16); the rest of
the mass is what they leave over. Shards of safetensors are written one by one under a temporary
name and renamed, so a broken run goes on with the next one.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afm_mlx.data.packing import Batch, Windows
from afm_mlx.distill.teachers import Committee
from afm_mlx.errors import InputError, first_line
from afm_mlx.files import replacing
from afm_mlx.losses import CHUNK, with_rest

import mlx.core as mx
import numpy as np

Array = np.ndarray[Any, Any]

SHARD = 32
"""Windows in a shard."""
OPEN_SHARDS = 8
"""Shards kept in memory."""


@dataclass(frozen=True)
class CacheOptions:
    """What is kept of the teacher's distributions."""

    top_k: int = 64
    """Likeliest tokens kept for each position; 0 runs the teacher in every step."""

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise InputError(f"top_k must not be below 0: {self.top_k}")


def cache_size(tokens: int, k: int, vocabulary: int) -> int:
    """Bytes that ``tokens`` positions take on disk."""
    return tokens * k * (2 + _index_type(vocabulary).size)


def _index_type(vocabulary: int) -> mx.Dtype:
    return mx.uint16 if vocabulary <= 2**16 else mx.uint32


class LogitCache:
    """The ``k`` likeliest tokens of windows in ``folder``, read and written shard by shard."""

    def __init__(self, folder: Path, k: int) -> None:
        self.folder, self.k = Path(folder), k
        self._shards: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._where: dict[int, tuple[str, int]] = {}
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            self._add(path)

    def __len__(self) -> int:
        return len(self._where)

    def missing(self, windows: Sequence[int]) -> list[int]:
        """Those of ``windows`` that are not in yet, each once, in their order."""
        return [w for w in dict.fromkeys(windows) if w not in self._where]

    def fill(
        self, committee: Committee, windows: Windows, wanted: Sequence[int], temperature: float
    ) -> Iterator[tuple[int, int]]:
        """Ask the teachers about the windows that are missing; yields how many are done of all.

        Raises:
            InputError: the disk is full or not writable; what is there stays usable.
        """
        missing = self.missing(wanted)
        for start in range(0, len(missing), SHARD):
            numbers = missing[start : start + SHARD]
            said = [_ask(committee, windows.batch([n]), self.k, temperature) for n in numbers]
            indices, logs = (mx.concatenate([s[i] for s in said]) for i in (0, 1))
            self._write(indices, logs, numbers)
            yield start + len(numbers), len(missing)

    def __call__(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """Tokens ``[B, L, k]`` and log-probabilities with the rest ``[B, L, k + 1]``."""
        rows = [self._where[int(w)] for w in batch.window]
        indices = [self._shard(name)["indices"][row] for name, row in rows]
        logs = [self._shard(name)["logs"][row] for name, row in rows]
        return mx.stack(indices).astype(mx.int32), with_rest(mx.stack(logs).astype(mx.float32))

    def _shard(self, name: str) -> dict[str, Any]:
        if name not in self._shards:
            loaded: Any = mx.load(str(self.folder / name))
            self._shards[name] = loaded
            if len(self._shards) > OPEN_SHARDS:
                self._shards.popitem(last=False)
        self._shards.move_to_end(name)
        return self._shards[name]

    def _write(self, indices: mx.array, logs: mx.array, numbers: list[int]) -> None:
        name = hashlib.sha256(np.array(numbers).tobytes()).hexdigest()[:16]
        target = self.folder / f"shard-{name}.safetensors"
        arrays = {"indices": indices, "logs": logs, "window": mx.array(numbers)}
        remedy = "free some space and run the same command again, it goes on from there"
        with replacing(target, remedy, new_folder=True) as temporary:
            mx.save_safetensors(str(temporary), arrays)
        self._add(target)

    def _add(self, path: Path) -> None:
        try:
            arrays: Any = mx.load(str(path))
            numbers = np.array(arrays["window"])
            if arrays["indices"].shape[-1] != self.k:
                raise ValueError(f"it holds {arrays['indices'].shape[-1]} tokens a position")
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise InputError(
                f"{path} cannot be used ({first_line(error)}): delete it, and it is made again"
            ) from error
        for row, number in enumerate(numbers.tolist()):
            self._where[number] = path.name, row


def _ask(
    committee: Committee, batch: Batch, k: int, temperature: float
) -> tuple[mx.array, mx.array]:
    """Tokens and float16 log-probabilities ``[B, L, k]``, likeliest first."""
    states = committee.states(batch)
    indices, logs = [], []
    for start in range(0, len(states[0]), CHUNK):
        rows = [s[start : start + CHUNK] for s in states]
        found = committee.log_probabilities(rows, temperature)
        if k >= found.shape[-1]:
            raise InputError(f"top_k={k} is not below the vocabulary of {found.shape[-1]}")
        best = mx.argpartition(-found, kth=k - 1, axis=-1)[:, :k]
        values = mx.take_along_axis(found, best, axis=-1)
        order = mx.argsort(-values, axis=-1)
        indices.append(
            mx.take_along_axis(best, order, axis=-1).astype(_index_type(found.shape[-1]))
        )
        logs.append(mx.take_along_axis(values, order, axis=-1).astype(mx.float16))
        mx.eval(indices[-1], logs[-1])
    shape = (*batch.tokens.shape, k)
    return mx.concatenate(indices).reshape(shape), mx.concatenate(logs).reshape(shape)
