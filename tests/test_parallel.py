"""Processes that train together: the same losses as one, and an end when one is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from afm_mlx import parallel
from afm_mlx.errors import InputError
from afm_mlx.saves import Saves
from tests import trainee
from tests.test_training import losses

import mlx.core as mx
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    not mx.distributed.is_available("ring"), reason="this MLX has no ring"
)
ROOT = Path(__file__).parents[1]
Process = subprocess.Popen[str]
LIMIT = 600.0
"""Seconds after which processes that hang are killed."""


def free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(n)]
        return [s.getsockname()[1] for s in found]


@contextmanager
def ring(tmp_path: Path, *commands: list[str]) -> Iterator[list[Process]]:
    """One process for each command, joined as ``mlx.launch --backend ring`` does it.

    None outlives the block, or ``LIMIT``.
    """
    hosts = [[f"127.0.0.1:{port}"] for port in free_ports(len(commands))]
    (tmp_path / "hosts.json").write_text(json.dumps(hosts))
    place = tempfile.mkdtemp(dir=tmp_path)
    started: list[Process] = []

    def kill() -> None:
        for process in started:
            with suppress(ProcessLookupError):
                process.kill()

    limit = threading.Timer(LIMIT, kill)
    limit.daemon = True
    limit.start()
    try:
        for rank, command in enumerate(commands):
            environment = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(tmp_path / "hosts.json")}
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.together", place, str(len(commands)), *command],
                    cwd=ROOT,
                    env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield started
    finally:
        limit.cancel()
        kill()
        for process in started:
            process.communicate()


def trainees(tmp_path: Path, ranks: int = 2, **values: Any) -> list[list[str]]:
    """Commands that train in folders of their own, as on machines with disks of their own."""
    return [
        ["-m", "tests.trainee", json.dumps({"folder": str(tmp_path / f"disk{rank}"), **values})]
        for rank in range(ranks)
    ]


def finish(processes: list[Process], timeout: float = LIMIT) -> list[tuple[int, list[Any], str]]:
    """Exit code, events and errors of each; all must end in time."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=timeout)
        events = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        found.append((process.returncode, events, err))
    return found


def values(events: list[Any], kind: str, name: str) -> list[float]:
    return [e[name] for e in events if e["event"] == kind]


SETTINGS: dict[str, Any] = {"steps": 12, "evaluate_every": 4, "save_every": 3, "clip": 0.5}


def wait_for_step(process: Process, step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "step" and event["step"] >= step:
            return
    raise AssertionError("the run ended early")


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Rows with unlike numbers of predictions, a loss of one on the way, a disk for each."""
    alone = list(trainee.events(tmp_path / "alone", **SETTINGS))
    commands = trainees(tmp_path, micro_batch=1, **SETTINGS)
    _, lost = trainees(tmp_path, micro_batch=1, killed_at=5, **SETTINGS)
    with ring(tmp_path, commands[0], lost) as processes:
        (code, _, error), (code_b, *_) = finish(processes)
        assert code_b == -signal.SIGKILL
        check_end(code, error, 1, "has ended")
    with ring(tmp_path, *commands) as processes:
        (code, events, error), (code_b, events_b, error_b) = finish(processes)
    assert code == code_b == 0, error + error_b
    for event in events + events_b:
        for clock in ("seconds", "tokens_per_second"):
            event.pop(clock, None)
    assert events == events_b
    resumed = events[0]["step"]
    assert events[0]["event"] == "resumed" and resumed >= 3
    assert [e["step"] for e in events if e["event"] == "step"] == list(range(resumed + 1, 13))
    assert values(events, "step", "loss") == pytest.approx(losses(alone)[resumed:], abs=1e-4)
    for name in ("grad_norm", "tokens"):
        expected = [getattr(e, name) for e in alone if hasattr(e, "grad_norm")]
        assert values(events, "step", name) == pytest.approx(expected[resumed:], rel=1e-3)
    evaluated = [e.metrics["perplexity"] for e in alone if hasattr(e, "metrics")][-1]
    assert values(events, "evaluation", "perplexity")[-1] == pytest.approx(evaluated, rel=1e-3)
    assert Saves(tmp_path / "disk0").steps() and not (tmp_path / "disk1").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "how", "reason"),
    [
        (0, signal.SIGKILL, "has ended"),
        (0, signal.SIGSTOP, "has been silent for 3 s"),
        (1, signal.SIGSTOP, "has been silent for 3 s"),
    ],
    ids=["first-killed", "first-frozen", "second-frozen"],
)
def test_a_lost_process_ends_the_others(
    tmp_path: Path, lost: int, how: signal.Signals, reason: str
) -> None:
    """The ring only raises if a socket closes; a machine that falls silent hangs it for good."""
    settings = {**SETTINGS, "steps": 100_000, "evaluate_every": 50_000, "silence": 3.0}
    with ring(tmp_path, *trainees(tmp_path, **settings)) as processes:
        for process in processes:
            wait_for_step(process, 4)
        processes[lost].send_signal(how)
        started = time.monotonic()
        ((code, _, error),) = finish([processes[1 - lost]])
        assert time.monotonic() - started < 10
    check_end(code, error, lost, reason)
    state = Saves(tmp_path / "disk0").load(trainee.learner(), None)
    assert state is not None and state.step >= 3 and state.step % 3 == 0


def check_end(code: int, error: str, lost: int, reason: str) -> None:
    line = (
        f"afm: process {lost} of 2 {reason}: start the same command again, it goes on from the"
        " last save\n"
    )
    assert code == 1 and error.count(line) == 1, error
    others = error.replace(line, "")  # MLX has its say, letter by letter
    assert all(x.startswith("[ring]") for x in others.splitlines()), error


@pytest.mark.slow
def test_time_is_up_for_all_at_once(tmp_path: Path) -> None:
    """Clocks differ: were each to ask its own, one would wait for the others' next step."""
    settings = {**SETTINGS, "steps": 100_000, "evaluate_every": 50_000, "seconds": 1.0}
    with ring(tmp_path, *trainees(tmp_path, **settings)) as processes:
        (code, events, error), (code_b, events_b, error_b) = finish(processes)
    assert code == code_b == 0, error + error_b
    assert events[-1]["event"] == "stopped" and events[-1] == events_b[-1]
    assert Saves(tmp_path / "disk0").steps()[-1] == events[-1]["step"]


@pytest.mark.slow
def test_an_error_in_one_ends_all(tmp_path: Path) -> None:
    """Here the first process cannot write its saves."""
    (tmp_path / "disk0").write_text("a file is in the way")
    with ring(tmp_path, *trainees(tmp_path, **SETTINGS)) as processes:
        (code, _, error), (code_b, _, error_b) = finish(processes)
    assert code == 1 and "the save of step 0 failed" in error and "Traceback" not in error
    assert code_b == 1 and "afm: process 0 of 2 has ended" in error_b


def test_three_share_and_part_in_peace(tmp_path: Path) -> None:
    """Who leaves early, or late, is not lost; nor is one that is busy for longer than a beat."""
    code = """
import sys, time
from afm_mlx import parallel
import mlx.core as mx
with parallel.join() as group:
    rank = group.rank()
    got = parallel.share({"text": "é", "values": [1.5, None]} if rank == 0 else None, group)
    assert got == {"text": "é", "values": [1.5, None]}, got
    x = mx.arange(5, dtype=mx.float32) * (rank + 1)
    assert parallel.total(x, group).tolist() == [0, 6, 12, 18, 24]
    assert parallel.first(x, group).tolist() == [0, 1, 2, 3, 4]
    assert parallel.first(mx.array([rank + 7], mx.uint64), group).tolist() == [7]
    assert parallel.first(mx.array(3 - rank), group).item() == 3
    time.sleep(1.2 * rank)
time.sleep(0.3)
print("parted", rank)
"""
    with ring(tmp_path, *[["-c", code]] * 3) as processes:
        outputs = [p.communicate(timeout=LIMIT) for p in processes]
    assert [p.returncode for p in processes] == [0] * 3, outputs
    assert [out for out, _ in outputs] == [f"parted {rank}\n" for rank in range(3)]
    assert not any(err for _, err in outputs)


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLX_RANK", "MLX_HOSTFILE"):
        monkeypatch.delenv(name, raising=False)
    with parallel.join() as group:
        assert group is None
    x = mx.array([1.0, 2.0])
    np.testing.assert_array_equal(np.array(parallel.total(x, None)), [1, 2])
    np.testing.assert_array_equal(np.array(parallel.first(x, None)), [1, 2])
    assert parallel.share({"a": 1}, None) == {"a": 1}


def test_a_launch_that_cannot_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As many processes as were launched, or none: each alone would write the same saves."""
    (tmp_path / "hosts").write_text("")
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    with pytest.raises(InputError, match="mlx.launch"):
        with parallel.join():
            pass
