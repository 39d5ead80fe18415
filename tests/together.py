"""Runs a module or code once as many processes as there are to be have come this far:

    python -m tests.together PLACE COUNT -m MODULE ARGUMENT...
    python -m tests.together PLACE COUNT -c CODE

MLX's ring gives up half a minute after the first process, and the others then wait for ever: here
they have all loaded what takes long before one of them looks for the others.
"""

import os
import runpy
import sys
import time
from importlib import import_module
from pathlib import Path


def main(place: Path, count: int, kind: str, what: str) -> None:
    module = import_module("afm_mlx.parallel" if kind == "-c" else what)
    if not vars(module).get("__path__"):
        del sys.modules[module.__name__]  # what it imported stays: only it is run anew
    (place / str(os.getpid())).touch()
    while len(list(place.iterdir())) < count:
        time.sleep(0.02)
    if kind == "-c":
        exec(compile(what, "<code>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_module(what, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _, place, count, kind, what, *rest = sys.argv
    sys.argv = [what, *rest]
    main(Path(place), int(count), kind, what)
