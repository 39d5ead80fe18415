"""Plans and profiles that a person saved: where they are, their names, and back."""

import re
from pathlib import Path

from afm_mlx.compress import PLAN
from afm_mlx.errors import InputError, first_line
from afm_mlx.files import write_bytes
from afm_mlx.quant import plan
from afm_mlx.quant.plan import Plan
from afm_mlx.quant.profile import Profile
from afm_mlx.quant.variants import FormatOptions
from afm_mlx.tui.quantize.desk import Desk

_NAME = re.compile(r"[\w.-]+")


def check_name(name: str) -> str:
    """A name for a file.

    Raises:
        InputError: it is none.
    """
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise InputError(f"{name!r} is no name: use letters, digits, dots, - and _")
    return name


def plan_file(folder: Path, name: str) -> Path:
    """Where a plan of that name is kept."""
    return folder / f"{check_name(name)}.toml"


def saved(folder: Path) -> list[str]:
    """Names of the plans, newest first."""
    found = sorted(folder.glob("*.toml"), key=lambda f: -f.stat().st_mtime)
    return [file.stem for file in found]


def make(desk: Desk, signature: str) -> Plan:
    """The plan that a desk is, for the model of that base signature.

    Raises:
        InputError: there is nothing to plan.
    """
    if not desk.bits:
        raise InputError("there are no widths to choose from yet: p works them out")
    form = FormatOptions()
    return Plan(signature, dict(desk.bits), form.group, form.form)


def save(made: Plan, file: Path) -> None:
    """Write a plan.

    Raises:
        InputError: the folder cannot be written.
    """
    write_bytes(file, plan.to_text(made).encode(), new_folder=True)


def profile_file(folder: Path, model: str) -> Path:
    """Where the profile of a model is kept."""
    return folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', model).strip('-.') or 'model'}.json"


def keep(profile: Profile, file: Path) -> None:
    """Write a profile.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{file.parent} cannot be made ({first_line(error)}): check its permissions"
        ) from error
    profile.save(file)


def replaceable(out: Path) -> bool:
    """Whether a model that was written before is there, and not nothing.

    Raises:
        InputError: something else is there.
    """
    if not out.exists():
        return False
    if (out / PLAN).is_file() and (out / "config.json").is_file():
        return True
    raise InputError(f"{out} exists and is no model with a plan: choose another folder")
