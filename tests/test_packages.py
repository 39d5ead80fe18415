"""Feature packages: read, built, compared, found for their model, and asked without examples."""

import asyncio
import json
import os
import warnings
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.adapters import formats, lora
from afm_mlx.adapters.adapter import About, LoRAOptions
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.engine import Engine
from afm_mlx.errors import InputError
from afm_mlx.features import KEY_POINTS, PROOFREAD, Text, respond
from afm_mlx.features.run import make_request
from afm_mlx.generation import Request
from afm_mlx.model import Model
from afm_mlx.packages import Package, find, load, read
from afm_mlx.packages import build as making
from afm_mlx.packages.build import Begun, BuildEvent, Built, Trained, UpToDate, build
from afm_mlx.packages.judge import judge
from afm_mlx.packages.use import RECORD
from afm_mlx.training import Resumed, Step
from tests.adapters import pupil
from tests.adapters.made import random_adapter
from tests.conftest import number, random_model, tiny_tokenizer

import mlx.core as mx
import pytest

WIDE = replace(pupil.ARGS, max_position_embeddings=4096)
"""For prompts with examples, a token a letter."""
DECLARED = """
name = "{name}"
features = ["{feature}"]
[lora]
rank = 4
num_layers = 1
[training]
steps = 6
epochs = 99.0
learning_rate = {rate}
evaluate_every = 3
save_every = 2
"""


def package(place: Path, name: str, feature: str = "proofread", rate: float = 5e-3) -> Package:
    """A small package; its rows differ from those of others."""
    folder = place / "packages" / name
    folder.mkdir(parents=True, exist_ok=True)
    declared = DECLARED.format(name=name, feature=feature, rate=rate)
    (folder / "feature.toml").write_text(declared, "utf-8")
    rows = pupil.rows(24)
    for row in rows:
        row["messages"][0]["content"] += name
    pupil.write(folder / "train.jsonl", rows[:18])
    pupil.write(folder / "held_out.jsonl", rows[18:])
    pupil.write(folder / "eval.jsonl", [{"id": "1", "text": "a", "corrected": "a"}])
    return read(folder)


class Judge:
    """Measures what it is told, and counts."""

    def __init__(self) -> None:
        self.asked: list[Path | None] = []

    def __call__(
        self, base: Checkpoint, package: Package, adapter: Path | None
    ) -> Generator[tuple[int, int], None, dict[str, float]]:
        yield 1, 1
        self.asked.append(adapter)
        return {"proofread good": 0.25 if adapter is None else 0.5}


def run(
    place: Path,
    wanted: list[Package],
    base: Checkpoint | None = None,
    judge: making.Judge | None = None,
    force: bool = False,
) -> Iterator[BuildEvent]:
    home, cache = place / "home", place / "cache"
    return build(base or pupil.base(), wanted, judge or Judge(), home, cache, force)


def kinds(events: list[BuildEvent]) -> list[str]:
    """What happened, training left out."""
    return [type(e).__name__ for e in events if not isinstance(e, Trained | making.Answered)]


def steps(events: list[BuildEvent]) -> int:
    return sum(isinstance(e, Trained) and isinstance(e.event, Step) for e in events)


def test_two_are_built_then_none_then_the_one_that_changed(tmp_path: Path) -> None:
    one, two = package(tmp_path, "one"), package(tmp_path, "two")
    base, judge = pupil.base(), Judge()
    events = list(run(tmp_path, [one, two], base, judge))
    assert kinds(events) == ["Begun", "Built", "Begun", "Built"] and steps(events) == 12
    assert events[0] == Begun("one", 1, 2)
    built = [e for e in events if isinstance(e, Built)]
    assert all(e.replaced and 0 < e.loss < e.loss_before for e in built)
    assert built[0].figures_before == {"proofread good": 0.25}
    folder = built[0].folder
    assert folder == tmp_path / "home" / "one-tiny" and len(judge.asked) == 4
    made = formats.read(folder)
    assert made.about.feature == "one" and made.about.metrics["proofread good"] == 0.5
    card = (folder / "README.md").read_text("utf-8")
    assert "| proofread good | 0.500 | 0.250 |" in card and "the model with examples" in card
    assert not lora.taken(base.model)  # the model is as it was

    events = list(run(tmp_path, [one, two], base, judge))
    assert kinds(events) == ["UpToDate"] * 2 and len(judge.asked) == 4
    pupil.write(two.train, [*pupil.rows(5), *(json.loads(line) for line in open(two.train))])
    events = list(run(tmp_path, [one, two], base, judge))
    assert kinds(events) == ["UpToDate", "Begun", "Built"] and steps(events) == 6
    # An evaluation row more changes what is measured, not what is learnt.
    one.evaluation.write_text(one.evaluation.read_text("utf-8") * 2, "utf-8")
    assert kinds(list(run(tmp_path, [one], base, judge))) == ["UpToDate"]


def test_a_worse_one_does_not_replace(tmp_path: Path) -> None:
    good = package(tmp_path, "one")
    (built,) = (e for e in run(tmp_path, [good]) if isinstance(e, Built))
    weights = (built.folder / formats.WEIGHTS).read_bytes()
    worse = package(tmp_path, "one", rate=1e-9)  # learns nothing
    events = list(run(tmp_path, [worse]))
    refused = events[-1]
    assert isinstance(refused, Built) and not refused.replaced and refused.folder == built.folder
    assert refused.loss > refused.loss_before
    assert abs(refused.loss_before - built.loss) < 1e-6
    assert (built.folder / formats.WEIGHTS).read_bytes() == weights
    card = (built.folder / "README.md").read_text("utf-8")
    assert "a newer one, not taken" in card and card.count("## Measured quality") == 1
    assert f"{refused.loss:.3f} |" in card and f"{refused.loss_before:.3f} |" in card

    judge = Judge()
    (again,) = run(tmp_path, [worse], judge=judge)
    assert again == UpToDate("one", built.folder, better=False) and not judge.asked
    forced = list(run(tmp_path, [worse], force=True))[-1]
    assert isinstance(forced, Built) and forced.replaced and steps([forced]) == 0
    assert (built.folder / formats.WEIGHTS).read_bytes() != weights
    card = (built.folder / "README.md").read_text("utf-8")
    assert "the adapter before it" in card and "not taken" not in card
    # The good one is better than what is there now, so it comes back.
    back = list(run(tmp_path, [package(tmp_path, "one")]))[-1]
    assert isinstance(back, Built) and back.replaced
    assert (built.folder / formats.WEIGHTS).read_bytes() == weights


def test_what_learnt_nothing_is_not_installed(tmp_path: Path) -> None:
    """Features with an adapter are asked without examples: such a one would only do harm."""
    idle = package(tmp_path, "one", rate=1e-9)
    model = random_model(pupil.ARGS)
    built = list(run(tmp_path, [idle], pupil.base(model)))[-1]
    assert isinstance(built, Built) and not built.replaced
    assert not (tmp_path / "home").exists() and not lora.taken(model)
    judge = Judge()
    (again,) = run(tmp_path, [idle], pupil.base(model), judge)
    assert isinstance(again, UpToDate) and not again.better and not judge.asked


def test_a_broken_build_goes_on_and_ends_alike(tmp_path: Path) -> None:
    def wanted(place: Path) -> list[Package]:
        return [package(place, "one"), package(place, "two")]

    broken = run(tmp_path / "a", wanted(tmp_path / "a"))
    for event in broken:
        if event == Begun("two", 2, 2):
            break
    for event in broken:
        if isinstance(event, Trained) and isinstance(event.event, Step) and event.event.step == 5:
            break
    broken.close()  # type: ignore[attr-defined]
    events = list(run(tmp_path / "a", wanted(tmp_path / "a")))
    assert kinds(events) == ["UpToDate", "Begun", "Built"] and steps(events) == 2
    assert any(isinstance(e, Trained) and e.event == Resumed(4) for e in events)
    whole = list(run(tmp_path / "b", wanted(tmp_path / "b")))
    assert steps(whole) == 12
    one, two = (
        formats.read(tmp_path / place / "home" / "two-tiny").weights for place in ("a", "b")
    )
    assert one.keys() == two.keys() and all((one[n] == two[n]).all() for n in one)


class Other(pupil.Tiny):
    signature = "0123456789"


def test_an_adapter_is_for_its_model_only(tmp_path: Path) -> None:
    wanted = [package(tmp_path, "one")]
    shipped, home = tmp_path / "packages", tmp_path / "home"
    tiny = pupil.base()
    other = Other("other", Path("other"), random_model(pupil.ARGS, 7), tiny_tokenizer())
    list(run(tmp_path, wanted, tiny))

    def found(signature: str) -> list[Path]:
        return find("proofread", lambda: signature, home, shipped)

    assert found("tiny") == [home / "one-tiny"] and not found(other.signature)
    list(run(tmp_path, wanted, other))
    assert found("tiny") == [home / "one-tiny"]
    assert found(other.signature) == [home / "one-01234567"]
    assert not find("summary", lambda: "tiny", home, shipped)


def adapter(
    folder: Path, feature: str = "proofread", base: str = "tiny", model: Model | None = None
) -> Path:
    about = About(feature=feature, base_signature=base)
    model = model or random_model(pupil.ARGS)
    formats.write(random_adapter(model, about=about), folder)
    return folder


def test_own_adapters_come_before_built_before_shipped(tmp_path: Path) -> None:
    one = package(tmp_path, "one")
    home = tmp_path / "home"
    asked: list[int] = []

    def signature() -> str:
        asked.append(1)
        return "tiny"

    def found() -> Path | None:
        return next(iter(find("proofread", signature, home, tmp_path / "packages")), None)

    assert found() is None and not asked  # reading all weights takes a second
    formats.write(
        random_adapter(random_model(pupil.ARGS), about=About("one", "tiny")), tmp_path / "made"
    )
    for name in (formats.CONFIG, formats.WEIGHTS):
        (one.folder / name).write_bytes((tmp_path / "made" / name).read_bytes())
    assert found() == one.folder and asked
    built = adapter(home / "one-tiny", "one")
    (built / RECORD).write_text("{}", "utf-8")
    assert found() == built
    own = adapter(home / "a-mine")
    assert found() == own
    (own / formats.CONFIG).write_text("{", "utf-8")
    assert found() == built


def test_adapters_for_fewer_features_come_first(tmp_path: Path) -> None:
    shipped, home = tmp_path / "packages", tmp_path / "home"
    both = package(tmp_path, "both", "priority").folder
    declared = (both / "feature.toml").read_text("utf-8")
    more = declared.replace('"priority"', '"notification-summary", "priority"')
    (both / "feature.toml").write_text(more, "utf-8")
    built = adapter(home / "both-tiny", "both")
    (built / RECORD).write_text("{}", "utf-8")
    package(tmp_path, "one", "priority")
    assert find("priority", lambda: "tiny", home, shipped) == [built]
    made = adapter(tmp_path / "made", "one")
    for name in (formats.CONFIG, formats.WEIGHTS):
        (shipped / "one" / name).write_bytes((made / name).read_bytes())
    assert find("priority", lambda: "tiny", home, shipped) == [shipped / "one", built]
    assert find("notification-summary", lambda: "tiny", home, shipped) == [built]


def test_a_shipped_adapter_is_up_to_date_without_installation(tmp_path: Path) -> None:
    one = package(tmp_path, "one")
    (built,) = (e for e in run(tmp_path, [one]) if isinstance(e, Built))
    for name in (formats.CONFIG, formats.WEIGHTS, RECORD, "README.md"):
        (one.folder / name).write_bytes((built.folder / name).read_bytes())
    for file in built.folder.iterdir():
        file.unlink()
    built.folder.rmdir()
    assert list(run(tmp_path, [one])) == [UpToDate("one", one.folder)]
    worse = package(tmp_path, "one", rate=1e-9)
    refused = list(run(tmp_path, [worse]))[-1]
    assert isinstance(refused, Built) and not refused.replaced and refused.folder == one.folder
    assert not built.folder.exists()


def test_low_bit_models_start_from_their_recovery_adapter(tmp_path: Path) -> None:
    model = random_model(pupil.ARGS)
    recovery = random_adapter(model, options=LoRAOptions(rank=6, keys=("self_attn.q_proj",)))
    formats.write(recovery, tmp_path / "model" / formats.RECOVERY)
    base = pupil.Tiny("low", tmp_path / "model", model, tiny_tokenizer())
    idle = package(tmp_path, "one", rate=1e-9)
    (built,) = (e for e in run(tmp_path, [idle], base) if isinstance(e, Built))
    made = formats.read(built.folder)
    # Both blocks and the larger rank, or what the recovery adapter repairs would be lost.
    assert made.options.rank == 6 and made.options.num_layers == -1
    for place, known in recovery.places.items():
        learnt = made.places[place]
        change = learnt.lora_a @ learnt.lora_b * made.options.multiplier
        wanted = known.lora_a @ known.lora_b * recovery.options.multiplier
        assert number(mx.abs(change - wanted).max()) < 2e-2 * number(mx.abs(wanted).max())


def test_a_row_that_says_too_little_is_named(tmp_path: Path) -> None:
    one = package(tmp_path, "one")
    for row, lack in ({"text": "a"}, "lacks 'id'"), ({"id": "7", "text": "a"}, "row 7 lacks"):
        pupil.write(one.evaluation, [row])
        with pytest.raises(InputError, match=lack):
            next(judge(pupil.base(), one, None, tmp_path))


def test_the_judge_answers_through_the_features(tmp_path: Path) -> None:
    one = package(tmp_path, "one", "priority")
    rows = [
        {
            "id": str(i),
            "app": "Mail",
            "urgent": i % 2 == 0,
            "notifications": [{"title": "Ana", "body": f"Box {i}"}],
        }
        for i in range(4)
    ]
    pupil.write(one.evaluation, rows)
    base = pupil.base(random_model(WIDE))
    folder = adapter(tmp_path / "made", "one", model=base.model)
    for choice in (folder, None):
        seen = []
        judging = judge(base, one, choice, tmp_path)
        while True:
            try:
                seen.append(next(judging))
            except StopIteration as end:
                figures = end.value
                break
        assert seen == [(i, 4) for i in (1, 2, 3, 4)]
        assert figures.keys() >= {"priority accuracy"} and 0 <= figures["priority accuracy"] <= 1
        # Else the model alone, judged next, would still have the adapter's matrices.
        assert not lora.taken(base.model)
    assert not list((tmp_path / "answers").iterdir())
    # A run that breaks off keeps what it has.
    judging = judge(base, one, folder, tmp_path)
    next(judging)
    judging.close()
    assert not lora.taken(base.model)
    (log,) = (tmp_path / "answers").iterdir()
    assert len(log.read_text("utf-8").splitlines()) == 5  # the settings, and four side by side
    # Training after an engine was closed: its streams are gone, those of this thread are not.
    assert kinds(list(run(tmp_path, [package(tmp_path, "two")], base))) == ["Begun", "Built"]


def test_an_adapter_is_asked_without_examples(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    value = Text("i has two apple.")
    plain = make_request(PROOFREAD, value, tokenizer)
    for bare in (None, ""):
        assert make_request(PROOFREAD, value, tokenizer, adapter=bare).tokens == plain.tokens
    named = make_request(PROOFREAD, value, tokenizer, adapter="one")
    messages = PROOFREAD.messages(value, examples=False)
    assert [m.role for m in messages] == ["system", "user"]
    assert messages[0].content == PROOFREAD.instructions
    assert named.tokens == tokenizer.chat(messages) and len(named.tokens) * 2 < len(plain.tokens)
    assert 0 < named.keep < len(named.tokens)


def test_earlier_parts_are_condensed_without_the_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str | None] = []
    with Engine(lambda: pupil.base(random_model(WIDE))) as engine:
        generate = engine.generate

        def record(request: Request) -> Any:
            named.append(request.adapter)
            return generate(replace(request, adapter=None))

        monkeypatch.setattr(engine, "generate", record)
        feature = replace(KEY_POINTS, part_tokens=120, answer_tokens=lambda _: 4)
        asyncio.run(respond(engine, feature, Text("One dog. " * 30), adapter="one"))
    # An adapter for key points knows no summaries, and was never shown their instructions.
    assert len(named) > 2 and named[-1] == "one" and set(named[:-1]) == {None}


def test_a_damaged_adapter_is_passed_over(tmp_path: Path) -> None:
    home = tmp_path / "home"
    package(tmp_path, "one")
    for name in ("good", "bad"):
        adapter(home / name)
    weights = home / "bad" / formats.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:900])
    later = (home / "good" / formats.CONFIG).stat().st_mtime + 9
    os.utime(home / "bad" / formats.CONFIG, (later, later))  # the newer one is used first

    async def work() -> dict[str, str]:
        with Engine(lambda: pupil.base(random_model(WIDE))) as engine:
            return await load(engine, ["proofread"], home, tmp_path / "packages")

    with pytest.warns(RuntimeWarning, match="bad"):
        assert asyncio.run(work()) == {"proofread": str(home / "good")}


@pytest.mark.parametrize(
    "damage",
    [
        lambda config: config["lora_parameters"].update(rank=0),
        lambda config: config["lora_parameters"].update(rank=float("inf")),
        lambda config: config["lora_parameters"].update(keys=[1]),
        lambda config: config.update(deep="DEEP"),
    ],
)
def test_a_senseless_description_is_passed_over(tmp_path: Path, damage: Any) -> None:
    package(tmp_path, "one")
    home = tmp_path / "home"
    for name in ("good", "bad"):
        adapter(home / name)
    file = home / "bad" / formats.CONFIG
    config = json.loads(file.read_text("utf-8"))
    damage(config)
    file.write_text(json.dumps(config).replace('"DEEP"', "[" * 100_000), "utf-8")
    later = (home / "good" / formats.CONFIG).stat().st_mtime + 9
    os.utime(file, (later, later))

    async def work() -> dict[str, str]:
        with Engine(lambda: pupil.base(random_model(WIDE))) as engine:
            return await load(engine, ["proofread"], home, tmp_path / "packages")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert asyncio.run(work()) == {"proofread": str(home / "good")}


def test_an_engine_gets_the_adapters_of_the_features(tmp_path: Path) -> None:
    home = tmp_path / "home"
    package(tmp_path, "one")
    adapter(home / "one-tiny", "one")
    adapter(home / "wrong", "proofread", base="other")

    async def work() -> None:
        with Engine(lambda: pupil.base(random_model(WIDE))) as engine:
            wanted = ["proofread", "summary", "proofread"]
            names = await load(engine, wanted, home, tmp_path / "packages")
            assert names == {"proofread": str(home / "one-tiny")}
            text = Text("i has two apple.")
            plain = await respond(engine, PROOFREAD, text)
            with_it = await respond(engine, PROOFREAD, text, adapter=names["proofread"])
            assert with_it.metrics.prompt_tokens * 2 < plain.metrics.prompt_tokens
            listed = await asyncio.wrap_future(engine.adapters())
            assert [x.name for x in listed] == [str(home / "one-tiny")]

    asyncio.run(work())
