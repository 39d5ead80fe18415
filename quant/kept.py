"""Calibration statistics on disk, two bytes a number.

Second moments are kept as correlations with their diagonal apart, and Fisher weights as ratios
to the product of their row and column means: both lie near 1, so float16 keeps three digits.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afm_mlx.files import replacing
from afm_mlx.quant.statistics import Statistics

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

Array = np.ndarray[Any, Any]

CACHE_REMEDY = "free some space or choose another --cache"

_LARGEST = float(np.finfo(np.float16).max)


def save(file: Path, statistics: Mapping[str, Statistics]) -> None:
    """Write the statistics of a block.

    Raises:
        InputError: the disk is full or not writable.
    """
    arrays: dict[str, Array] = {}
    reads: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, found in statistics.items():
        reads[name] = source = first.setdefault(id(found.hessian), name)
        if source == name:
            arrays |= _moments(f"{name}.hessian", found.hessian)
            arrays[f"{name}.peak"] = found.peak
        arrays |= _moments(f"{name}.guided", found.guided)
        arrays |= _ratios(f"{name}.fisher", found.fisher)
    with replacing(file, CACHE_REMEDY, new_folder=True) as temporary:
        save_file(arrays, temporary, metadata={"reads": json.dumps(reads)})


def load(file: Path) -> dict[str, Statistics] | None:
    """Statistics of :func:`save`; ``None`` where the file is not there or damaged."""
    try:
        with safe_open(file, framework="numpy") as opened:
            reads = json.loads(opened.metadata()["reads"])
            arrays = {k: opened.get_tensor(k) for k in opened.keys()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    hessians = {n: _whole(arrays, f"{n}.hessian") for n in set(reads.values())}
    found = {}
    for name, source in reads.items():
        rows, columns = arrays[f"{name}.fisher.rows"], arrays[f"{name}.fisher.columns"]
        fisher = arrays[f"{name}.fisher"].astype(np.float32) * rows[:, None] * columns
        guided = _whole(arrays, f"{name}.guided")
        found[name] = Statistics(hessians[source], guided, fisher, arrays[f"{source}.peak"])
    return found


def _moments(name: str, moments: Array) -> dict[str, Array]:
    diagonal = np.diag(moments).astype(np.float32)
    root = np.sqrt(np.maximum(diagonal, np.finfo(np.float32).tiny))
    return {name: (moments / root[:, None] / root).astype(np.float16), f"{name}.diagonal": diagonal}


def _whole(arrays: Mapping[str, Array], name: str) -> Array:
    diagonal = arrays[f"{name}.diagonal"]
    root = np.sqrt(diagonal)
    moments = arrays[name].astype(np.float32) * root[:, None] * root
    np.fill_diagonal(moments, diagonal)
    return moments


def _ratios(name: str, fisher: Array) -> dict[str, Array]:
    least = np.finfo(np.float32).tiny
    rows = np.maximum(fisher.mean(1), least)
    columns = np.maximum((fisher / rows[:, None]).mean(0), 1e-30)
    ratios = np.minimum(fisher / rows[:, None] / columns, _LARGEST).astype(np.float16)
    return {name: ratios, f"{name}.rows": rows, f"{name}.columns": columns}
