"""Declarations of feature packages: those that come along, and broken ones."""

from pathlib import Path
from typing import Any

from afm_mlx import checkpoint
from afm_mlx.adapters import formats
from afm_mlx.errors import InputError
from afm_mlx.features import FEATURES
from afm_mlx.packages import build as making
from afm_mlx.packages import packages, read
from afm_mlx.packages.build import chosen
from tests.test_packages import package, run

import pytest


@pytest.mark.slow
def test_shipped_adapters_are_small_and_for_the_default_model() -> None:
    signature = checkpoint.load().signature
    for found in packages().values():
        assert formats.is_adapter(found.folder), f"{found.name} is not trained"
        assert (found.folder / formats.WEIGHTS).stat().st_size < 6e6
        about = formats.read(found.folder).about
        assert (about.base_signature, about.feature) == (signature, found.name)
        card = (found.folder / "README.md").read_text("utf-8")
        assert about.licence == "mit" and "## Measured quality" in card


def test_packages_are_chosen_by_their_names_and_features(tmp_path: Path) -> None:
    for name, feature in (("one", "proofread"), ("two", "summary")):
        package(tmp_path, name, feature)
    folder = tmp_path / "packages"
    assert [p.name for p in chosen([], folder)] == ["one", "two"]
    assert [p.name for p in chosen(["summary"], folder)] == ["two"]
    assert [p.name for p in chosen(["two", "one"], folder)] == ["one", "two"]
    with pytest.raises(InputError, match="there is no package 'poetry': name some of one, two"):
        chosen(["poetry"], folder)
    assert {f for p in chosen([]) for f in p.features} <= FEATURES.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is no TOML"),
        ('features = ["summary"]', "cannot be used"),
        ('name = "x"\nfeatures = ["poetry"]', "there is no feature 'poetry'"),
        ('name = "x"\nfeatures = []', "package without features"),
        ('name = "../x"\nfeatures = ["summary"]', "no name for an adapter"),
        ('name = "x"\nfeatures = ["summary"]\n[lora]\nranks = 4', "ranks"),
        ('name = "x"\nfeatures = ["summary"]\n[lora]\nrank = 0', "rank must be"),
        ('name = "x"\nfeatures = ["summary"]\ntraining = 3', "table"),
    ],
)
def test_broken_declarations_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "feature.toml").write_text(text, "utf-8")
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_package_without_its_data_says_so(tmp_path: Path) -> None:
    one = package(tmp_path, "one")
    one.train.unlink()
    with pytest.raises(InputError, match="restore the package"):
        list(run(tmp_path, [one]))
    two = package(tmp_path, "two")
    two.evaluation.unlink()  # only asked for when all was trained, once
    with pytest.raises(InputError, match="restore the package"):
        next(run(tmp_path, [two]))
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / "nowhere")


def test_what_a_reader_gets_is_plain() -> None:
    table: Any = making.measured({"this adapter": {"a_b": 0.5}, "before": {"a_b": 1.0, "c": 0.25}})
    assert "| a b | 0.500 | 1.000 |" in table and "| c |  | 0.250 |" in table
