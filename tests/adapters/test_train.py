"""Training an adapter: mlx-lm's loss and gradients, any base, the same end after any break."""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx import training
from afm_mlx.adapters import formats, lora
from afm_mlx.adapters.adapter import About, LoRAOptions
from afm_mlx.adapters.data import DataOptions, Lessons, prepare
from afm_mlx.adapters.memory import estimate
from afm_mlx.adapters.objective import ROWS, Answers, HeldOut
from afm_mlx.adapters.train import Event, Finished, Planned, train_adapter
from afm_mlx.data.packing import Batch, Batches, Windows
from afm_mlx.data.tokens import TokenStore
from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS, Model
from afm_mlx.model_args import ModelArgs
from afm_mlx.quant.affine import quantize
from afm_mlx.quant.layers import make_ready, quantized_layer
from afm_mlx.quant.palette import palettize
from afm_mlx.saves import Saves
from afm_mlx.training import Evaluated, Resumed, Saved, Step, Stopped, TrainingOptions, train
from tests.adapters import pupil
from tests.adapters.made import random_adapter
from tests.conftest import number, random_model, tiny_tokenizer
from tests.test_parallel import finish, ring

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import llama
from mlx_lm.tuner.trainer import default_loss
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

ROOT = Path(__file__).parents[2]
TOKENS = mx.array([[1, 40, 50, 60, 2]])
FOUR = replace(pupil.ARGS, num_hidden_layers=4)


@pytest.fixture
def lessons(tmp_path: Path) -> Lessons:
    data = pupil.write(tmp_path / "chat.jsonl", pupil.rows())
    options = DataOptions(held_out=0.2)
    return prepare([data], options, tiny_tokenizer(), tmp_path / "tokens", 1024)


def randomized(model: nn.Module) -> None:
    """Give all matrices that learn numbers of their own: fresh ones have gradients of zero."""
    shapes: Any = tree_flatten(model.trainable_parameters())
    keys = mx.random.split(mx.random.key(3), len(shapes))
    made = [
        (n, 0.1 * mx.random.normal(w.shape, key=k)) for (n, w), k in zip(shapes, keys, strict=True)
    ]
    model.load_weights(sorted(made), strict=False)


def gradients(answers: Answers, batch: Any) -> tuple[float, dict[str, mx.array]]:
    """Mean loss, and the gradients of it by name."""

    def loss(parameters: Any) -> mx.array:
        answers.model.update(parameters)
        total, count, _ = answers(batch)
        return total / count

    parameters = answers.model.trainable_parameters()
    value, found = mx.value_and_grad(loss)(parameters)
    answers.model.update(parameters)
    flat: Any = tree_flatten(found)
    mx.eval(value, flat)
    return number(value), dict(flat)


def close(a: dict[str, mx.array], b: dict[str, mx.array], tolerance: float = 1e-5) -> bool:
    largest = max(number(mx.abs(x).max()) for x in b.values())
    return a.keys() == b.keys() and largest > 0 and all(
        number(mx.abs(a[k] - b[k]).max()) < tolerance * largest for k in b
    )  # fmt: skip


def weights(folder: Path) -> dict[str, mx.array]:
    loaded: Any = mx.load(str(folder / "adapters.safetensors"))
    return loaded


def end(events: Iterator[Event]) -> Finished:
    *_, last = events
    assert isinstance(last, Finished)
    return last


# ---- loss and gradients


def test_loss_and_gradients_are_those_of_mlx_lm(lessons: Lessons) -> None:
    """There each sample has a row, padded, and all logits exist; here samples share windows."""
    options = LoRAOptions(4, 3.0)
    model = random_model(pupil.ARGS)
    lora.prepare(model, options)
    batch = lessons.train.batch(lessons.train.numbers[0][:3])
    assert batch.segments.max() > 1, "some window must hold several samples"
    other = llama.Model(llama.ModelArgs.from_dict(pupil.ARGS.to_dict()))
    other.load_weights(tree_flatten(random_model(pupil.ARGS).parameters()))
    other.freeze()
    keys = list(formats.keys_of(n.rpartition(".")[0] for n in lora.taken(model)))
    linear_to_lora_layers(other, 2, {"rank": 4, "scale": 3.0, "dropout": 0.0, "keys": keys})
    randomized(model)
    other.load_weights(list(lora.taken(model).items()), strict=False)

    assert np.any(batch.parents != batch.segments), "samples must share their beginning"
    samples = []
    for row in (batch_row(batch, i) for i in range(len(batch.tokens))):
        for parent, s in sorted(set(zip(row.parents, row.segments, strict=True)) - {(0, 0)}):
            own = (row.segments == s) | (row.segments == parent)
            if row.learn[own].any():
                samples.append((row.tokens[own], row.learn[own]))
    tokens = np.zeros((len(samples), 1 + max(len(t) for t, _ in samples)), np.int32)
    spans = []
    for row, (ids, learn) in enumerate(samples):
        tokens[row, : len(ids)] = ids
        at = np.flatnonzero(learn) + 1
        assert (np.diff(at) == 1).all()
        spans.append(
            [int(at[0]), int(at[-1])]
        )  # mlx-lm's own lengths would add the padding token behind

    def loss(model: nn.Module) -> mx.array:
        return default_loss(model, mx.array(tokens), mx.array(spans))[0]

    expected, theirs = nn.value_and_grad(other, loss)(other)
    found, ours = gradients(Answers(model), batch)
    assert found == pytest.approx(number(expected), rel=1e-5)
    assert close(ours, dict(tree_flatten(theirs)))


@pytest.mark.parametrize(
    "options",
    [LoRAOptions(4), LoRAOptions(4, dora=True), LoRAOptions(4, keys=("model.embed_tokens",))],
)
def test_gradients_compiled_whole_are_the_same(lessons: Lessons, options: LoRAOptions) -> None:
    model = random_model(pupil.ARGS)
    lora.prepare(model, options)
    randomized(model)
    answers = Answers(model)
    batch = lessons.train.batch(lessons.train.numbers[0][:3])
    loss, wanted = gradients(answers, batch)
    taken: list[Any] = []

    class Watched(training._Run):
        def step(self, batch: Batch, number: int) -> Any:
            taken.extend(self._sums(batch))
            return super().step(batch, number)

    run = Watched(model, answers, pupil.STEPS, Saves(Path("nowhere"), writes=False), None)
    run.step(batch, 0)
    found, figures = taken
    assert number(figures["loss"]) / number(figures["count"]) == pytest.approx(loss, rel=1e-5)
    assert close({k: v / figures["count"] for k, v in found.items()}, wanted)


def batch_row(batch: Any, i: int) -> Any:
    return type(batch)(
        *(getattr(batch, n)[i] for n in ("tokens", "segments", "learn", "window", "parents"))
    )


def test_only_positions_with_a_loss_reach_the_head(lessons: Lessons) -> None:
    model = random_model(pupil.ARGS)
    lora.prepare(model, LoRAOptions(4))
    batch = lessons.train.batch(lessons.train.numbers[0][:3])
    tokens, places, at, labels, real = Answers(model).inputs(batch)
    count = int(batch.learn.sum())
    hidden = Answers(model).hidden(tokens, places, at)
    assert hidden.shape == (-(-count // ROWS) * ROWS, pupil.ARGS.hidden_size)
    assert np.array(real).tolist() == [1.0] * count + [0.0] * (len(labels) - count)
    assert np.array(labels)[:count].tolist() == batch.labels[batch.learn].tolist()
    nothing = replace(batch, learn=np.zeros_like(batch.learn))
    total, none, _ = Answers(model)(nothing)
    assert (number(total), number(none)) == (0, 0)


@pytest.mark.parametrize("form", ["palette", "affine"])
def test_low_bit_bases_learn_as_their_dense_weights(
    form: str, lessons: Lessons, tmp_path: Path
) -> None:
    args = replace(pupil.ARGS, intermediate_size=128)

    def made(dense: bool) -> Model:
        model = random_model(args)
        layers = []
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear):
                few: Any = palettize if form == "palette" else quantize
                small = few(np.array(layer.weight), [3])[3]
                low_bit = quantized_layer(small)
                layer.weight = mx.array(small.weight())
                layers.append((name, layer if dense else low_bit))
        model.update_modules(tree_unflatten(layers))
        model.set_dtype(mx.float32)
        make_ready(model, 0)
        return model

    batch = lessons.train.batch(lessons.train.numbers[0][:3])
    found = []
    for dense in (True, False):
        model = made(dense)
        lora.prepare(model, LoRAOptions(4))
        randomized(model)
        found.append(gradients(Answers(model), batch))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert close(found[1][1], found[0][1])
    losses = []
    for dense in (True, False):
        (tmp_path / str(dense)).mkdir()
        events = pupil.events(tmp_path / str(dense), pupil.base(made(dense)))
        losses.append([e.loss for e in events if isinstance(e, Step)])
    assert len(losses[0]) == 9 and losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("args", [FOUR, replace(FOUR, num_kv_reuse_layers=2)])
def test_frozen_layers_are_computed_once(args: ModelArgs, lessons: Lessons) -> None:
    options = LoRAOptions(4, num_layers=1)
    model = random_model(args)
    lora.prepare(model, options)
    randomized(model)
    batch = lessons.train.batch(lessons.train.numbers[0][:3])
    answers, plain, homeless = Answers(model), Answers(model), Answers(model, states=0)
    plain.first = 0
    assert answers.first == (1 if args.num_kv_reuse_layers else 3)
    expected = gradients(plain, batch)
    for found in (answers, answers, homeless):  # first computed, then from memory, then never kept
        loss, by_name = gradients(found, batch)
        assert loss == pytest.approx(expected[0], rel=1e-5) and close(by_name, expected[1])
    assert len(answers._kept) == 3 and not homeless._kept
    # What is kept may not depend on the windows beside it, or a resumed run would differ.
    alone = Answers(model)
    gradients(alone, lessons.train.batch(lessons.train.numbers[0][:1]))
    window = int(lessons.train.numbers[0][0])
    assert mx.array_equal(alone._kept[window], answers._kept[window])


def test_an_adapter_of_the_table_learns(lessons: Lessons) -> None:
    """The head changes with it then; gradients by finite differences."""
    model = random_model(pupil.ARGS)
    lora.prepare(model, LoRAOptions(2, keys=("model.embed_tokens",)))
    randomized(model)
    answers = Answers(model)
    batch = lessons.train.batch(lessons.train.numbers[0][:1])
    _, found = gradients(answers, batch)
    name = "model.embed_tokens.lora_b"
    slot = model.model.embed_tokens
    direction = mx.random.normal(slot.lora_b.shape, key=mx.random.key(0))
    sides = []
    for sign in (1, -1):
        before = slot.lora_b
        slot.lora_b = before + sign * 1e-3 * direction
        total, count, _ = answers(batch)
        sides.append(number(total / count))
        slot.lora_b = before
    slope = (sides[0] - sides[1]) / 2e-3
    assert number(mx.sum(found[name] * direction)) == pytest.approx(slope, rel=1e-2)


def test_held_out_figures(lessons: Lessons) -> None:
    """Beside plain cross-entropy over all positions."""
    model = random_model(pupil.ARGS)
    windows = lessons.held_out
    assert windows is not None
    lora.prepare(model, LoRAOptions(4))
    found = HeldOut(Answers(model), windows)()
    losses, right = [], []
    for n in windows.numbers[1].tolist():
        batch = windows.batch([n])
        assert batch.parents is not None
        for segment in set(batch.segments[batch.learn].tolist()):
            at = batch.segments[0] == segment
            at = at | (batch.segments[0] == batch.parents[0][at][0])
            logits = model(mx.array(batch.tokens[:, at]))[0]
            losses += np.array(
                nn.losses.cross_entropy(logits, mx.array(batch.labels[0][at]))
            )[batch.learn[0][at]].tolist()  # fmt: skip
            same = np.array(mx.argmax(logits, -1)) == batch.labels[0][at]
            right += same[batch.learn[0][at]].tolist()
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["accuracy"] == pytest.approx(np.mean(right))


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
    command = ["-m", "tests.adapters.pupil", json.dumps({"place": str(place)})]
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("step") == 7:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
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
        (code, events, error), (code_b, events_b, error_b) = finish(processes, 120)
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


FACTOR = 1.5
"""How far the estimate of memory may be from what MLX measures, on CPUs."""


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="fitted to CPUs")
@pytest.mark.parametrize(
    ("changes", "window", "windows", "options", "training"),
    [
        ({"num_hidden_layers": 6}, 192, 2, LoRAOptions(8), {}),
        ({"intermediate_size": 128, "num_attention_heads": 8}, 256, 2, LoRAOptions(8), {}),
        ({"vocab_size": 16384, "num_hidden_layers": 2}, 64, 2, LoRAOptions(64), {}),
        ({"num_hidden_layers": 8}, 128, 4, LoRAOptions(8, num_layers=3), {}),
        ({"num_hidden_layers": 8}, 128, 4, LoRAOptions(8), {"micro_batch": 1}),
        ({"num_hidden_layers": 8}, 128, 4, LoRAOptions(8), {"gradient_checkpointing": True}),
    ],
)
def test_memory_is_estimated(
    changes: dict[str, Any], window: int, windows: int, options: LoRAOptions, training: Any
) -> None:
    """A formula that forgets a part (attention scores, logits, moments) is off by more."""
    mx.clear_cache()
    nothing = mx.get_active_memory()
    model = random_model(replace(PRESETS["tiny"], **changes))
    lora.prepare(model, options)
    store = TokenStore(
        np.full(2 * windows * window, 7, np.uint32),
        np.tile(np.arange(window) >= window - 24, 2 * windows),
        np.arange(2 * windows + 1) * window,
        np.zeros(2 * windows, np.bool_),
    )
    packed = Windows.of(store, window)
    given = TrainingOptions(steps=2, batch_size=windows, **training)
    report: Any = type("Report", (), {"window": window})
    answers = Answers(model)
    found = estimate(answers, given, Lessons("", packed, None, report), windows)
    mx.reset_peak_memory()
    batches = Batches([packed], [1.0], windows)
    list(train(model, answers, batches, given, Saves(Path("nowhere"), writes=False)))
    measured = mx.get_peak_memory() - nothing
    assert 1 / FACTOR < found.needed / measured < FACTOR, (found.parts, measured)


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
