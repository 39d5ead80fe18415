"""``python -m afm_mlx.quant`` is ``afm quantize``."""

import sys

from afm_mlx.cli import main

sys.exit(main(["quantize", *sys.argv[1:]]))
