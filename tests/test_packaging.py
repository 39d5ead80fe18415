"""What holds for the tree as a whole: packages, floors, names, sizes."""

import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_package_list_matches_the_folders() -> None:
    folders = {"afm_mlx": ROOT / "afm_mlx"} | {
        f"afm_mlx.{name}": ROOT / name for name in ("adapters", "quant", "tui")
    }
    found = set()
    for package, folder in folders.items():
        for init in folder.rglob("__init__.py"):
            if not any(parent.is_symlink() for parent in init.parents):
                inner = init.parent.relative_to(folder).parts
                found.add(".".join((package, *inner)))
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("name", ["adapters", "quant", "tui"])
def test_links_lead_to_the_folders(name: str) -> None:
    assert (ROOT / "afm_mlx" / name).resolve() == ROOT / name


def test_demo_data_is_packaged() -> None:
    assert resources.files("afm_mlx.cli").joinpath("demo.json").is_file()


def test_nothing_but_the_app_imports_textual() -> None:
    code = (
        "import sys, afm_mlx, afm_mlx.session, afm_mlx.features, afm_mlx.adapters\n"
        "import afm_mlx.quant, afm_mlx.cli.work, afm_mlx.cli.demo, afm_mlx.cli.doctor\n"
        "import afm_mlx.cli.chat, afm_mlx.cli.bench, afm_mlx.cli.models\n"
        "assert 'textual' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_public_names_are_there() -> None:
    import afm_mlx

    for name in afm_mlx.__all__:
        assert getattr(afm_mlx, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = afm_mlx.nothing
    assert afm_mlx.__version__ == PROJECT["project"]["version"]


def test_lock_names_versions_only() -> None:
    for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines():
        assert re.fullmatch(r"[a-z0-9-]+==[\w.+]+( ; .*)?", line), line


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_are_short_and_say_how_to_run(example: Path) -> None:
    text = example.read_text("utf-8")
    assert len(text.splitlines()) <= 80
    assert f"uv run python examples/{example.name}" in text
