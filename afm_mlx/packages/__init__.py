"""Feature packages: what a feature's adapter learns, how, and which adapter serves a feature.

A package is a folder with ``feature.toml`` (features it serves, shape of the adapter, options of
its training), ``train.jsonl``, ``held_out.jsonl`` and ``eval.jsonl``. Those that come along lie in
``afm_mlx/adapters/features``, with adapters for the default model where there are any;
:mod:`afm_mlx.packages.build` makes adapters of them for other models.
"""

from afm_mlx.packages.package import SHIPPED, Package, packages, read
from afm_mlx.packages.use import find, load

__all__ = ["SHIPPED", "Package", "find", "load", "packages", "read"]
