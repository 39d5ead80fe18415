"""The engine: one thread, a queue, cancelling, errors, threads and event loops."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

from afm_mlx.checkpoint import Checkpoint
from afm_mlx.engine import Engine, Run, still_loading
from afm_mlx.errors import ExceededContextWindowSizeError, InputError, ModelError
from afm_mlx.generation import GenerationOptions, Request
from tests.conftest import tiny_checkpoint

import mlx.core as mx
import pytest

PROMPT = list(range(3, 43))


def request(count: int = 8) -> Request:
    return Request(PROMPT, GenerationOptions(maximum_response_tokens=count))


def test_all_work_is_on_one_thread(engine: Engine) -> None:
    names = [engine.call(lambda _: threading.current_thread().name).result() for _ in range(3)]
    streamed = list(engine.stream(lambda c, stop: iter([threading.current_thread().name])))
    assert len({*names, *streamed}) == 1
    assert names[0] != threading.current_thread().name


def test_lazy_arrays_would_not_survive_the_crossing(engine: Engine) -> None:
    # The reason for the single thread: if this ever passes, the rule can go.
    lazy = engine.call(lambda c: mx.ones((2,)) + 1).result()
    with pytest.raises(RuntimeError, match="Stream"):
        mx.eval(lazy)


def test_sync_and_async_give_the_same(engine: Engine) -> None:
    plain = [s.text for s in engine.generate(request())]

    async def collect() -> list[str]:
        return [s.text async for s in engine.generate(request())]

    assert asyncio.run(collect()) == plain
    assert len(plain) == 9


def test_jobs_queue_in_order(engine: Engine) -> None:
    runs = [engine.generate(request()) for _ in range(3)]
    metrics = [list(run)[-1].metrics for run in runs]
    assert all(m.swap > 0 for m in metrics)
    waits = [m.queued for m in metrics]
    assert waits == sorted(waits)
    assert waits[2] > 0


def test_many_callers(engine: Engine) -> None:
    expected = list(engine.generate(request()))[-1].text
    found: list[str] = []

    def caller() -> None:
        found.append(list(engine.generate(request()))[-1].text)

    threads = [threading.Thread(target=caller) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 5


def endless(_: Checkpoint, cancelled: Callable[[], bool]) -> Iterator[int]:
    n = 0
    while not cancelled():
        n += 1
        yield n


def test_cancel_from_another_thread(engine: Engine) -> None:
    run = engine.stream(endless)
    items = iter(run)
    next(items)  # it runs, however busy the machine
    threading.Timer(0.05, run.cancel).start()
    for _ in items:  # it ends
        pass
    assert run.cancelled


def test_leaving_the_loop_cancels(engine: Engine) -> None:
    for n in engine.stream(endless):
        if n == 3:
            break
    assert engine.call(lambda _: "free").result(timeout=60) == "free"


def test_cancelling_the_task_cancels_the_run(engine: Engine) -> None:
    async def work() -> None:
        async def consume() -> None:
            async for _ in engine.stream(endless):
                pass

        task = asyncio.create_task(consume())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    assert engine.call(lambda _: "free").result(timeout=60) == "free"


def test_event_loop_stays_free_while_decoding(engine: Engine) -> None:
    """Between items that are there, and while it waits for one: the first comes after a tick."""
    ticked = threading.Event()

    async def work() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1
                ticked.set()

        before = engine.call(lambda _: ticked.wait(60))
        ticking = asyncio.create_task(tick())
        async for _ in engine.generate(request(30)):
            pass
        ticking.cancel()
        assert before.result(), "the loop stood still until the first item"
        return ticks

    assert asyncio.run(work()) >= 30


def test_items_that_wait_do_not_keep_the_loop_from_others() -> None:
    run: Run[int] = Run()
    for n in range(100):
        run._put(n)
    run._end()

    async def work() -> None:
        async def consume() -> None:
            async for n in run:
                read.append(n)

        read: list[int] = []
        consuming = asyncio.create_task(consume())
        while len(read) < 3:
            await asyncio.sleep(0)
        assert len(read) < 10
        consuming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consuming

    asyncio.run(work())
    assert run.cancelled


def test_errors_reach_the_caller_and_the_engine_lives_on(engine: Engine) -> None:
    too_long = Request([5] * 5000)
    with pytest.raises(ExceededContextWindowSizeError):
        list(engine.generate(too_long))

    async def same() -> None:
        async for _ in engine.generate(too_long):
            pass

    with pytest.raises(ExceededContextWindowSizeError):
        asyncio.run(same())
    assert list(engine.generate(request()))[-1].finish_reason == "length"


def test_model_that_cannot_be_loaded() -> None:
    with Engine.open("no-such-model") as engine:
        with pytest.raises(ModelError, match="unknown model"):
            list(engine.generate(request()))
        with pytest.raises(ModelError, match="unknown model"):
            _ = engine.checkpoint


def test_close_cancels_what_runs_and_waits() -> None:
    engine = Engine(tiny_checkpoint)
    runs = [engine.stream(endless) for _ in range(3)]
    engine.close()
    engine.close()
    assert all(run.cancelled for run in runs)


def test_closing_does_not_wait_for_a_long_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afm_mlx.engine.LOADING_PATIENCE", 0.0)
    go = threading.Event()

    def slow() -> Checkpoint:
        go.wait()
        return tiny_checkpoint()

    engine = Engine(slow)
    engine.close()  # would hang here
    assert still_loading()
    go.set()
    engine._thread.join(timeout=60)
    assert not still_loading()


def test_a_command_may_end_while_the_model_loads() -> None:
    # The process aborted: its end took the streams of a thread in MLX away.
    code = (
        "import afm_mlx.engine as engine; from afm_mlx.cli import commands, main\n"
        "from tests.conftest import tiny_checkpoint\n"
        "import mlx.core as mx\n"
        "engine.LOADING_PATIENCE = 0.2\n"
        "def long():\n"
        "    a = mx.ones((300, 300))\n"
        "    while True: mx.eval(a @ a)\n"
        "def run(self):\n"
        "    engine.Engine(long).close(); print('ended'); return 3\n"
        "commands.Doctor.run = run\n"
        "raise SystemExit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (3, "ended\n"), done.stderr


def test_job_that_exits_does_not_kill_the_engine(engine: Engine) -> None:
    def leave(_: Checkpoint) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        engine.call(leave).result(timeout=60)
    assert engine.call(lambda _: 1).result(timeout=60) == 1


def test_closed_engine_takes_no_work() -> None:
    engine = Engine(tiny_checkpoint)
    engine.close()
    with pytest.raises(InputError, match="closed"):
        engine.generate(request())
    with pytest.raises(InputError, match="closed"):
        engine.call(lambda _: None)


@pytest.mark.parametrize("end", ["engine.close()", ""])
def test_process_ends_quietly(end: str) -> None:
    # MLX aborts a process whose threads left streams behind; it did about one time in five.
    code = (
        "from tests.conftest import tiny_checkpoint; from afm_mlx import Engine\n"
        "from tests.test_engine import request\n"
        f"engine = Engine(tiny_checkpoint); print(len(list(engine.generate(request()))))\n{end}"
    )
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "9\n"), done.stderr


def test_prefixes_are_shared_and_forgotten(engine: Engine) -> None:
    kept = Request(PROMPT, GenerationOptions(maximum_response_tokens=2), keep=30)

    def cached() -> int:
        return list(engine.generate(kept))[-1].metrics.cached_tokens

    assert [cached(), cached()] == [0, 30]
    engine.forget().result()
    assert cached() == 0
