"""Two adapters as one, for the benchmark of shipped adapters on palettised weights."""

from afm_mlx.adapters.adapter import Adapter, LoRAOptions
from tests.bench.palettised_adapters import joined

import mlx.core as mx
import numpy as np


def adapter(name: str, places: dict[str, tuple[int, int]], options: LoRAOptions) -> Adapter:
    random = np.random.default_rng(len(name))
    weights = {}
    for place, (inputs, outputs) in places.items():
        weights[f"{place}.lora_a"] = mx.array(random.normal(size=(inputs, options.rank)))
        weights[f"{place}.lora_b"] = mx.array(random.normal(size=(options.rank, outputs)))
    return Adapter(name, weights, options)


def change(one: Adapter, place: str) -> np.ndarray:
    if place not in one.places:
        return np.zeros(())
    a, b, _ = one.places[place]
    return one.options.multiplier * np.array(a) @ np.array(b)


def test_the_change_is_the_sum_of_both() -> None:
    up, down = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"
    first = adapter("recovery", {up: (6, 5), down: (5, 6)}, LoRAOptions(3, 2.0))
    second = adapter("own", {down: (5, 6)}, LoRAOptions(4, 8.0, rank_stabilised=True))
    both = joined(first, second)
    assert both.options.rank == 7 and both.name == "own"
    assert set(both.places) == {up, down}
    for place in both.places:
        np.testing.assert_allclose(
            change(both, place), change(first, place) + change(second, place), rtol=1e-5
        )
