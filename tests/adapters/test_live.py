"""Adapters on a running engine: named by requests, loaded and unloaded from any thread."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx import checkpoint
from afm_mlx.adapters.adapter import About, LoRAOptions
from afm_mlx.adapters.formats import RECOVERY, write
from afm_mlx.adapters.lora import put
from afm_mlx.adapters.store import BARE
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.compress import Compression, compress
from afm_mlx.engine import Engine
from afm_mlx.errors import InputError
from afm_mlx.generation import GenerationOptions, PrefixCache, Request, generate
from afm_mlx.model import PRESETS
from afm_mlx.quant.calibration import CalibrationOptions
from afm_mlx.quant.quantize import TargetOptions
from afm_mlx.quant.variants import FormatOptions
from afm_mlx.recover import TRAINING, Recovery, RecoveryData, recover
from afm_mlx.session import LanguageModelSession
from tests.adapters.made import random_adapter
from tests.conftest import random_model, tiny_checkpoint, tiny_tokenizer

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tuner.utils import load_adapters

PROMPT = list(range(3, 43))
NAMES = ["one", "two", "three"]


def request(adapter: str | None = None, count: int = 12, keep: int = 0) -> Request:
    options = GenerationOptions(maximum_response_tokens=count)
    return Request(PROMPT, options, adapter=adapter, keep=keep)


def logits(c: Checkpoint) -> np.ndarray[Any, Any]:
    return np.array(c.model(mx.array([PROMPT])))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(NAMES):
        made = random_adapter(random_model(PRESETS["tiny"]), name, seed=seed)
        write(made, folder / name)
    return folder


@pytest.fixture
def loaded(engine: Engine, folder: Path) -> Engine:
    for name in NAMES:
        engine.load_adapter(folder / name).result()
    return engine


def text(engine: Engine, asked: Request) -> str:
    return list(engine.generate(asked))[-1].text


@pytest.fixture(scope="module")
def expected(folder: Path) -> Iterator[dict[str | None, str]]:
    """Answers of models that never had another adapter."""
    answers: dict[str | None, str] = {}
    for name in (*NAMES, None):
        with Engine(tiny_checkpoint) as engine:
            if name is not None:
                engine.load_adapter(folder / name).result()
            answers[name] = text(engine, request(name))
    assert len(set(answers.values())) == 4
    yield answers


def test_requests_name_their_adapter(loaded: Engine, expected: dict[str | None, str]) -> None:
    for name in ("one", None, "three", "two", None, "one", "one", BARE):
        assert text(loaded, request(name)) == expected[name or None], name


def test_caches_of_another_adapter_are_never_used(
    loaded: Engine, expected: dict[str | None, str]
) -> None:
    # The same prompt, kept: its keys and values are those of one adapter only.
    seen = []
    for name in ("one", "two", None, "one", "two", None):
        last = list(loaded.generate(request(name, keep=30)))[-1]
        assert last.text == expected[name], name
        seen.append(last.metrics.cached_tokens)
    assert seen == [0, 0, 0, 30, 30, 30]


def test_newer_adapter_of_a_name_finds_no_old_cache(
    loaded: Engine, folder: Path, expected: dict[str | None, str]
) -> None:
    assert text(loaded, request("one", keep=30)) == expected["one"]
    loaded.load_adapter(folder / "two", "one").result()
    last = list(loaded.generate(request("one", keep=30)))[-1]
    assert (last.text, last.metrics.cached_tokens) == (expected["two"], 0)


def test_running_request_keeps_its_adapter(
    loaded: Engine, folder: Path, expected: dict[str | None, str]
) -> None:
    run = loaded.generate(request("one", 200))
    items = iter(run)
    next(items)
    swapped = loaded.load_adapter(folder / "two", "one")  # waits for its turn
    other = loaded.generate(request("three"))
    whole = list(items)[-1].text
    swapped.result()
    assert list(other)[-1].text == expected["three"]
    with Engine(tiny_checkpoint) as fresh:
        fresh.load_adapter(folder / "one").result()
        assert whole == text(fresh, request("one", 200))


def test_queued_request_is_served_before_its_adapter_goes(
    loaded: Engine, expected: dict[str | None, str]
) -> None:
    first = loaded.generate(request("two", 100))
    queued = loaded.generate(request("one"))
    gone = loaded.unload_adapter("one")
    late = loaded.generate(request("one"))
    assert list(queued)[-1].text == expected["one"]
    gone.result()
    with pytest.raises(InputError, match="no adapter 'one'"):
        list(late)
    assert len(list(first)) > 1
    assert [x.name for x in loaded.adapters().result()] == ["three", "two"]


def test_cancelled_request_leaves_the_next_its_own(
    loaded: Engine, expected: dict[str | None, str]
) -> None:
    run = loaded.generate(request("one", 500))
    for _ in run:
        break
    assert text(loaded, request()) == expected[None]
    assert text(loaded, request("two")) == expected["two"]


def test_jobs_find_the_model_without_the_last_adapter(loaded: Engine) -> None:
    # Measuring after a chat would otherwise measure the chat's adapter.
    plain = loaded.call(logits).result()
    text(loaded, request("one"))
    assert np.array_equal(loaded.call(logits).result(), plain)
    (streamed,) = loaded.stream(lambda c, _: iter([logits(c)]))
    assert np.array_equal(streamed, plain)


def test_job_that_trains_an_adapter_spoils_nothing(
    loaded: Engine, expected: dict[str | None, str]
) -> None:
    def train(c: Checkpoint) -> None:
        put(c.model, random_adapter(random_model(PRESETS["tiny"]), "stray", seed=9))

    loaded.call(train).result()
    assert text(loaded, request()) == expected[None]
    loaded.call(train).result()
    assert text(loaded, request("two")) == expected["two"]


def test_many_threads(loaded: Engine, folder: Path, expected: dict[str | None, str]) -> None:
    found: list[tuple[str, str]] = []

    def chat(name: str) -> None:
        for _ in range(4):
            found.append((name, text(loaded, request(name))))

    def load() -> None:
        for _ in range(4):
            loaded.load_adapter(folder / "three", "other").result()
            loaded.unload_adapter("other").result()

    threads = [threading.Thread(target=chat, args=(n,)) for n in NAMES]
    threads.append(threading.Thread(target=load))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    assert all(answer == expected[name] for name, answer in found)


def test_refused_adapters_leave_the_engine_as_it_was(
    loaded: Engine, folder: Path, tmp_path: Path, expected: dict[str | None, str]
) -> None:
    small = replace(PRESETS["tiny"], hidden_size=64)
    write(random_adapter(random_model(small)), tmp_path / "small")
    with pytest.raises(InputError, match="for another model"):
        loaded.load_adapter(tmp_path / "small", "one").result()
    with pytest.raises(InputError, match="no adapter"):
        loaded.load_adapter(tmp_path / "none").result()
    with pytest.raises(InputError, match="load it first"):
        list(loaded.generate(request("four")))
    assert text(loaded, request("one")) == expected["one"]
    assert [x.name for x in loaded.adapters().result()] == sorted(NAMES)
    assert loaded.adapters().result()[0].folder == folder / "one"


def test_batch_on_the_engine(loaded: Engine, expected: dict[str | None, str]) -> None:
    names = ["two", None, "one", "three", "one"]
    run = loaded.generate_batch([request(n) for n in names])
    last = {index: snapshot for index, snapshot in run}
    assert [last[i].text for i in range(5)] == [expected[n] for n in names]
    assert all(s.finish_reason == "length" for s in last.values())
    assert text(loaded, request("two")) == expected["two"]

    async def collect() -> dict[int, str]:
        found = {}
        async for index, snapshot in loaded.generate_batch([request("one"), request("two")]):
            found[index] = snapshot.text
        return found

    assert asyncio.run(collect()) == {0: expected["one"], 1: expected["two"]}
    with pytest.raises(InputError, match="no adapter 'four'"):
        list(loaded.generate_batch([request("four")]))


def test_session_with_an_adapter(loaded: Engine) -> None:
    async def ask(adapter: str | None) -> list[str]:
        session = LanguageModelSession(loaded, adapter=adapter)
        short = GenerationOptions(maximum_response_tokens=8)
        answers = [await session.respond("hello", options=short)]
        session.adapter = "two"
        answers.append(await session.respond("again", options=short))
        return answers

    first, second = asyncio.run(ask("one")), asyncio.run(ask(None))
    assert first[0] != second[0]
    with pytest.raises(InputError, match="no adapter 'four'"):
        asyncio.run(ask("four"))


def saved(folder: Path, signature: str | None = None) -> Path:
    """A model folder with a recovery adapter."""
    args = PRESETS["tiny"]
    own = checkpoint.save(folder, random_model(args), tiny_tokenizer(), base="tests")
    about = About(base_signature=signature or own)
    write(random_adapter(random_model(args), about=about, seed=5), folder / RECOVERY)
    return folder


def test_recovery_adapter_is_in_unless_told_otherwise(tmp_path: Path, folder: Path) -> None:
    path = saved(tmp_path / "model")
    small = checkpoint.load(str(path))
    plain = list(generate(small.model, small.tokenizer, request(), PrefixCache()))[-1].text
    with Engine.open(str(path)) as engine:
        recovered = text(engine, request())
        assert recovered != plain
        assert text(engine, request(RECOVERY)) == recovered
        assert text(engine, request(BARE)) == plain
        assert [(x.name, x.default) for x in engine.adapters().result()] == [(RECOVERY, True)]
        engine.load_adapter(folder / "one").result()
        assert text(engine, request("one")) not in (recovered, plain)
        assert text(engine, request()) == recovered


def test_recovery_adapter_of_other_weights_is_refused(tmp_path: Path) -> None:
    # Tables that were trained anew make it wrong, and silently worse.
    path = saved(tmp_path / "model", "other")
    with Engine.open(str(path)) as engine, pytest.raises(InputError, match="another model"):
        list(engine.generate(request()))


def test_signature_binds_an_adapter(tmp_path: Path) -> None:
    path = saved(tmp_path / "model")
    own = checkpoint.load(str(path)).signature
    made = random_adapter(random_model(PRESETS["tiny"]), options=LoRAOptions(2))
    for name, signature in (("right", own), ("wrong", "0" * 64)):
        about = About(base_signature=signature)
        write(replace(made, about=about), tmp_path / name)
    with Engine.open(str(path)) as engine:
        assert engine.load_adapter(tmp_path / "right").result().loaded
        with pytest.raises(InputError, match="base signature 000000000000"):
            engine.load_adapter(tmp_path / "wrong").result()


def test_recovery_adapter_as_recovery_writes_it(tmp_path: Path) -> None:
    args = replace(PRESETS["tiny"], num_hidden_layers=1, intermediate_size=128)
    checkpoint.save(tmp_path / "source", random_model(args), tiny_tokenizer(), base="tests")
    (tmp_path / "text.txt").write_text("the boat leaves at nine and the band plays . " * 99)
    data, source, small = (str(tmp_path / n) for n in ("text.txt", "source", "small"))
    calibration = CalibrationOptions(data=(data,), tokens=256, window=64)
    made = Compression(
        source,
        out=small,
        format=FormatOptions(choices=(2,)),
        target=TargetOptions(2.5),
        calibration=calibration,
        cache=str(tmp_path / "cache"),
    )
    list(compress(made))
    given = Recovery(
        small,
        source,
        data=RecoveryData(data=(data,), window=64, held_out=0.2),
        training=replace(TRAINING, steps=6, evaluate_every=6),
    )
    list(recover(given, "adapter", tmp_path / "small" / RECOVERY, tmp_path / "work"))
    theirs = checkpoint.load(small)
    plain = logits(theirs)
    load_adapters(theirs.model, str(tmp_path / "small" / RECOVERY))
    theirs.model.eval()
    with Engine.open(small) as engine:
        assert np.abs(engine.call(logits).result() - logits(theirs)).max() < 1e-3
        assert np.abs(plain - logits(theirs)).max() > 1e-2
        (found,) = engine.adapters().result()
    assert (found.name, found.options.rank, found.default) == (RECOVERY, 16, True)
    assert found.about.base_signature == theirs.signature
