"""The README in an adapter's folder."""

from collections.abc import Mapping, Sequence

from afm_mlx import __version__
from afm_mlx.adapters.adapter import Adapter
from afm_mlx.adapters.data import DataReport


def card(
    adapter: Adapter,
    base: str,
    data: DataReport,
    steps: int,
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> str:
    """What the adapter is, what it learnt from, and how it does on the samples held out."""
    options, about = adapter.options, adapter.about
    kind = "DoRA" if options.dora else "LoRA"
    blocks = "all" if options.num_layers < 0 else f"the last {options.num_layers}"
    rows: Sequence[tuple[str, str]] = [
        ("feature", about.feature or "none in particular"),
        ("base signature", f"`{about.base_signature}`"),
        ("kind", f"{kind}, rank {options.rank}, scale {options.multiplier:g}, {blocks} blocks"),
        ("trained on", f"{data.samples} samples, {data.tokens} tokens, {steps} steps"),
        *((f"held-out {name}", f"{before[name]:.3f}, now {after[name]:.3f}") for name in after),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""---
license: {about.licence}
base_model: {base}
library_name: mlx
tags: [lora]
---

# {adapter.name}

An adapter for `{base}`, made with afm-mlx {__version__}. It works with that model alone.

| | |
|---|---|
{table}

mlx-lm loads the folder too, with `--adapter-path`.
"""
