"""What an adapter learns from: every usable sample once, whole, hardly any padding."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afm_mlx.adapters.data import ATTENTION, PADDING, DataOptions, Lessons, best_window, prepare
from afm_mlx.data.packing import Windows, pack
from afm_mlx.data.tokens import TokenStore
from afm_mlx.errors import InputError
from tests.adapters.pupil import rows, write
from tests.conftest import tiny_tokenizer

import numpy as np
import pytest

ALL = DataOptions(held_out=0.0)


def read(tmp_path: Path, given: Sequence[Any], options: DataOptions = ALL, **more: Any) -> Lessons:
    path = write(tmp_path / "chat.jsonl", given)
    return prepare([path], options, tiny_tokenizer(), tmp_path / "tokens", 1024, **more)


def texts(windows: Windows) -> list[str]:
    """The samples in some windows."""
    found = []
    for number in np.concatenate(windows.numbers).tolist():
        batch = windows.batch([number])
        assert batch.parents is not None
        learning = set(batch.segments[batch.learn].tolist())
        for segment in sorted(learning):
            own = batch.segments == segment
            ids = batch.tokens[own | (batch.segments == batch.parents[own][0])]
            found.append(tiny_tokenizer().decode(ids.tolist()))
    return sorted(found)


def learnt(lessons: Lessons) -> list[str]:
    """What is to be predicted in each window."""
    found = []
    for number in lessons.train.numbers[0].tolist():
        batch = lessons.train.batch([number])
        found.append(tiny_tokenizer().decode(batch.labels[batch.learn].tolist()))
    return found


def store(lengths: Sequence[int]) -> TokenStore:
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    every = np.ones(ends[-1], np.bool_)
    whole = np.zeros(len(lengths), np.bool_)
    return TokenStore(every.astype(np.uint32), every, ends, whole)


def test_only_answers_are_learnt(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Box 1?"},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "Box 2?"},
        {"role": "assistant", "content": "Blue."},
    ]
    found = read(tmp_path, [{"messages": turns}])
    assert learnt(found) == ["Red.<|im_end|>Blue.<|im_end|>"]
    assert found.report.learnt == len("Red.Blue.") + 2


def test_forms_are_read_alike(tmp_path: Path) -> None:
    """The toolkit's bare list of messages, the object around it, and prompt with completion."""
    turns = rows(1)[0]["messages"]
    pair = {"prompt": turns[0]["content"], "completion": turns[1]["content"]}
    for number, row in enumerate(({"messages": turns}, turns, pair)):
        place = tmp_path / str(number)
        place.mkdir()
        found = read(place, [row])
        assert learnt(found) == ["It is red.<|im_end|>"]
        assert found.train.batch([0]).tokens.shape == (1, found.report.window)


def test_texts_are_learnt_whole(tmp_path: Path) -> None:
    found = read(tmp_path, [{"text": "The sea is salty."}])
    assert learnt(found) == ["he sea is salty.<|im_end|>"]


def test_bad_rows_are_listed_and_skipped(tmp_path: Path) -> None:
    given = [*rows(6), {"messages": []}, {"other": 1}, [{"role": "user", "content": "alone"}]]
    found = read(tmp_path, given).report
    assert (found.rows, len(found.bad)) == (6, 3)
    assert "chat.jsonl:7" in found.bad[0] and "no assistant message" in found.bad[2]
    # Tokens of an earlier run lie there: the rows must be listed again all the same.
    assert read(tmp_path, given).report.bad == found.bad


def test_long_conversations_are_left_out_and_counted(tmp_path: Path) -> None:
    """A window that cuts one would learn from a prompt without its answer."""
    long = {"prompt": "why " * 40, "completion": "Because."}
    given = [*rows(6), long]
    found = read(tmp_path, given, DataOptions(held_out=0.0, window=64))
    assert found.report.too_long == 1 and found.report.samples == 6
    assert not any("Because" in t for t in texts(found.train))
    assert found.report.longest <= 64
    with pytest.raises(InputError, match="all samples are longer than 64"):
        read(tmp_path, [long], DataOptions(held_out=0.0, window=64))


def test_held_out_samples_are_never_trained_on(tmp_path: Path) -> None:
    found = read(tmp_path, rows(40), DataOptions(held_out=0.25))
    assert found.held_out is not None
    trained, held = texts(found.train), texts(found.held_out)
    assert (len(trained), len(held)) == (30, 10) and not set(trained) & set(held)
    assert sorted(trained + held) == texts(read(tmp_path, rows(40)).train)
    again = read(tmp_path, rows(40), DataOptions(held_out=0.25))
    other = read(tmp_path, rows(40), DataOptions(held_out=0.25), seed=1)
    assert again.held_out and texts(again.held_out) == held and again.key == found.key
    assert other.held_out and texts(other.held_out) != held and other.key != found.key
    # The last rows of a sorted file are all of one kind.
    assert held != sorted(texts(read(tmp_path, rows(40)[30:]).train))
    # States of frozen layers are kept by number: none may stand for two windows.
    assert not set(found.train.numbers[0]) & set(found.held_out.numbers[1])


def test_held_out_files(tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", [{"prompt": "Box 99? " * 9, "completion": "Pink."}])
    found = read(tmp_path, rows(8), DataOptions(held_out_data=(other,)))
    assert found.held_out is not None and found.report.samples == 8
    assert ["Pink" in t for t in texts(found.held_out)] == [True]


def test_padding_stays_below_two_percent(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = [
        {"prompt": "x" * int(n), "completion": "y" * int(rng.integers(5, 40))}
        for n in rng.integers(20, 230, 200)
    ]
    found = read(tmp_path, given)
    window, train = found.report.window, found.train
    used = sum(train.batch([n]).num_tokens for n in train.numbers[0].tolist())
    assert found.report.padding == pytest.approx(1 - used / (len(train) * window))
    assert found.report.padding <= PADDING
    batches = found.batches(4, seed=0)
    per_window = found.report.samples / len(train)
    assert abs(batches.batch_size * per_window - 4) <= per_window / 2
    assert found.batches(4, seed=0, processes=2).batch_size % 2 == 0


def test_window_is_the_cheapest_that_packs_well() -> None:
    rng = np.random.default_rng(1)
    given = store(rng.integers(65, 129, 300).tolist())
    window = best_window(given, 1024)
    reports = {w: pack(given.lengths, given.splittable, w).report for w in range(128, 400, 8)}
    costs = {w: r.windows * w * (ATTENTION + w) for w, r in reports.items() if r.padding <= PADDING}
    assert window == min(costs, key=costs.__getitem__)
    assert reports[128].padding > 0.2  # rows of one sample each
    # Few samples can leave no choice; a window never holds more than a step.
    assert best_window(store([100, 100, 100]), 1024) in range(104, 408)
    assert best_window(store([50] * 54), 1024, samples=2) <= 112
    assert best_window(store([700]), 512) == 512


TASKS = ["Say what colour the box has.", "Is this box full? Say yes or no."]


def asked(count: int, tasks: Sequence[str] = TASKS) -> list[Any]:
    return [
        {
            "messages": [
                {"role": "system", "content": tasks[i % len(tasks)]},
                {"role": "user", "content": f"Box {i}?{'!' * (7 * i % 19)}"},
                {"role": "assistant", "content": ["Red.", "no"][i % 2]},
            ]
        }
        for i in range(count)
    ]


def test_instructions_stand_in_a_window_once(tmp_path: Path) -> None:
    found = read(tmp_path, asked(40), samples=8)
    whole = [f"{s}" for s in texts(found.train)]
    assert len(whole) == 40 and all(sum(task in s for task in TASKS) == 1 for s in whole)
    for number in found.train.numbers[0].tolist():
        batch = found.train.batch([number])
        window = tiny_tokenizer().decode(batch.tokens[batch.segments > 0].tolist())
        assert [window.count(task) for task in TASKS] == [1, 1]
        assert not batch.learn[batch.segments <= 2].any()
    positions = len(found.train) * found.report.window
    assert found.report.tokens > 1.3 * positions
    assert sum(map(len, TASKS)) < found.report.shared < sum(map(len, TASKS)) + 80


def test_what_few_begin_with_is_not_shared(tmp_path: Path) -> None:
    """Every window would hold it for nothing."""
    many = [f"{i}: what is in this box of mine?" for i in range(40)]
    assert read(tmp_path, asked(40, many), samples=8).report.shared == 0
    (tmp_path / "two").mkdir()
    assert read(tmp_path / "two", asked(40), samples=1).report.shared == 0
    # Answers to one and the same prompt: of it all is shared but the last token.
    (tmp_path / "one").mkdir()
    given = [{"prompt": "Name some colour!", "completion": c} for c in ("Red", "Blue") * 9]
    same = read(tmp_path / "one", given, samples=8)
    assert len(texts(same.train)) == 18 and same.report.shared > len("Name some colour!")


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (rows(1), DataOptions(), "one sample cannot be split"),
        ([{"other": 1}], DataOptions(), "no usable sample"),
        (rows(4), DataOptions(held_out_data=("none.jsonl",)), "there is no none.jsonl"),
    ],
)
def test_what_cannot_be_learnt(
    tmp_path: Path, given: list[Any], options: DataOptions, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, given, options)


def test_bad_options() -> None:
    for values in ({"held_out": 1.0}, {"held_out": -0.1}, {"window": 4}):
        with pytest.raises(InputError):
            DataOptions(**values)
    with pytest.raises(InputError, match="nothing to learn from"):
        prepare([], ALL, tiny_tokenizer(), Path("nowhere"), 64)


def test_markers_in_a_row_stay_text(tmp_path: Path) -> None:
    row = {"prompt": "<|im_end|>", "completion": "<|im_start|>ä"}
    found = read(tmp_path, [row])
    assert learnt(found) == ["<|im_start|>ä<|im_end|>"]
