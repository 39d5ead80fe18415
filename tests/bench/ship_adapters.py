"""Put built adapters into the packages that are shipped.

uv run python -m tests.bench.ship_adapters OUT

OUT is the folder that ``afm adapters build --adapters OUT`` wrote to. Only what a package needs is
copied: matrices, configuration, card, and what it was made of.
"""

from pathlib import Path

from afm_mlx import load
from afm_mlx.adapters import formats
from afm_mlx.files import write_bytes
from afm_mlx.packages import SHIPPED, packages
from afm_mlx.packages.build import CARD
from afm_mlx.packages.use import RECORD

import tyro
from tyro.conf import Positional

LARGEST = 6_000_000
"""Bytes of an adapter."""


def main(out: Positional[Path], to: Path = SHIPPED) -> None:
    signature = load().signature
    for name, package in packages().items():
        made = out / f"{name}-{signature[:8]}"
        if not formats.is_adapter(made):
            print(f"{name}: not built")
            continue
        size = (made / formats.WEIGHTS).stat().st_size
        assert size <= LARGEST, f"{made} has {size} bytes"
        assert formats.read(made).about.base_signature == signature
        for file in (formats.WEIGHTS, formats.CONFIG, CARD, RECORD):
            write_bytes(to / package.folder.name / file, (made / file).read_bytes())
        print(f"{name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    tyro.cli(main)
