"""What an adapter learns by: mlx-lm's loss and gradients, on any base."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx import training
from afm_mlx.adapters import formats, lora
from afm_mlx.adapters.adapter import LoRAOptions
from afm_mlx.adapters.data import DataOptions, Lessons, prepare
from afm_mlx.adapters.objective import ROWS, Answers, HeldOut
from afm_mlx.data.packing import Batch
from afm_mlx.model import Model
from afm_mlx.model_args import ModelArgs
from afm_mlx.quant.affine import quantize
from afm_mlx.quant.layers import make_ready, quantized_layer
from afm_mlx.quant.palette import palettize
from afm_mlx.saves import Saves
from afm_mlx.training import Step
from tests.adapters import pupil
from tests.conftest import number, random_model, tiny_tokenizer

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import llama
from mlx_lm.tuner.trainer import default_loss
from mlx_lm.tuner.utils import linear_to_lora_layers

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
