"""The adapters on this machine as the app lists them: read from their descriptions alone.

No matrix is read, so a list of many is there at once, and no array is made. What is damaged inside
shows when an adapter is loaded.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afm_mlx.adapters import formats
from afm_mlx.adapters.adapter import About
from afm_mlx.adapters.store import Store
from afm_mlx.errors import InputError, first_line
from afm_mlx.packages import packages
from afm_mlx.packages.use import RECORD

from safetensors import SafetensorError, safe_open


@dataclass(frozen=True)
class Installed:
    """An adapter on this machine.

    Attributes:
        about: what its folder says of it.
        rank: of its matrices; 0 if its folder does not say.
        nbytes: of its weights on disk.
        built: made from a feature package, not by a person.
        shipped: came along with the package.
        problem: why it cannot be used, if so.
    """

    name: str
    folder: Path
    about: About = About()
    rank: int = 0
    nbytes: int = 0
    built: bool = False
    shipped: bool = False
    problem: str = ""

    def fits(self, signature: str) -> bool:
        """Whether it is for the model of that base signature, or says nothing of one."""
        return not self.problem and self.about.base_signature in ("", signature)


def listed(home: Path, shipped: Path) -> list[Installed]:
    """Adapters in ``home`` by name, then those of the packages in ``shipped``."""
    own = [_read(name, folder, False) for name, folder in Store.find(home).items()]
    known = packages(shipped).values()
    return own + [_read(p.name, p.folder, True) for p in known if formats.is_adapter(p.folder)]


def find(name: str, home: Path, shipped: Path) -> Path:
    """Folder of an adapter by its name, or by its own path.

    Raises:
        InputError: there is none.
    """
    own = Store.find(home)
    if name in own:
        return own[name]
    for folder in (shipped / name, Path(name)):
        if formats.is_adapter(folder):
            return folder
    raise InputError(f"there is no adapter {name!r} any more: choose another")


def _read(name: str, folder: Path, shipped: bool) -> Installed:
    built = (folder / RECORD).is_file()
    try:
        config = json.loads((folder / formats.CONFIG).read_text(encoding="utf-8"))
        file = folder / formats.WEIGHTS
        about: Any = config
        if not file.is_file():
            file = folder / formats.PEFT_WEIGHTS
            with safe_open(file, framework="numpy") as opened:
                about = json.loads((opened.metadata() or {}).get("about", "{}"))
        rank = config.get("r") or config.get("lora_parameters", {}).get("rank") or 0
        size = file.stat().st_size
        return Installed(name, folder, _about(about), int(rank), size, built, shipped)
    except (OSError, SafetensorError, *formats.SENSELESS) as error:
        problem = f"damaged ({first_line(error)}): train or import it again"
        return Installed(name, folder, built=built, shipped=shipped, problem=problem)


def _about(given: Mapping[str, Any]) -> About:
    texts = ("feature", "base_signature", "data_hash", "licence")
    metrics = {str(k): float(v) for k, v in (given.get("metrics") or {}).items()}
    return About(metrics=metrics, **{name: str(given.get(name) or "") for name in texts})
