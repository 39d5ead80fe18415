"""Learn which FFN dimensions stay: masks by soft top-k, as Apple pruned its on-device model.

Each FFN dimension has a score; the mask of a layer is soft top-k of its scores (Lei et al.,
arXiv 2304.04947, as used in arXiv 2407.21075): numbers in 0..1 that sum to k, sharper as eps
falls. Scores follow the gradients of the distillation loss while the weights stay as they are.
"""

import math
from collections.abc import Sequence
from typing import Any

from afm_mlx.model import MLP, Model
from afm_mlx.ops import swiglu

import mlx.core as mx
import numpy as np
from mlx import nn

ROUNDS = 20
SOFTEST, COOLING = 4.0, 0.7
"""Within one mask eps falls from SOFTEST by COOLING a round, down to the run's eps."""
EPS = (1.0, 0.02)
"""The run's eps at its first and last step."""


def soft_top_k(scores: mx.array, k: int, eps: float | mx.array) -> mx.array:
    """Mask ``[..., N]`` in 0..1 whose sum is about ``k``; hard top-k as ``eps`` goes to 0."""
    if k >= scores.shape[-1]:
        return mx.ones_like(scores)
    b = -scores
    a = mx.zeros_like(scores[..., :1])
    now = mx.array(SOFTEST)
    for _ in range(ROUNDS):
        now = mx.maximum(now * COOLING, eps)
        total = mx.logsumexp((scores + b) / now, axis=-1, keepdims=True)
        a = now * (math.log(k) - total)
        b = -mx.maximum(scores + a, 0)
    return mx.exp((scores + a + b) / now)


class MaskedMLP(nn.Module):
    """An FFN whose hidden dimensions are multiplied by a learnt mask."""

    def __init__(self, mlp: MLP, scores: mx.array, k: int) -> None:
        super().__init__()
        self.mlp, self.scores, self.k, self.eps = mlp, scores, k, EPS[0]

    def __call__(self, x: mx.array) -> mx.array:
        mlp = self.mlp
        mask = soft_top_k(self.scores, self.k, self.eps).astype(x.dtype)
        return mlp.down_proj(swiglu(mlp.gate_proj(x), mlp.up_proj(x)) * mask)


def put_on(model: Model, importance: Sequence[Any], sizes: Sequence[int]) -> None:
    """Mask every FFN of ``model``; only the scores stay trainable.

    Scores begin as the logarithm of ``importance``, brought to mean 0 and deviation 1.
    """
    model.freeze()
    for layer, values, k in zip(model.layers, importance, sizes, strict=True):
        logs = np.log(np.asarray(values, np.float64) + 1e-12)
        scores = (logs - logs.mean()) / (logs.std() + 1e-12)
        layer.mlp = MaskedMLP(layer.mlp, mx.array(scores.astype(np.float32)), k)
        layer.mlp.unfreeze(keys=["scores"], recurse=False)


def sharpen(model: Model, progress: float) -> None:
    """Set eps for a ``progress`` from 0 to 1, falling by equal factors."""
    for layer in model.layers:
        layer.mlp.eps = EPS[0] * (EPS[1] / EPS[0]) ** progress


def take_off(model: Model) -> tuple[np.ndarray[Any, Any], ...]:
    """Restore the FFNs, all weights trainable; the learnt scores of each layer."""
    scores = []
    for layer in model.layers:
        scores.append(np.array(layer.mlp.scores))
        layer.mlp = layer.mlp.mlp
    model.unfreeze()
    return tuple(scores)
