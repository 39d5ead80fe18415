"""Trainings and fields of the adapters screen, without the screen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.adapters import formats
from afm_mlx.errors import InputError
from afm_mlx.events import Evaluated, Saved, Step
from afm_mlx.features import FEATURES, Change, NotificationStack, Text, Thread
from afm_mlx.tui.adapters import training as trainer_module
from afm_mlx.tui.adapters.files import serves
from afm_mlx.tui.adapters.order import FIELDS, defaults, order, paths
from afm_mlx.tui.adapters.trainer import progress_lines
from afm_mlx.tui.adapters.training import NOTHING_KEPT, Watched, first_prompt
from afm_mlx.tui.adapters.values import value_for
from tests.adapters import pupil
from tests.tui.test_adapters_screen import base

import pytest


def test_a_run_that_saved_nothing_leaves_no_adapter(tmp_path: Path) -> None:
    """Stopped before its first look the run ends, and says so."""
    data = pupil.write(tmp_path / "chat.jsonl", pupil.rows(24))
    wanted = order(
        {**defaults(), "data": data, "name": "notes", "prompt": "Box 1?"}, "", tmp_path / "out"
    )
    taken: list[Any] = []
    job = trainer_module.training(wanted)(base(), lambda: any(isinstance(e, Step) for e in taken))
    for event in job:
        taken.append(event)
    assert taken[-1].reason == NOTHING_KEPT and not (tmp_path / "out").exists()


def test_samples_on_the_way_change_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    """An answer in training mode, or at the cost of random numbers, would change what is learnt."""
    monkeypatch.setattr(trainer_module, "SAMPLE_TOKENS", 3)
    data = pupil.write(tmp_path / "chat.jsonl", pupil.rows(24))
    losses = []
    for name, prompt in (("a", ""), ("b", "Box 1?")):
        values = {**defaults(), "data": data, "name": name, "prompt": prompt, "epochs": "0.7"}
        wanted = order(values, "", tmp_path)
        dropout = replace(wanted.options.lora, rank=2, dropout=0.5)
        given = replace(
            wanted.options,
            lora=dropout,
            training=replace(wanted.options.training, evaluate_every=2, save_every=2),
        )
        events = list(
            trainer_module.training(replace(wanted, options=given))(base(), lambda: False)
        )
        losses.append([e.loss for e in events if isinstance(e, Step)])
        assert any(isinstance(e, trainer_module.Sampled) for e in events) == bool(prompt)
    assert losses[0] == losses[1]


def test_a_prompt_that_is_too_long_ends_no_run(tmp_path: Path) -> None:
    # The first sample of a file may be one that training leaves out for its length.
    data = pupil.write(tmp_path / "chat.jsonl", pupil.rows(8))
    values = {**defaults(), "data": data, "name": "n", "prompt": "x" * 9000, "epochs": "0.5"}
    wanted = order(values, "", tmp_path)
    events = list(trainer_module.training(wanted)(base(), lambda: False))
    said = [e.text for e in events if isinstance(e, trainer_module.Sampled)]
    assert said and all("too many for this model" in text for text in said)
    assert formats.is_adapter(tmp_path / "n")


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("summary", "a text", Text("a text")),
        ("summary", '{"text": "no JSON for those who write it"}', None),
        ("change", "make it short\nA long text.", Change("A long text.", "make it short")),
        ("smart-reply", '{"messages": [{"from": "Ana", "text": "hi"}]}', None),
        ("smart-reply", "Ana: at seven?\nno colon", None),
        ("notification-summary", "Mail\nAna: the table moved\nBen: ok", None),
    ],
)
def test_text_becomes_input(name: str, text: str, expected: Any) -> None:
    feature = FEATURES[name]
    found = value_for(feature, text)
    assert isinstance(found, feature.input) and (expected is None or found == expected)
    if isinstance(found, Thread):
        assert found.messages[0].sender == "Ana"
    if isinstance(found, NotificationStack):
        assert found.app == "Mail" and [n.title for n in found.notifications] == ["Ana", "Ben"]


@pytest.mark.parametrize(
    "name, text",
    [
        ("summary", " "),
        ("change", "only an instruction"),
        ("notification-summary", "Mail"),
        ("smart-reply", ""),
        ("smart-reply", "{broken"),
    ],
)
def test_text_that_is_no_input(name: str, text: str) -> None:
    with pytest.raises(InputError):
        value_for(FEATURES[name], text)


def test_fields_become_options(tmp_path: Path) -> None:
    values = dict.fromkeys(FIELDS, "") | defaults() | {"data": "'a b.jsonl' ~/c.jsonl", "name": "n"}
    made = order(values, "proofread", tmp_path)
    assert made.data == ("a b.jsonl", str(Path.home() / "c.jsonl"))
    assert made.options.folder == tmp_path / "n" and made.options.feature == "proofread"
    usual = type(made.options)("n")
    assert made.options.training == usual.training and made.options.lora == usual.lora
    with pytest.raises(InputError, match="close it"):
        paths("'open")


def test_the_prompt_is_the_first_one_of_the_samples(tmp_path: Path) -> None:
    data = pupil.write(tmp_path / "chat.jsonl", [{"bad": 1}, *pupil.rows(2)])
    assert [m.content for m in first_prompt((data,))] == ["What is box 0?"]
    (tmp_path / "text.txt").write_text("just text")
    assert first_prompt((str(tmp_path / "text.txt"),)) == ()


def test_an_adapter_serves_its_features(tmp_path: Path) -> None:
    folder = tmp_path / "notifications"
    folder.mkdir()
    (folder / "feature.toml").write_text(
        'name = "notifications"\nfeatures = ["priority", "summary"]\n'
    )
    assert serves("notifications", tmp_path) == ("priority", "summary")
    assert serves("summary", tmp_path) == ("summary",)
    assert serves("", tmp_path) == serves("unheard of", tmp_path) == ()


def test_progress_in_words() -> None:
    watched = Watched()
    assert "queued" in progress_lines("notes", watched, True, False)[0]
    watched.steps = 10
    for step in range(1, 6):
        watched.see(Step(step, 100 * step, 2.0 * step, 3.0, 1e-3, 1.0, 50.0, {}))
    watched.see(trainer_module.Peak(412_000_000))
    watched.see(Evaluated(5, 500, 10.0, {"loss": 2.5}, True))
    watched.see(Evaluated(6, 500, 10.0, {"loss": 2.9}, False))
    watched.see(Saved(5, True))
    assert watched.left == 10.0 and watched.best == (5, 2.5)
    first, second = progress_lines("notes", watched, True, False)
    assert "step 5 of 10 █████░░░░░ · 10.0 s left · 50 tok/s · peak 412 MB" in first
    assert second == "best 2.500 at step 5 · esc stops and keeps the best"
    assert "stopping" in progress_lines("notes", watched, True, True)[1]
    assert progress_lines("notes", watched, False, False)[0] == "✗ notes is not written"
