"""Bind the shipped adapters to a palettised form of their model, to see how they do there.

uv run python tests/bench/palettised_adapters.py QUANTIZED FOLDER [--no-recovery]
uv run afm eval features DATA --model QUANTIZED --adapters FOLDER

An adapter belongs to the weights it was trained on; this script says that it belongs to the
palettised ones too, which is what the evaluation then measures. Where QUANTIZED has a recovery
adapter, each is joined with it: both products are added, as one adapter of the sum of their ranks.
``afm adapters build --base QUANTIZED`` trains them anew instead.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from afm_mlx import checkpoint
from afm_mlx.adapters import formats
from afm_mlx.adapters.adapter import Adapter, LoRAOptions
from afm_mlx.errors import AFMError
from afm_mlx.packages.package import packages

import mlx.core as mx
import tyro


@dataclass(frozen=True)
class Options:
    quantized: tyro.conf.Positional[Path]
    folder: tyro.conf.Positional[Path]
    recovery: bool = True
    """Join each with the recovery adapter of QUANTIZED."""


def joined(first: Adapter, second: Adapter) -> Adapter:
    """The adapter whose change is the sum of both, ``[K, r1 + r2]`` by ``[r1 + r2, N]`` a layer;
    for the rest it is as ``second``."""
    rank = first.options.rank + second.options.rank
    weights = {}
    for place in sorted({*first.places, *second.places}):
        given = [(a.places[place], a.options) for a in (first, second) if place in a.places]
        a = mx.concatenate([m.lora_a.astype(mx.float32) for m, _ in given], axis=1)
        b = mx.concatenate([m.lora_b.astype(mx.float32) * o.multiplier for m, o in given])
        lacking = rank - a.shape[1]
        weights[f"{place}.lora_a"] = mx.pad(a, [(0, 0), (0, lacking)])
        weights[f"{place}.lora_b"] = mx.pad(b, [(0, lacking), (0, 0)])
    keys = formats.keys_of(p.rpartition(".")[0] for p in weights)
    return Adapter(second.name, weights, LoRAOptions(rank, 1.0, keys=keys), second.about)


def main(options: Options) -> None:
    base = checkpoint.load(str(options.quantized))
    found = options.quantized / formats.RECOVERY
    recovery = formats.read(found) if options.recovery and formats.is_adapter(found) else None
    for package in packages().values():
        adapter = formats.read(package.folder, package.name)
        if recovery is not None:
            adapter = joined(recovery, adapter)
        about = replace(adapter.about, feature=package.name, base_signature=base.signature)
        target = options.folder / package.name
        formats.write(Adapter(package.name, adapter.weights, adapter.options, about), target)
        print(target)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except AFMError as error:
        sys.exit(f"palettised_adapters: {error}")
