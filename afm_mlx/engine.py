"""The engine: one thread that owns every MLX array, and a queue in front of it.

MLX streams belong to threads: a lazy array that crosses into another one raises ``There is no
Stream``. So a single thread loads the model, decodes and (later) trains, and only Python
values leave it. Callers get a :class:`Run`: iterate over it, with ``for`` or ``async for``,
and cancel it from any thread.
"""

import asyncio
import atexit
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from afm_mlx.checkpoint import Checkpoint, load
from afm_mlx.errors import InputError
from afm_mlx.generation import PREFIX_BUDGET, PrefixCache, Request, Snapshot, generate
from afm_mlx.quant.kv import KVOptions, make_cache

import mlx.core as mx

T = TypeVar("T")

LOADING_PATIENCE = 3.0
"""Seconds that closing an engine waits for a model that is still loading."""


class Run(Generic[T]):
    """A job on the engine: its items as they come, then its end or its exception."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._done = False
        self._error: BaseException | None = None
        self._cancel = threading.Event()
        self._changed = threading.Condition()
        self._wake: Callable[[], None] | None = None

    def cancel(self) -> None:
        """Ask the job to stop; a generation ends within two tokens."""
        self._cancel.set()

    @property
    def cancelled(self) -> bool:
        return self._cancel.is_set()

    def __iter__(self) -> Iterator[T]:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(self._ready)
                    item = self._take()
                if item is None:
                    return
                yield item[0]
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[T]:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop may have ended meanwhile
                loop.call_soon_threadsafe(woken.set)

        with self._changed:
            self._wake = wake
        try:
            while True:
                woken.clear()
                with self._changed:
                    item = self._take() if self._ready() else ()
                if item is None:
                    return
                if item:
                    yield item[0]
                else:
                    await woken.wait()
        finally:
            self.cancel()

    def _ready(self) -> bool:
        return bool(self._items) or self._done

    def _take(self) -> tuple[T] | None:
        """Next item as a 1-tuple, or ``None`` at the end; called with the lock held."""
        if self._items:
            return (self._items.popleft(),)
        if self._error is not None:
            raise self._error
        return None

    def _put(self, item: T) -> None:
        with self._changed:
            self._items.append(item)
            self._notify()

    def _end(self, error: BaseException | None = None) -> None:
        with self._changed:
            self._done, self._error = True, error
            self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        if self._wake is not None:
            self._wake()


class Engine:
    """Runs jobs one after the other on the thread that owns the model.

    Use it as a context manager, or call :meth:`close`. The model loads in the background;
    the first job waits for it and raises what went wrong.

    Args:
        prefix_budget: bytes for the KV caches of prompt prefixes.
        kv: bits of the KV cache; the compute type's own if left out.
    """

    def __init__(
        self,
        load_checkpoint: Callable[[], Checkpoint] = load,
        prefix_budget: int = PREFIX_BUDGET,
        kv: KVOptions | None = None,
    ) -> None:
        self._runs: set[Run[Any]] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="afm-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)
        self._prefixes = PrefixCache(prefix_budget, partial(make_cache, options=kv))
        self._loading = self._submit(load_checkpoint)

    @classmethod
    def open(
        cls, source: str | None = None, revision: str | None = None, kv: KVOptions | None = None
    ) -> "Engine":
        """Engine for a model as :func:`afm_mlx.checkpoint.load` finds it."""
        return cls(lambda: load(source, revision), kv=kv)

    @property
    def checkpoint(self) -> Checkpoint:
        """The loaded model; waits for it. Its arrays must only be used inside jobs."""
        return self._loading.result()

    async def ready(self) -> Checkpoint:
        """Wait for the model without blocking the event loop."""
        return await asyncio.shield(asyncio.wrap_future(self._loading))

    def call(self, job: Callable[[Checkpoint], T]) -> "Future[T]":
        """Run ``job`` on the engine's thread once; return plain Python values from it."""
        return self._submit(lambda: job(self._loading.result()))

    def stream(self, job: Callable[[Checkpoint, Callable[[], bool]], Iterator[T]]) -> Run[T]:
        """Run a generator on the engine's thread; its second argument tells if to stop."""
        run: Run[T] = Run()

        def work() -> None:
            try:
                for item in job(self._loading.result(), lambda: run.cancelled):
                    run._put(item)
            except BaseException as error:  # delivered to whoever iterates
                run._end(error)
            else:
                run._end()
            finally:
                self._runs.discard(run)

        self._runs.add(run)
        self._put(work)
        return run

    def generate(self, request: Request) -> Run[Snapshot]:
        """Queue a request; the snapshots' ``metrics.queued`` tells how long it waited."""
        submitted = time.perf_counter()

        def job(checkpoint: Checkpoint, cancelled: Callable[[], bool]) -> Iterator[Snapshot]:
            queued = time.perf_counter() - submitted
            for snapshot in generate(
                checkpoint.model, checkpoint.tokenizer, request, self._prefixes, cancelled
            ):
                yield replace(snapshot, metrics=replace(snapshot.metrics, queued=queued))

        return self.stream(job)

    def forget(self) -> "Future[None]":
        """Drop all cached prompt prefixes."""
        return self._submit(self._prefixes.clear)

    def close(self) -> None:
        """Cancel what runs or waits, and end the thread. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        for run in list(self._runs):
            run.cancel()
        # A download may take minutes and cannot be stopped: the process need not wait for it.
        self._thread.join(timeout=None if self._loading.done() else LOADING_PATIENCE)
        atexit.unregister(self.close)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
        self._prefixes.clear()
        mx.synchronize()
        mx.clear_streams()  # streams that outlive their thread abort the process at its end

    def _submit(self, job: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except BaseException as error:  # delivered to whoever waits
                    future.set_exception(error)

        self._put(work)
        return future

    def _put(self, job: Callable[[], None]) -> None:
        with self._lock:  # nothing may follow the end of the queue
            if self._closed:
                raise InputError("this engine is closed: open another one")
            self._jobs.put(job)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
