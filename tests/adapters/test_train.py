"""Training an adapter: what it says before it starts, and the same end after any break."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.adapters import formats, lora
from afm_mlx.adapters.adapter import About, LoRAOptions
from afm_mlx.adapters.data import DataOptions
from afm_mlx.adapters.train import Event, Finished, Planned, train_adapter
from afm_mlx.errors import InputError
from afm_mlx.model_args import ModelArgs
from afm_mlx.training import Evaluated, Resumed, Saved, Step, Stopped
from tests.adapters import pupil
from tests.adapters.made import random_adapter
from tests.conftest import random_model
from tests.test_parallel import finish, ring

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.tuner.utils import load_adapters

ROOT = Path(__file__).parents[2]
TOKENS = mx.array([[1, 40, 50, 60, 2]])


def weights(folder: Path) -> dict[str, mx.array]:
    loaded: Any = mx.load(str(folder / "adapters.safetensors"))
    return loaded


def end(events: Iterator[Event]) -> Finished:
    *_, last = events
    assert isinstance(last, Finished)
    return last


# ---- runs


def test_a_run_learns_and_writes_what_mlx_lm_loads(tmp_path: Path) -> None:
    checkpoint = pupil.base()
    before = checkpoint.model(TOKENS)
    found = list(pupil.events(tmp_path, checkpoint, steps=24, patience=0))
    last = found[-1]
    assert isinstance(found[0], Planned) and isinstance(last, Finished)
    assert last.after["loss"] < 0.75 * last.before["loss"]
    first = next(e for e in found if isinstance(e, Evaluated))
    assert first.metrics == pytest.approx(dict(last.before))
    assert mx.array_equal(checkpoint.model(TOKENS), before), "the base is not what it was"

    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        *("adapters.safetensors", "adapter_config.json"),
        *("README.md", "metrics.jsonl", "training.json"),
    }
    adapter = formats.read(out)
    assert adapter.about.base_signature == "tiny" and adapter.about.licence == "other"
    assert adapter.about.metrics["loss"] == last.after["loss"]
    assert len((out / "metrics.jsonl").read_text().splitlines()) == len(found) - 2
    assert str(tmp_path) not in (out / "training.json").read_text(), "whose disk it was is private"
    other = llama.Model(llama.ModelArgs.from_dict(pupil.ARGS.to_dict()))
    other.load_weights(tree_flatten(random_model(pupil.ARGS).parameters()))
    load_adapters(other, str(out))
    lora.put(checkpoint.model, adapter)
    assert mx.allclose(other(TOKENS), checkpoint.model(TOKENS), atol=1e-4)
    assert not mx.allclose(other(TOKENS), before, atol=1e-2)


@pytest.mark.parametrize("broken", [False, True])
def test_what_was_frozen_before_is_frozen_after(tmp_path: Path, broken: bool) -> None:
    # The whole model stayed frozen, and a distillation after it learnt nothing.
    checkpoint = pupil.base()
    checkpoint.model.layers[0].self_attn.freeze()
    checkpoint.model.layers[1].mlp.up_proj.freeze(keys=["weight"])

    def free() -> int:
        return sum(w.size for _, w in tree_flatten(checkpoint.model.trainable_parameters()))

    before = free()
    events: Any = pupil.events(tmp_path, checkpoint, steps=2)
    for event in events:
        if broken and isinstance(event, Step):
            events.close()
    assert free() == before
    assert not tree_flatten(checkpoint.model.layers[0].self_attn.trainable_parameters())
    assert not tree_flatten(checkpoint.model.layers[1].mlp.up_proj.trainable_parameters())


def test_a_closed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Dropout too: what is random follows from seed and step."""
    places = [tmp_path / "whole", tmp_path / "cut"]
    for place in places:
        place.mkdir()
    given = replace(pupil.TRAINING.lora, dropout=0.3)

    def run(place: Path, checkpoint: Any) -> Iterator[Event]:
        options = replace(pupil.training(place), lora=given)
        data = pupil.write(place / "chat.jsonl", pupil.rows())
        return train_adapter(checkpoint, [data], options)

    end(run(places[0], pupil.base()))
    checkpoint = pupil.base()
    before = checkpoint.model(TOKENS)
    events: Any = run(places[1], checkpoint)
    for event in events:
        if isinstance(event, Step) and event.step == 5:
            break
    events.close()
    assert mx.array_equal(checkpoint.model(TOKENS), before)
    assert not (places[1] / "out").exists()
    again = list(run(places[1], checkpoint))
    assert Resumed(4) in again
    one, two = (weights(p / "out") for p in places)
    assert one.keys() == two.keys() and all(mx.array_equal(one[k], two[k]) for k in one)
    # Finished: the same call writes the same again, and trains nothing.
    assert not any(isinstance(e, Step) for e in run(places[1], checkpoint))


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    end(pupil.events(tmp_path / "whole"))
    place = tmp_path / "killed"
    arguments = json.dumps({"place": str(place), "killed_at": 7})
    killed = subprocess.run([sys.executable, "-m", "tests.adapters.pupil", arguments], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    checkpoint = pupil.base()
    before = checkpoint.model(TOKENS)
    found = list(pupil.events(place, checkpoint))
    assert any(isinstance(e, Resumed) and 0 < e.step < 9 for e in found)
    assert mx.array_equal(checkpoint.model(TOKENS), before)
    one, two = weights(tmp_path / "whole" / "out"), weights(place / "out")
    assert one.keys() == two.keys() and all(mx.array_equal(one[k], two[k]) for k in one)


@pytest.mark.slow
def test_two_processes_learn_as_one(tmp_path: Path) -> None:
    for name in ("alone", "both"):
        (tmp_path / name).mkdir()
    place = tmp_path / "both"
    pupil.write(place / "chat.jsonl", pupil.rows())
    command = ["-m", "tests.adapters.pupil", json.dumps({"place": str(place)})]
    with ring(tmp_path, command, command) as processes:
        (code, events, error), (code_b, events_b, error_b) = finish(processes)
    assert (code, code_b) == (0, 0), error + error_b
    assert events[-1]["event"] == "Finished" and events_b[-1]["event"] != "Finished"
    assert not list((place / "cache" / "rank-1").glob("**/*.safetensors"))
    found = [e["loss"] for e in events if e["event"] == "Step"]
    losses = [e.loss for e in pupil.events(tmp_path / "alone") if isinstance(e, Step)]
    assert len(found) == 9 and found == pytest.approx(losses, rel=1e-3)


def test_it_stops_when_nothing_is_gained_and_keeps_the_best(tmp_path: Path) -> None:
    found = list(
        pupil.events(tmp_path, steps=60, learning_rate=0.3, evaluate_every=1, patience=2, clip=9)
    )
    looks = [e for e in found if isinstance(e, Evaluated)]
    stopped = [e for e in found if isinstance(e, Stopped)]
    assert len(stopped) == 1 and stopped[0].step == looks[-1].step < 60
    assert [e.better for e in looks[-2:]] == [False, False]
    last = found[-1]
    assert isinstance(last, Finished)
    assert last.after["loss"] == pytest.approx(min(e.metrics["loss"] for e in looks))
    assert last.after["loss"] < looks[-1].metrics["loss"]


def test_without_held_out_samples_the_last_step_counts(tmp_path: Path) -> None:
    data = pupil.write(tmp_path / "chat.jsonl", pupil.rows())
    given = replace(pupil.training(tmp_path), data=DataOptions(held_out=0))
    found = list(train_adapter(pupil.base(), [data], given))
    assert not any(isinstance(e, Evaluated) for e in found)
    assert isinstance(found[-1], Finished) and not found[-1].after
    saved = mx.load(str(next(tmp_path.glob("cache/notes-*/saves/*9/model.safetensors"))))
    assert isinstance(saved, dict)
    kept = weights(tmp_path / "out")
    assert all(mx.array_equal(kept[k], v.astype(kept[k].dtype)) for k, v in saved.items())


def test_less_memory_is_the_same_run(tmp_path: Path) -> None:
    """Micro-batches and checkpointing change roundings only, so a run goes on with them."""
    for place in ("plain", "small"):
        (tmp_path / place).mkdir()
    end(pupil.events(tmp_path / "plain"))
    changes: dict[str, Any] = {"micro_batch": 1, "gradient_checkpointing": True}
    events: Any = pupil.events(tmp_path / "small", **changes)
    for event in events:
        if isinstance(event, Saved) and event.step == 4:
            break
    events.close()
    found = list(pupil.events(tmp_path / "small"))
    assert Resumed(4) in found
    one, two = weights(tmp_path / "plain" / "out"), weights(tmp_path / "small" / "out")
    assert all(mx.allclose(one[k], two[k], atol=2e-3) for k in one)


def test_it_begins_as_another_adapter(tmp_path: Path) -> None:
    checkpoint = pupil.base()
    start = random_adapter(checkpoint.model, options=LoRAOptions(2), about=About("", "tiny"))
    formats.write(start, tmp_path / "recovery")
    given = replace(pupil.training(tmp_path, steps=1), start=str(tmp_path / "recovery"))
    data = pupil.write(tmp_path / "chat.jsonl", pupil.rows())
    found = list(train_adapter(checkpoint, [data], given))
    first = next(e for e in found if isinstance(e, Evaluated))
    last = found[-1]
    assert isinstance(last, Finished)
    # Figures without the adapter are those of the bare model, not of where training began.
    assert abs(first.metrics["loss"] - last.before["loss"]) > 1e-3
    (tmp_path / "plain").mkdir()
    plain = end(pupil.events(tmp_path / "plain", steps=1))
    assert last.before == pytest.approx(dict(plain.before))
    formats.write(replace(start, about=About("", "other")), tmp_path / "foreign")
    with pytest.raises(InputError, match="adapter of another model"):
        next(train_adapter(checkpoint, [data], replace(given, start=str(tmp_path / "foreign"))))


# ---- before it starts


def test_the_plan_says_what_will_be_done(tmp_path: Path) -> None:
    (plan,) = train_adapter(
        pupil.base(),
        [pupil.write(tmp_path / "chat.jsonl", [*pupil.rows(), {"other": 1}])],
        pupil.training(tmp_path, steps=1000, epochs=2.0),
        plan_only=True,
    )
    assert isinstance(plan, Planned)
    assert (plan.data.samples, plan.data.held_out, len(plan.data.bad)) == (24, 6, 1)
    assert plan.epochs == pytest.approx(2, abs=0.2) and plan.steps < 1000
    assert plan.samples == pytest.approx(4, abs=1.5) and plan.seconds > 0
    assert plan.parameters == 4 * sum(sum(shape) for shape in shapes(pupil.ARGS))
    assert plan.memory.verdict == "fits" and plan.memory.advice == ""
    small = replace(plan.memory, available=plan.memory.needed)
    assert small.verdict == "will not fit" and "micro_batch" in small.advice
    assert replace(plan.memory, available=int(1.2 * plan.memory.needed)).verdict == "tight"
    assert not (tmp_path / "out").exists()


def shapes(args: ModelArgs) -> list[tuple[int, int]]:
    """Inputs and outputs of all linear layers."""
    d, head, f = args.hidden_size, args.head_dim, args.ffn_sizes[0]
    q, kv = args.num_attention_heads * head, args.num_key_value_heads * head
    return args.num_hidden_layers * [(d, q), (d, kv), (d, kv), (q, d), (d, f), (d, f), (f, d)]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another dropout"):
        replace(
            pupil.training(tmp_path, gradient_checkpointing=True), lora=LoRAOptions(dropout=0.1)
        )
    for name in ("", "../away", "a b"):
        with pytest.raises(InputError, match="no name for an adapter"):
            replace(pupil.TRAINING, name=name)
    with pytest.raises(InputError, match="epochs"):
        pupil.training(tmp_path, epochs=0)
    with pytest.raises(InputError, match="no layer is called"):
        data = pupil.write(tmp_path / "chat.jsonl", pupil.rows())
        next(train_adapter(
            pupil.base(), [data], replace(pupil.training(tmp_path), lora=LoRAOptions(keys=("x",)))
        ))  # fmt: skip


def test_the_folder_of_another_run_is_not_replaced(tmp_path: Path) -> None:
    end(pupil.events(tmp_path, steps=1))
    kept = (tmp_path / "out" / "adapters.safetensors").read_bytes()
    with pytest.raises(InputError, match="exists already, and this run did not make it"):
        next(pupil.events(tmp_path, steps=1, learning_rate=1e-4))
    assert (tmp_path / "out" / "adapters.safetensors").read_bytes() == kept
    options = replace(pupil.training(tmp_path, steps=1, learning_rate=1e-4), overwrite=True)
    data = str(tmp_path / "chat.jsonl")
    end(train_adapter(pupil.base(), [data], options))
    assert (tmp_path / "out" / "adapters.safetensors").read_bytes() != kept
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        next(train_adapter(pupil.base(), [data], replace(options, out=str(tmp_path / "home"))))
