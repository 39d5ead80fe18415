"""Figures of fidelity against numpy in float64."""

import math

from afm_mlx.data.packing import Batch, PackedCache
from afm_mlx.fidelity import Judge
from afm_mlx.model import PRESETS
from tests.conftest import random_model

import mlx.core as mx
import numpy as np
import pytest


def batches() -> list[Batch]:
    rng = np.random.default_rng(0)
    segments = np.array([[1] * 90 + [2] * 61 + [0] * 9], np.int32)
    tokens = [rng.integers(3, 259, (1, 160)).astype(np.int32) * (segments > 0) for _ in range(2)]
    return [Batch(t, segments, segments > 0, np.array([i])) for i, t in enumerate(tokens)]


def test_against_numpy() -> None:
    source, other = random_model(PRESETS["tiny"]), random_model(PRESETS["tiny"])
    noise = np.random.default_rng(1).normal(0, 0.02, (512, 128)).astype(np.float32)
    other.layers[1].mlp.up_proj.weight += mx.array(noise)
    kl, flips, ours, theirs = [], [], [], []
    for batch in batches():
        logs = []
        for model in (source, other):
            cache = [PackedCache(batch.segments)] * len(model.layers)
            x = np.array(model(mx.array(batch.tokens), cache)[0], np.float64)
            logs.append(x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)))
            logs[-1] -= x.max(-1, keepdims=True)
        p, q = logs
        for t in range(151):
            kl.append(float((np.exp(p[t]) * (p[t] - q[t])).sum()))
            flips.append(p[t].argmax() != q[t].argmax())
            if t not in (89, 150):  # the last token of a sample has no successor
                label = batch.tokens[0, t + 1]
                ours.append(-q[t, label])
                theirs.append(-p[t, label])
    found = Judge(source, batches())(other)
    assert found.tokens == len(kl) == 302
    assert found.kl == pytest.approx(np.mean(kl), rel=1e-4)
    assert found.median == pytest.approx(np.median(kl), rel=1e-3)
    assert found.p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-3)
    assert found.largest == pytest.approx(max(kl), rel=1e-3)
    assert found.flips == pytest.approx(np.mean(flips))
    assert found.perplexity == pytest.approx(math.exp(np.mean(ours)), rel=1e-4)
    assert found.source_perplexity == pytest.approx(math.exp(np.mean(theirs)), rel=1e-4)


def test_a_model_is_faithful_to_itself() -> None:
    model = random_model(PRESETS["tiny"])
    found = Judge(model, batches())(model)
    assert abs(found.largest) < 1e-5 and found.flips == 0
    assert found.perplexity == pytest.approx(found.source_perplexity, rel=1e-6)
