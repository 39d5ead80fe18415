"""A feature package: its declaration, read from ``feature.toml``, and its data.

    name = "notifications"
    features = ["notification-summary", "priority"]
    [lora]          # LoRAOptions
    rank = 8
    [data]          # DataOptions
    [training]      # AdapterSteps

Evaluation rows are measured on and never trained on: they are no part of :attr:`Package.data`.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from afm_mlx.adapters import library
from afm_mlx.adapters.adapter import LoRAOptions
from afm_mlx.adapters.data import DataOptions
from afm_mlx.adapters.train import AdapterSteps
from afm_mlx.errors import InputError, first_line
from afm_mlx.features import FEATURES

SHIPPED = Path(library.__file__).parent / "features"
"""The packages that come along."""
DECLARATION = "feature.toml"
TRAIN, HELD_OUT, EVALUATION = "train.jsonl", "held_out.jsonl", "eval.jsonl"

T = TypeVar("T")


@dataclass(frozen=True)
class Package:
    """What a feature's adapter learns, and how.

    Attributes:
        features: names of the features that it serves, of :data:`afm_mlx.features.FEATURES`.
        licence: of its adapters, as the Hub names it.
    """

    folder: Path
    name: str
    features: tuple[str, ...]
    licence: str = "other"
    lora: LoRAOptions = field(default_factory=LoRAOptions)
    data: DataOptions = field(default_factory=DataOptions)
    training: AdapterSteps = field(default_factory=AdapterSteps)

    def __post_init__(self) -> None:
        library.check_name(self.name)
        unknown = sorted(set(self.features) - FEATURES.keys())
        if unknown or not self.features:
            said = f"feature {unknown[0]!r}" if unknown else "package without features"
            raise InputError(f"there is no {said}: name some of {', '.join(FEATURES)}")

    @property
    def train(self) -> Path:
        """Conversations to learn."""
        return self.folder / TRAIN

    @property
    def held_out(self) -> Path:
        """Conversations that training looks at: of rows that nothing was made of to learn."""
        return self.folder / HELD_OUT

    @property
    def evaluation(self) -> Path:
        """Rows to measure on, as people wrote them."""
        return self.folder / EVALUATION


def packages(folder: Path = SHIPPED) -> dict[str, Package]:
    """The packages in ``folder`` by name."""
    found = [read(file.parent) for file in sorted(folder.glob(f"*/{DECLARATION}"))]
    return {package.name: package for package in found}


def read(folder: Path) -> Package:
    """The package in ``folder``.

    Raises:
        InputError: its declaration cannot be read, or says something that cannot be.
    """
    path = folder / DECLARATION
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({first_line(error)}): check its name") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is no TOML ({first_line(error)}): correct that place") from error
    tables = {
        "lora": _made(LoRAOptions, values.pop("lora", {}), path),
        "data": _made(DataOptions, values.pop("data", {}), path),
        "training": _made(AdapterSteps, values.pop("training", {}), path),
    }
    return _made(Package, {**values, **tables, "folder": folder}, path)


def _made(kind: type[T], values: Any, path: Path) -> T:
    """A ``kind`` with these values; lists are tuples there."""
    if not isinstance(values, Mapping):
        raise InputError(f"{path} has a value where it needs a table: correct that place")
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except TypeError as error:
        said = first_line(error).removeprefix(f"{kind.__name__}.__init__() ")
        raise InputError(f"{path} cannot be used ({said}): correct that place") from error
