"""Streamed statistics against one pass through the whole model with its gradients."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.data.packing import Batch, PackedCache
from afm_mlx.model import PRESETS, Model
from afm_mlx.model_args import ModelArgs
from afm_mlx.quant import kept, statistics
from afm_mlx.quant.statistics import Progress, Statistics, collect, draw, linears
from tests.conftest import random_model

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_unflatten

Array = np.ndarray[Any, Any]

TINY = replace(PRESETS["tiny"], hidden_size=64, intermediate_size=96, head_dim=16)
REUSE = replace(TINY, num_kv_reuse_layers=2, qk_norm=True)


def batches(count: int = 2) -> list[Batch]:
    """Windows of two samples each and some padding."""
    rng = np.random.default_rng(0)
    segments = np.array([[1] * 9 + [2] * 8 + [0] * 3], np.int32)
    found = []
    for i in range(count):
        tokens = rng.integers(3, 259, (1, 20)).astype(np.int32) * (segments > 0)
        found.append(Batch(tokens, segments, segments > 0, np.array([i])))
    return found


def collected(
    model: Model, given: list[Batch], folder: Path | None = None
) -> dict[str, Statistics]:
    out: dict[str, Statistics] = {}
    for event in collect(model, given, folder=folder):
        if not isinstance(event, Progress):
            number, found = event
            out |= {f"model.layers.{number}.{name}": s for name, s in found.items()}
    return out


class Recorder(nn.Module):
    """A linear layer whose inputs are noted, and whose outputs are nudged by a zero."""

    def __init__(self, name: str, linear: nn.Linear, seen: dict[str, Any]) -> None:
        super().__init__()
        self._run: Callable[[mx.array], mx.array] = lambda x: linear(x) + seen["nudge"][name]
        self._note = lambda x: seen["x"].__setitem__(name, x)

    def __call__(self, x: mx.array) -> mx.array:
        self._note(x)
        return self._run(x)


def reference(args: ModelArgs, given: list[Batch], label: int) -> dict[str, dict[str, Array]]:
    """Sums of all moments in float64, by automatic differentiation of the whole model."""
    model = random_model(args)
    layers = {n: m for n, m in linears(model).items()}
    seen: dict[str, Any] = {}
    model.update_modules(tree_unflatten([(n, Recorder(n, m, seen)) for n, m in layers.items()]))
    sums: dict[str, dict[str, Array]] = {n: {} for n in layers}
    for batch in given:

        def loss(nudge: dict[str, mx.array], batch: Batch = batch) -> tuple[mx.array, Any]:
            seen["nudge"], seen["x"] = nudge, {}
            cache: Any = [PackedCache(batch.segments)] * len(model.layers)
            logits = model(mx.array(batch.tokens), cache)
            nll = mx.logsumexp(logits, axis=-1) - logits[..., label]
            return mx.sum(nll * mx.array(batch.segments > 0)), dict(seen["x"])

        shape = batch.tokens.shape
        zeros = {n: mx.zeros((*shape, m.weight.shape[0])) for n, m in layers.items()}
        (_, xs), ds = mx.value_and_grad(loss)(zeros)
        real = batch.segments.reshape(-1) > 0
        for name in layers:
            x = np.array(xs[name], np.float64).reshape(len(real), -1)[real]
            d = np.array(ds[name], np.float64).reshape(len(real), -1)[real] ** 2
            for key, value in {
                "hessian": x.T @ x,
                "guided": (x * d.mean(1, keepdims=True)).T @ x,
                "fisher": d.T @ x**2,
            }.items():
                sums[name][key] = sums[name].get(key, 0) + value
            top = np.maximum(sums[name].get("peak", np.zeros(x.shape[1])), np.abs(x).max(0))
            sums[name]["peak"] = top
    return sums


@pytest.mark.parametrize("args", [TINY, REUSE])
def test_equals_one_pass_through_the_whole_model(
    args: ModelArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "draw", lambda p, key: mx.full((len(p), 1), 7))
    given = batches()
    found, expected = collected(random_model(args), given), reference(args, given, 7)
    assert set(found) == set(expected)
    tokens = sum(b.num_tokens for b in given)
    for name, sums in expected.items():
        for key, value in sums.items():
            want = value if key == "peak" else value / tokens
            got = getattr(found[name], key)
            assert np.abs(got - want).max() <= 2e-4 * np.abs(want).max(), (name, key)


def test_inputs_on_disk_give_the_same(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = collected(random_model(REUSE), batches())
    monkeypatch.setattr(statistics, "IN_MEMORY", 0)
    on_disk = collected(random_model(REUSE), batches(), tmp_path)
    assert not list(tmp_path.iterdir())
    for name, found in in_memory.items():
        assert np.array_equal(found.guided, on_disk[name].guided)


def test_the_model_is_left_as_it_was() -> None:
    model = random_model(TINY)
    before = {n: id(m) for n, m in model.named_modules()}
    tokens = mx.array(batches()[0].tokens)
    logits = np.array(model(tokens))
    collected(model, batches())
    assert {n: id(m) for n, m in model.named_modules()} == before
    assert np.array_equal(np.array(model(tokens)), logits)


def test_labels_follow_the_distribution() -> None:
    p = mx.broadcast_to(mx.array([0.1, 0.0, 0.6, 0.3]), (20_000, 4))
    labels = np.array(draw(p, mx.random.key(3)))
    counts = np.bincount(labels.reshape(-1), minlength=4) / len(labels)
    assert np.allclose(counts, [0.1, 0, 0.6, 0.3], atol=0.015)


def test_layers_with_one_input_share_its_moments() -> None:
    found = collected(random_model(TINY), batches(1))
    first = "model.layers.0.self_attn."
    assert found[f"{first}q_proj"].hessian is found[f"{first}v_proj"].hessian
    assert found[f"{first}q_proj"].hessian is not found[f"{first}o_proj"].hessian


def test_kept_statistics_lose_three_digits_at_most(tmp_path: Any) -> None:
    found = {n: s for n, s in collected(random_model(TINY), batches()).items() if ".0." in n}
    file = tmp_path / "deep" / "block.safetensors"
    kept.save(file, found)
    back = kept.load(file)
    assert back is not None and set(back) == set(found)
    for name, s in found.items():
        for key in ("hessian", "guided", "fisher", "peak"):
            a, b = getattr(s, key), getattr(back[name], key)
            assert np.abs(a - b).max() <= 2e-3 * np.abs(a).max(), (name, key)
        assert np.allclose(np.diag(back[name].guided), np.diag(s.guided), rtol=1e-6)
    names = list(found)
    assert back[names[0]].hessian is back[names[0]].hessian
    file.write_bytes(file.read_bytes()[:-50])
    assert kept.load(file) is None
