"""Adapters for tests: strong enough that greedy answers change."""

from afm_mlx.adapters.adapter import About, Adapter, LoRAOptions
from afm_mlx.adapters.lora import prepare, strip, taken
from afm_mlx.model import Model

import mlx.core as mx


def random_adapter(
    model: Model,
    name: str = "one",
    options: LoRAOptions | None = None,
    about: About | None = None,
    seed: int = 1,
) -> Adapter:
    """An adapter with random matrices for ``model``, which stays as it was."""
    options = options or LoRAOptions(rank=4)
    prepare(model, options)
    shapes = {n: w.shape for n, w in taken(model).items()}
    lengths = {n: w for n, w in taken(model).items() if n.endswith(".m")}
    strip(model)
    model.unfreeze()
    keys = mx.random.split(mx.random.key(seed), len(shapes))
    weights = {
        n: (0.1 * mx.random.normal(shape, key=key)).astype(mx.float16)
        for (n, shape), key in zip(shapes.items(), keys, strict=True)
    }
    for n, length in lengths.items():
        weights[n] = length * (1 + weights[n].astype(mx.float32))
    mx.eval(weights)
    return Adapter(name, weights, options, about or About())
