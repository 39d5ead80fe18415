"""Palettise a model, see which matrices got how many bits, and talk to the result.

uv run python examples/palettize_a_model.py [TARGET] [FOLDER]

Calibration takes minutes; another TARGET afterwards takes seconds.
"""

import asyncio
import sys
from collections import Counter
from pathlib import Path

from afm_mlx import Engine, LanguageModelSession
from afm_mlx.compress import Compression, Written, compress
from afm_mlx.errors import AFMError
from afm_mlx.quant.calibration import CalibrationOptions
from afm_mlx.quant.quantize import Planned, TargetOptions


def main(target: str = "3.5", folder: str = "quantized") -> None:
    options = Compression(
        out=folder,
        overwrite=True,
        target=TargetOptions(float(target)),
        calibration=CalibrationOptions(tokens=4096),  # enough to try it out
    )
    for event in compress(options):
        match event:
            case Planned():
                print(dict(Counter(event.plan.bits.values())), "matrices by their bits")
                print(f"{event.account.linear:.2f} bits, {event.account.size / 1e6:.0f} MB")
            case Written():
                asyncio.run(ask(event.folder))


async def ask(folder: Path) -> None:
    with Engine.open(str(folder)) as engine:
        session = LanguageModelSession(engine)
        print(await session.respond("Name three rivers in Europe."))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:3])
    except (AFMError, ValueError) as error:
        sys.exit(f"palettize_a_model: {error}")
