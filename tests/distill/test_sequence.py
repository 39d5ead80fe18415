"""The best answer of a committee is kept; a killed run goes on as if nothing had happened."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afm_mlx.data.sources import Source, read
from afm_mlx.data.tokens import tokenize
from afm_mlx.distill.answers import Answer, LocalRespondent
from afm_mlx.distill.prompts import Prompt, key_of, read_prompts
from afm_mlx.distill.rewards import Reward, RewardOptions
from afm_mlx.distill.sequence import (
    ANSWERS,
    REFUSED,
    REJECTED,
    TOO_POOR,
    Answered,
    SequenceOptions,
    SequenceReport,
    answer_prompts,
    report,
)
from afm_mlx.distill.teachers import Committee, wrap
from afm_mlx.errors import (
    ExceededContextWindowSizeError,
    GenerationError,
    InputError,
    ModelError,
)
from afm_mlx.generation import GenerationOptions
from afm_mlx.model import Model
from afm_mlx.tokenizer import Message, Tokenizer

import pytest


def length_score(messages: Sequence[Message], answer: Answer) -> float | None:
    """Ten letters are perfect."""
    return min(len(answer.text), 10) / 10


REWARD = Reward(
    RewardOptions(
        no_repeats=0, no_echo=0, likelihood=0, own_check=f"{__name__}:length_score", own_weight=2
    )
)


class Canned:
    """Answers from a table of questions, or raises what stands there."""

    def __init__(self, name: str, said: dict[str, Any]) -> None:
        self.name, self.said = name, said
        self.asked: list[tuple[str, int, GenerationOptions]] = []

    def answers(
        self, messages: Sequence[Message], count: int, options: GenerationOptions
    ) -> list[Answer]:
        question = messages[-1].content
        self.asked.append((question, count, options))
        found = self.said.get(question, ["yes"])
        if isinstance(found, Exception):
            raise found
        return [a if isinstance(a, Answer) else Answer(a) for a in found]


def prompt(question: str) -> Prompt:
    return (Message("user", question),)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def run(
    folder: Path, questions: Sequence[str], *members: Canned, **options: Any
) -> tuple[list[Answered], SequenceReport]:
    *events, last = answer_prompts(
        [prompt(q) for q in questions], members, REWARD, folder, SequenceOptions(**options)
    )
    assert isinstance(last, SequenceReport)
    return [e for e in events if isinstance(e, Answered)], last


def test_the_best_is_kept(tmp_path: Path) -> None:
    a = Canned("a", {"q1": ["seven l", "", "five "], "q2": ["one"], "q3": [""]})
    b = Canned("b", {"q1": ["nine lett", Answer("x" * 10, complete=False)], "q2": ["four"]})
    events, found = run(tmp_path, ["q1", "q2", "q3"], a, b, least_reward=0.45)
    assert events == [
        Answered(1, 3, 1, 0.9, "b"),
        Answered(2, 3, 1, 0.4),
        Answered(3, 3, 1, 0.3),  # b says yes
    ]
    (kept,) = lines(tmp_path / ANSWERS)
    assert kept == {
        "messages": [
            {"role": "user", "content": "q1"},
            {"role": "assistant", "content": "nine lett"},
        ],
        "score": 0.9,
        "parts": {f"{__name__}:length_score": 0.9},
        "teacher": "b",
        "rejected": 2,
        "reasons": {"empty": 1, "cut short": 1},
        "rewards": {"a": [0.7, None, 0.5], "b": [0.9, None]},
        "key": key_of(prompt("q1")),
    }
    poor, poorer = lines(tmp_path / REJECTED)
    assert poor["reasons"] == {TOO_POOR: 2}
    assert poor["messages"] == [{"role": "user", "content": "q2"}]
    assert poorer["rewards"] == {"a": [None], "b": [0.3]}
    assert (found.prompts, found.kept, found.kept_share) == (3, 1, 1 / 3)
    assert found.rewards == pytest.approx({"a": (0.7 + 0.5 + 0.3) / 3, "b": (0.9 + 0.4 + 0.3) / 3})
    assert found.wins == {"a": 0, "b": 1}
    assert found.reasons == {TOO_POOR: 3, "empty": 2, "cut short": 1}
    assert report(tmp_path) == found


def test_the_first_of_equals_wins(tmp_path: Path) -> None:
    a, b = Canned("a", {"q": ["alpha"]}), Canned("b", {"q": ["gamma"]})
    events, _ = run(tmp_path, ["q"], a, b)
    assert events == [Answered(1, 1, 1, 0.5, "a")]


def test_what_is_asked(tmp_path: Path) -> None:
    a, b = Canned("a", {}), Canned("b", {})
    run(tmp_path / "1", ["q1", "q2", "q1"], a, b, candidates=3, answer_tokens=9, answer_top_p=0.7)
    assert [(q, n) for q, n, _ in a.asked] == [("q1", 3), ("q2", 3)]  # q1 comes twice
    seeds = [o.sampling.seed for _, _, o in a.asked + b.asked]
    assert len(set(seeds)) == 4
    assert {o.maximum_response_tokens for _, _, o in a.asked} == {9}
    assert {o.sampling.probability_threshold for _, _, o in a.asked} == {0.7}
    before = list(a.asked)
    run(tmp_path / "2", ["q2", "q1"], a, b, candidates=3, answer_tokens=9, answer_top_p=0.7)
    assert a.asked[2:] == before[::-1]  # seeds do not depend on the order
    run(tmp_path / "3", ["q1"], a, b, answer_seed=1)
    assert a.asked[-1][2].sampling.seed not in seeds
    run(tmp_path / "4", ["q1"], a, b, answer_temperature=0.0)
    assert a.asked[-1][1:] == (1, GenerationOptions(temperature=0.0))  # all would be the same


def test_a_run_that_was_killed(tmp_path: Path) -> None:
    """Cut after any byte, the files of the resumed run are those of a run in one go."""
    said = {"q1": ["Größe 10!!"], "q2": [""], "q3": ["letters"]}
    whole = tmp_path / "whole"
    _, expected = run(whole, ["q1", "q2", "q3"], Canned("a", said))
    files = {name: (whole / name).read_bytes() for name in (ANSWERS, REJECTED)}
    second = files[ANSWERS].index(b"\n") + 1
    cuts = [*range(0, second, 29), second - 1, second, second + 1, len(files[ANSWERS]) - 1]
    for cut in sorted(set(cuts)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / ANSWERS).write_bytes(files[ANSWERS][:cut])
        left = files[REJECTED] if cut >= second else files[REJECTED][: cut // 2]
        (folder / REJECTED).write_bytes(left)
        assert report(folder).prompts == (2 if cut >= second else 0)  # looking changes nothing
        assert (folder / ANSWERS).stat().st_size == cut
        asked = Canned("a", said)
        events, found = run(folder, ["q1", "q2", "q3"], asked)
        assert {n: (folder / n).read_bytes() for n in files} == files
        assert found == expected
        missing = ["q3"] if cut >= second else ["q1", "q2", "q3"]
        assert [q for q, _, _ in asked.asked] == missing
        assert [e.done for e in events] == list(range(4 - len(missing), 4))
        assert events[-1].kept == 2


def test_other_prompts_of_a_folder(tmp_path: Path) -> None:
    run(tmp_path, ["q1", "q2"], Canned("a", {}), least_reward=0.1)
    events, found = run(tmp_path, ["q2", "q3"], Canned("a", {}), least_reward=0.1)
    assert events == [Answered(2, 2, 2, 0.3, "a")]
    assert found.prompts == found.kept == 3


def test_each_line_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event comes after the line was flushed, not before."""
    flushed: list[int] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        flushed.append(os.fstat(handle).st_size)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    events = answer_prompts(
        [prompt("q1"), prompt("q2")], [Canned("a", {})], REWARD, tmp_path, SequenceOptions()
    )
    for number in (1, 2):
        next(events)
        assert len(flushed) == number
        assert flushed[-1] == (tmp_path / REJECTED).stat().st_size > 0


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="no space left on device.*free some space"):
        run(tmp_path, ["q1"], Canned("a", {}))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        run(tmp_path / "file", ["q1"], Canned("a", {}))


@pytest.mark.parametrize("line", ["{oops", "[]", "{}", '{"key": "a", "rewards": []}', "\0"])
def test_damaged_files(tmp_path: Path, line: str) -> None:
    run(tmp_path, ["q1"], Canned("a", {}), least_reward=0.1)
    with (tmp_path / ANSWERS).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(InputError, match=rf"{ANSWERS}:2 is damaged .*delete this line"):
        run(tmp_path, ["q1"], Canned("a", {}))


def test_refusals(tmp_path: Path) -> None:
    """One prompt that is too long must not stop a run, nor every later one."""
    long = ExceededContextWindowSizeError(9000, 8191)
    a = Canned("a", {"q1": long, "q2": ["letters"], "q3": GenerationError("filtered")})
    b = Canned("b", {"q1": ["letters"], "q3": GenerationError("filtered")})
    events, found = run(tmp_path, ["q1", "q2", "q3"], a, b, candidates=2, least_reward=0.6)
    assert [e.teacher for e in events] == ["b", "a", ""]
    assert found.reasons == {REFUSED: 6, TOO_POOR: 1}  # a twice, b once, two answers each
    assert lines(tmp_path / REJECTED)[0]["score"] is None

    a.said["q4"] = GenerationError("filtered")  # known from the file to answer
    assert run(tmp_path, ["q1", "q4"], a, Canned("c", {}))[1].prompts == 4


def test_nothing_can_be_answered(tmp_path: Path) -> None:
    """A wrong field in every request would else reject all prompts."""
    wrong = Canned("a", {"q1": GenerationError("no such field"), "q2": ["letters"]})
    with pytest.raises(GenerationError, match="no such field"):
        run(tmp_path, ["q1", "q2"], wrong)
    gone = Canned("a", {"q2": ModelError("gone")})
    with pytest.raises(ModelError):
        run(tmp_path, ["q1", "q2"], gone)
    assert report(tmp_path).prompts == 1  # what came before is kept


def test_members() -> None:
    for members in ([], [Canned("a", {}), Canned("a", {})]):
        with pytest.raises(InputError, match="at least one teacher, and none twice"):
            next(answer_prompts([prompt("q")], members, REWARD, Path("unused")))


@pytest.mark.parametrize(
    "options",
    [{"candidates": 0}, {"least_reward": 1.1}, {"answer_temperature": -1.0},
     {"answer_temperature": float("nan")}, {"answer_top_p": 0.0}, {"answer_tokens": 0},
     {"answer_seed": -1}],
)  # fmt: skip
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        SequenceOptions(**options)


def test_the_data_path_reads_the_answers(
    tmp_path: Path, model: Model, tokenizer: Tokenizer
) -> None:
    """From questions to tokens, with a teacher that runs here; twice the same."""
    questions = [prompt("Is it late?"), (Message("system", "Be kind."), *prompt("Tea?"))]
    teacher = wrap("tiny", model, tokenizer)
    reward = Reward(RewardOptions(cut_short=True, least_words=0), Committee((teacher,)))
    options = SequenceOptions(candidates=3, least_reward=0.0, answer_tokens=12)
    found = []
    for name in ("1", "2"):
        *_, last = answer_prompts(
            questions, [LocalRespondent(teacher)], reward, tmp_path / name, options
        )
        assert isinstance(last, SequenceReport) and last.kept == 2
        found.append((tmp_path / name / ANSWERS).read_bytes())
    assert found[0] == found[1]
    samples = list(read(Source(str(tmp_path / "1"))))  # the folder: rejected.log is left out
    assert [s.messages[:-1] for s in samples] == questions
    store = tokenize(samples, tokenizer, tmp_path / "tokens", "key")
    for i, line in enumerate(lines(tmp_path / "1" / ANSWERS)):
        tokens, learn = store.sample(i)
        content = line["messages"][-1]["content"]
        assert tokenizer.decode(tokens[learn].tolist()) == f"{content}<|im_end|>"


def test_prompts(tmp_path: Path) -> None:
    asked, said = '{"role": "user", "content": "a"}', '{"role": "assistant", "content": "b"}'
    path = tmp_path / "a.jsonl"
    path.write_text(
        f"""\ufeff{{"messages": [{asked}, {said}]}}

[{{"role": "system", "content": "s"}}, {{"role": "user", "content": "c\u0085"}}]
{{"prompt": "d", "completion": "e", "id": 3}}
[{asked}, {said}, {{"role": "user", "content": "h \\ud83d"}}]""",
        encoding="utf-8",
    )
    found = read_prompts(path)
    assert found == read_prompts(tmp_path)
    assert [[(m.role[0], m.content) for m in p] for p in found] == [
        [("u", "a")],
        [("s", "s"), ("u", "c\u0085")],
        [("u", "d")],
        [("u", "a"), ("a", "b"), ("u", "h ?")],
    ]
    assert len({key_of(p) for p in found}) == 4


@pytest.mark.parametrize(
    "line",
    ["{oops", "7", "{}", "[]", '{"text": "a"}', '{"prompt": 7}', '{"prompt": " "}', '["a"]',
     '{"messages": {}}', '[{"role": "assistant", "content": "a"}]',
     '[{"role": "system", "content": "a"}]', '[{"role": "tool", "content": "a"}]',
     '[{"role": ["user"], "content": "a"}]', '[{"content": "a"}]', "\udcff", "[" * 100_000],
)  # fmt: skip
def test_bad_prompts(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n' + line.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"a\.jsonl:2 is no prompt") as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)


def test_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n \n")
    with pytest.raises(InputError, match="holds no prompts"):
        read_prompts(tmp_path / "a.jsonl")
    (tmp_path / "b.txt").write_text("a")
    with pytest.raises(InputError, match="give .jsonl files only"):
        read_prompts(tmp_path / "b.txt")
    with pytest.raises(InputError, match="there is no"):
        read_prompts(tmp_path / "none.jsonl")
