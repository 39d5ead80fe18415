"""Recipes: every setting has one name, and mistakes are named."""

from pathlib import Path
from typing import Any

from afm_mlx.distill.markdown import toml
from afm_mlx.distill.recipe import (
    Recipe,
    differences,
    from_values,
    parse_setting,
    read_toml,
    settings,
)
from afm_mlx.errors import InputError

import pytest


def test_names_are_unique() -> None:
    """Tables are flattened, so two settings of one name would shadow each other."""
    assert len(settings()) == len(set(settings()))


def test_round_trip_through_toml(tmp_path: Path) -> None:
    recipe = from_values(
        {"teacher": ["a", "b"], "steps": 7, "learning_rate": 1, "filters": ["exact"], "ffn": 0.25}
    )
    assert (recipe.training.steps, recipe.training.learning_rate) == (7, 1.0)
    assert (recipe.teacher, recipe.data.filters, recipe.prune.ffn) == (("a", "b"), ("exact",), 0.25)
    path = tmp_path / "recipe.toml"
    path.write_text(toml(recipe.to_dict()))
    assert from_values(read_toml(path)) == recipe


def test_defaults_are_those_of_the_dataclasses() -> None:
    assert from_values({}) == Recipe()


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("steps=100", ("steps", 100)),
        ("learning_rate=3e-4", ("learning_rate", 3e-4)),
        ("mixed_precision=true", ("mixed_precision", True)),
        ('data=["a.txt", "b"]', ("data", ["a.txt", "b"])),
        ("student=owner/name", ("student", "owner/name")),
    ],
)
def test_settings_are_toml(text: str, wanted: tuple[str, Any]) -> None:
    assert parse_setting(text) == wanted


@pytest.mark.parametrize(
    "values, says",
    [
        ({"stepz": 1}, "did you mean steps"),
        ({"steps": "many"}, "must be int"),
        ({"steps": 1.5}, "must be int"),
        ({"skip_bad": 1}, "must be true or false|must be bool"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": -1.0}, "above 0"),
        ({"hidden_weight": 1.0}, "set top_k to 0"),
        ({"held_out": 0}, "at least 1 window"),
        ({"loss": "kl"}, "loss"),
        ({"filters": ["exakt"]}, "exakt"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        from_values(values)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="check its name"):
        read_toml(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("steps = = 1")
    with pytest.raises(InputError, match="no TOML"):
        read_toml(bad)


def test_what_may_change_when_a_run_goes_on() -> None:
    before = Recipe().to_dict()
    assert not differences(before, from_values({"steps": 999, "seconds": 5.0}).to_dict())
    assert differences(before, from_values({"ffn": 0.3, "seed": 1}).to_dict()) == ["ffn", "seed"]
