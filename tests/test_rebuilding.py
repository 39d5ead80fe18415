"""Feature packages built again: damaged adapters, and records that no longer tell what they did."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.adapters import formats
from afm_mlx.errors import InputError
from afm_mlx.features import FEATURES, PROOFREAD
from afm_mlx.packages.build import CARD, Built
from afm_mlx.packages.use import RECORD
from tests.test_packages import Judge, kinds, package, run, steps

import pytest


def built(place: Path) -> Path:
    """Folder of a small adapter, just built."""
    (found,) = (e for e in run(place, [package(place, "one")]) if isinstance(e, Built))
    return found.folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((folder / RECORD).read_text("utf-8"))
    change(record)
    (folder / RECORD).write_text(json.dumps(record), "utf-8")


def damage(folder: Path) -> None:
    weights = folder / formats.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:900])


@pytest.mark.parametrize("force", [False, True])
def test_a_damaged_one_is_made_again(tmp_path: Path, force: bool) -> None:
    # Its record was whole, so it was called up to date, and with force the build died at its end.
    folder = built(tmp_path)
    weights = (folder / formats.WEIGHTS).read_bytes()
    damage(folder)
    events = list(run(tmp_path, [package(tmp_path, "one")], force=force))
    assert kinds(events) == ["Begun", "Built"]
    assert (folder / formats.WEIGHTS).read_bytes() == weights
    assert kinds(list(run(tmp_path, [package(tmp_path, "one")]))) == ["UpToDate"]


def test_a_damaged_one_counts_as_none_for_other_data(tmp_path: Path) -> None:
    folder, judge = built(tmp_path), Judge()
    damage(folder)
    other = package(tmp_path, "one", rate=4e-3)
    last = list(run(tmp_path, [other], judge=judge))[-1]
    assert isinstance(last, Built) and last.replaced and last.folder == folder
    assert judge.asked[1:] == [None], "it is compared with the model alone"
    assert "the model with examples" in (folder / CARD).read_text("utf-8")
    formats.read(folder)


def test_a_shipped_one_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    folder, one = built(tmp_path), package(tmp_path, "one")
    for file in folder.iterdir():
        if file.name in (formats.CONFIG, formats.WEIGHTS, RECORD, CARD):
            (one.folder / file.name).write_bytes(file.read_bytes())
        file.unlink()
    folder.rmdir()
    damage(one.folder)
    assert kinds(list(run(tmp_path, [one]))) == ["Begun", "Built"]
    formats.read(folder)


@pytest.mark.parametrize(
    ("change", "measured"),
    [
        (lambda record: None, False),
        (lambda record: record.pop("figures"), True),
        (lambda record: record.update(figures=3), True),
        (lambda record: record.pop("asked"), True),
        (lambda record: record.update(asked="otherwise"), True),
        (lambda record: record.update(rows="others"), True),
        (lambda record: record.update(recipe=0), True),
    ],
)
def test_figures_are_kept_where_all_is_as_it_was(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], measured: bool
) -> None:
    folder, judge = built(tmp_path), Judge()
    edit(folder, change)
    worse = package(tmp_path, "one", rate=1e-9)
    list(run(tmp_path, [worse], judge=judge))
    assert (folder in judge.asked) == measured


def test_a_feature_asked_otherwise_is_measured_again_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, judge = built(tmp_path), Judge()
    other = replace(PROOFREAD, best_of=PROOFREAD.best_of + 1)
    monkeypatch.setitem(FEATURES, "proofread", other)
    assert kinds(list(run(tmp_path, [package(tmp_path, "one")]))) == ["UpToDate"]
    list(run(tmp_path, [package(tmp_path, "one", rate=1e-9)], judge=judge))
    assert folder in judge.asked


def test_a_lost_card_is_written_anew(tmp_path: Path) -> None:
    folder = built(tmp_path)
    (folder / CARD).unlink()
    list(run(tmp_path, [package(tmp_path, "one", rate=1e-9)]))
    assert "a newer one, not taken" in (folder / CARD).read_text("utf-8")


def test_what_is_in_the_way_is_named_before_training(tmp_path: Path) -> None:
    (tmp_path / "home" / "one-tiny").mkdir(parents=True)
    events = run(tmp_path, [package(tmp_path, "one")])
    assert steps([next(events)]) == 0
    with pytest.raises(InputError, match="is in the way"):
        next(events)
