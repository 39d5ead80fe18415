"""Whole runs with a tiny teacher: from text to a student that others load."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx import checkpoint
from afm_mlx.distill import run
from afm_mlx.distill.recipe import from_values
from afm_mlx.engine import Engine
from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS
from afm_mlx.session import LanguageModelSession
from afm_mlx.training import Evaluated, Resumed, Step
from tests.conftest import random_model, tiny_tokenizer

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load as mlx_lm_load

TEXT = (
    "Rivers carry minerals from the rocks into the sea. The water rises as vapour and leaves the"
    " salt behind, so that over a long time the sea became salty. Lakes without a way out do the"
    " same.\n"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    args = replace(PRESETS["tiny"], num_hidden_layers=2)
    checkpoint.save(folder / "teacher", random_model(args), tiny_tokenizer(), base="none")
    (folder / "text.txt").write_text(TEXT * 12)
    lines = [
        {"messages": [{"role": "user", "content": f"How salty is sea {i}?"},
                      {"role": "assistant", "content": f"It is {i} times as salty as a lake."}]}
        for i in range(40)
    ]  # fmt: skip
    (folder / "chat.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


def recipe(place: Path, out: str, **values: Any) -> Any:
    common = {
        "teacher": [str(place / "teacher")],
        "data": [str(place / "text.txt")],
        "out": str(place / out),
        "window": 48,
        "held_out": 3,
        "calibration": 8,
        "steps": 6,
        "evaluate_every": 3,
        "save_every": 2,
        "top_k": 32,
        "learning_rate": 1e-3,
    }
    return from_values({**common, **values})


def went(wanted: Any, plan_only: bool = False) -> list[Any]:
    """All events of a run."""
    return list(run.distill(wanted, plan_only))


def losses(events: list[Any]) -> list[float]:
    return [e.loss for e in events if isinstance(e, Step)]


def test_from_text_to_student(place: Path) -> None:
    """The whole way; then once more from its end, and once more longer."""
    wanted = recipe(place, "whole", test=str(place / "text.txt"), filters=["exact", "personal"])
    events = went(wanted)
    kinds = [type(e).__name__ for e in events]
    assert kinds.index("Planned") < kinds.index("Measured") < kinds.index("Step")
    assert len(losses(events)) == 6 and kinds[-1] == "Finished"
    end = events[-1]
    found = end.results
    assert found.student_parameters < found.teacher_parameters
    assert found.of_pruned.kl > 0 and found.of_teacher.agreement == 1
    assert found.of_teacher.test_perplexity and found.of_distilled.test_perplexity
    assert len(found.samples) == 2 and all(s.distilled is not None for s in found.samples)
    report = end.report.read_text()
    assert "perplexity" in report and "seen" in report
    assert (place / "whole" / "filters.md").exists()
    assert (place / "whole" / "student" / "README.md").read_text().startswith("---")

    again = went(wanted)
    assert not losses(again) and type(again[-1]).__name__ == "Finished"
    assert again[-1].results.signature == found.signature

    longer = went(replace(wanted, training=replace(wanted.training, steps=8)))
    assert [e.step for e in longer if isinstance(e, Resumed)] == [6]
    assert len(losses(longer)) == 2


def test_the_student_loads_everywhere(place: Path) -> None:
    went(recipe(place, "loads"))
    folder = str(place / "loads" / "student")
    loaded = checkpoint.load(folder, dtype=mx.float32)
    model, tokenizer, *_ = mlx_lm_load(folder)
    tokens = mx.array([tokenizer.encode("The sea")])
    assert np.allclose(np.array(loaded.model(tokens)), np.array(model(tokens)), atol=1e-4)
    assert set(loaded.model.args.ffn_sizes) == {256}

    async def ask() -> str:
        with Engine.open(folder) as engine:
            return await LanguageModelSession(engine).respond("Why?")

    assert isinstance(asyncio.run(ask()), str)


def test_interrupted_runs_compute_the_same(place: Path) -> None:
    """Left at step 4, a resumed run has the losses of one that was never left."""
    whole = losses(went(recipe(place, "a")))
    first: list[float] = []
    for event in run.distill(recipe(place, "b")):
        if isinstance(event, Step):
            first.append(event.loss)
            if len(first) == 5:
                break
    rest = went(recipe(place, "b"))
    assert [e.step for e in rest if isinstance(e, Resumed)] == [4]
    assert first[:4] + losses(rest) == whole
    lines = (place / "b" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(x)["event"] for x in lines].count("resumed") == 1


def test_other_settings_need_another_folder(place: Path) -> None:
    went(recipe(place, "other", steps=1))
    with pytest.raises(InputError, match="other settings .ffn.: choose another"):
        went(recipe(place, "other", steps=1, ffn=0.25))


def test_learnt_masks(place: Path) -> None:
    events = went(recipe(place, "masks", learned_masks=3, steps=2))
    assert [e.done for e in events if isinstance(e, run.Progress) and e.stage == "masks"] == [
        1,
        2,
        3,
    ]
    assert "soft top-k" in events[-1].results.pruning


def test_a_named_student_learns_from_a_live_teacher(place: Path) -> None:
    """Another width and depth; states are compared, so the teacher runs along."""
    args = replace(PRESETS["tiny"], hidden_size=64, head_dim=16, num_hidden_layers=4)
    checkpoint.save(
        place / "small", random_model(args, 5), tiny_tokenizer(), base="none", overwrite=True
    )
    checkpoint.save(
        place / "deep", random_model(PRESETS["tiny"]), tiny_tokenizer(), base="none", overwrite=True
    )
    wanted = recipe(
        place, "named", teacher=[str(place / "deep")], student=str(place / "small"), top_k=0,
        hidden_weight=0.1, relation_weight=0.1, loss="jsd", steps=3,
    )  # fmt: skip
    events = went(wanted)
    steps = [e for e in events if isinstance(e, Step)]
    assert {"jsd", "hidden", "relations", "agreement"} <= steps[0].parts.keys()
    assert not list((place / "named").glob("logits*"))


def test_conversations_committee_and_plain_cross_entropy(place: Path) -> None:
    teacher = str(place / "teacher")
    data = [f"{place / 'chat.jsonl'}:3", f"{place / 'text.txt'}:1"]
    both = recipe(place, "both", teacher=[teacher, teacher], data=data, window=128, steps=2)
    assert len(losses(went(both))) == 2
    alone = recipe(place, "alone", loss="cross-entropy", steps=40, learning_rate=3e-3)
    found = [e.metrics["perplexity"] for e in run.distill(alone) if isinstance(e, Evaluated)]
    assert found[-1] < 0.5 * found[0]


def test_only_the_plan(place: Path) -> None:
    events = went(recipe(place, "planned", target_params="0.4M"), plan_only=True)
    plan = events[-1].plan
    assert plan.verdict == "fits" and plan.needed == sum(plan.memory.values())
    assert not (place / "planned" / "start").exists()


def test_bad_lines_stop_or_are_skipped(place: Path) -> None:
    bad = place / "bad.jsonl"
    good = json.dumps({"text": TEXT * 4})
    bad.write_text("\n".join([good] * 5 + ["{broken"]))
    with pytest.raises(InputError, match="bad.jsonl:6"):
        went(recipe(place, "bad", data=[str(bad)]))
    events = went(recipe(place, "bad", data=[str(bad)], skip_bad=True), True)
    assert any("bad.jsonl:6" in note for note in events[-1].notes)


def test_a_teacher_of_another_vocabulary(place: Path) -> None:
    """Words of two letters for the teacher, single ones for the student."""
    from tests.distill.other import pair_tokenizer

    other = pair_tokenizer(TEXT)
    args = replace(PRESETS["tiny"], num_hidden_layers=2, vocab_size=len(other.wrapper._tokenizer))
    checkpoint.save(place / "pairs", random_model(args, 2), other, base="none", overwrite=True)
    wanted = {"teacher": [str(place / "pairs")], "student": str(place / "teacher"), "steps": 4}
    with pytest.raises(InputError, match="set top_k to 0"):
        went(recipe(place, "cross", **wanted))
    events = went(recipe(place, "cross", **wanted, top_k=0, label_weight=0.2))
    steps = [e for e in events if isinstance(e, Step)]
    assert {"spans", "cross-entropy"} <= steps[0].parts.keys()
    assert steps[-1].loss < steps[0].loss
    assert events[-1].results.of_distilled.kl is None


def test_answers_of_the_teacher_are_learnt(place: Path) -> None:
    """The task stage: prompts alone, answered, scored, kept and trained on."""
    prompts = place / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(8)))
    more = {
        "data": [], "prompts": str(prompts), "least_reward": 0.0, "candidates": 2,
        "answer_tokens": 12, "cut_short": True, "window": 64, "held_out": 1, "steps": 2,
        "loss": "cross-entropy",
    }  # fmt: skip
    with pytest.raises(InputError, match="run it without plan"):
        went(recipe(place, "asked", **more), plan_only=True)
    events = went(recipe(place, "asked", **more))
    asked = [e for e in events if isinstance(e, run.Progress) and "answers" in e.stage]
    assert asked[-1].done == 8 and len(losses(events)) == 2
    lines = (place / "asked" / "answers" / "answers.jsonl").read_text().splitlines()
    assert all(json.loads(x)["messages"][-1]["role"] == "assistant" for x in lines)
    again = went(recipe(place, "asked", **more))
    assert not losses(again)


def test_the_student_learns_from_its_own_answers(place: Path) -> None:
    """GKD: without the cache, and never on what is held out."""
    chat = {"data": [str(place / "chat.jsonl")], "window": 128, "on_policy": 0.5, "own_tokens": 8}
    with pytest.raises(InputError, match="set top_k to 0"):
        recipe(place, "own", **chat)
    wanted = recipe(place, "own", **chat, top_k=0, loss="reverse-kl", steps=3)
    assert len(losses(went(wanted))) == 3


def test_half_precision_as_on_gpus(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bfloat16 teacher and bfloat16 arithmetic on float32 weights, in every stage."""
    monkeypatch.setattr(checkpoint, "default_dtype", lambda: mx.bfloat16)
    more = {"mixed_precision": True, "learned_masks": 2, "gradient_checkpointing": True}
    events = went(recipe(place, "half", **more, label_weight=0.1))
    assert all(np.isfinite(losses(events))) and len(losses(events)) == 6
    scores = events[-1].results
    assert scores.of_distilled.perplexity < 0.8 * scores.of_pruned.perplexity
    weights: Any = mx.load(str(place / "half" / "student" / "model.safetensors"))
    assert {w.dtype for w in weights.values()} == {mx.bfloat16}
    inside = {"top_k": 0, "hidden_weight": 0.1, "relation_weight": 0.1, "steps": 2}
    assert all(np.isfinite(losses(went(recipe(place, "half2", mixed_precision=True, **inside)))))


def test_folders_with_other_things_are_left_alone(place: Path) -> None:
    """The run's student must not replace a model that happens to lie there."""
    folder = place / "mine"
    checkpoint.save(folder / "student", random_model(PRESETS["tiny"]), tiny_tokenizer(), base="x")
    with pytest.raises(InputError, match="has models in it"):
        went(recipe(place, "mine"))
    with pytest.raises(InputError, match="is a file"):
        went(recipe(place, "text.txt"))


def test_changed_data_are_another_run(place: Path) -> None:
    """Held-out text and cached logits belong to the data that the run began with."""
    text = place / "changing.txt"
    text.write_text(TEXT * 12)
    wanted = recipe(place, "changed", data=[str(text)], steps=1)
    went(wanted)
    text.write_text(TEXT * 13)
    with pytest.raises(InputError, match="the data changed"):
        went(wanted)


def test_a_wrong_setting_can_be_corrected(place: Path) -> None:
    """What fails before the student is cut leaves the folder free for another try."""
    for wrong, says in (
        ({"top_k": 999}, "not below the vocabulary"),
        ({"window": 4096}, "positions"),
        ({"test": str(place / "none.txt")}, "none.txt"),
        ({"layers": 1, "ffn": 1.0}, "too few"),
    ):
        with pytest.raises(InputError, match=says):
            went(recipe(place, "corrected", **wrong))
    assert losses(went(recipe(place, "corrected", steps=1)))


def test_a_quantised_student_cannot_be_trained(place: Path) -> None:
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    model, config = load_model(place / "teacher")
    model, config = quantize_model(model, config, 32, 4)
    folder = place / "packed"
    save_model(folder, model)
    save_config(config, folder / "config.json")
    tiny_tokenizer().save(folder)
    with pytest.raises(InputError, match="quantised"):
        went(recipe(place, "q", student=str(folder)))


@pytest.mark.slow
def test_the_embedded_default(tmp_path: Path, gguf_path: Path) -> None:
    """The run without options, on very little text."""
    little = {"out": str(tmp_path / "run"), "window": 64, "held_out": 4, "calibration": 4}
    events = went(from_values({**little, "steps": 4, "learning_rate": 1e-4}))
    found = events[-1].results
    assert (found.teacher_parameters, found.student_parameters) == (134_515_008, 94_701_888)
    assert found.of_teacher.perplexity < found.of_pruned.perplexity
    assert found.of_distilled.kl < found.of_pruned.kl
    assert found.in_mlx_lm and "WikiText" in (tmp_path / "run" / "report.md").read_text()
