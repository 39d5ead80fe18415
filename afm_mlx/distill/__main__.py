"""``python -m afm_mlx.distill`` is ``afm distill``."""

import sys

from afm_mlx.cli import main

sys.exit(main(["distill", *sys.argv[1:]]))
