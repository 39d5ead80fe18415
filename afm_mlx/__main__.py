"""``python -m afm_mlx`` is the command line ``afm``."""

import sys

from afm_mlx.cli import main

sys.exit(main())
