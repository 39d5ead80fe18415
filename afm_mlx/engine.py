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
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from afm_mlx.adapters import formats
from afm_mlx.adapters.batch import generate_batch
from afm_mlx.adapters.store import BUDGET, Listed, Store
from afm_mlx.checkpoint import Checkpoint, load
from afm_mlx.errors import InputError
from afm_mlx.generation import PREFIX_BUDGET, PrefixCache, Request, Snapshot, generate
from afm_mlx.quant.kv import KVOptions, make_cache

import mlx.core as mx

T = TypeVar("T")

LOADING_PATIENCE = 3.0
"""Seconds that closing an engine waits for a model that is still loading."""
_LEFT: list[threading.Thread] = []
"""Threads that closing did not wait for."""


def still_loading() -> bool:
    """Whether a closed engine is loading still; an orderly end of the process would abort then."""
    return any(thread.is_alive() for thread in _LEFT)


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
                    # A job that is faster than its reader must not keep the loop from others.
                    await asyncio.sleep(0)
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

    Every job finds the model with its default adapter (the recovery adapter in its folder, if
    there is one), or the one that its request names, and nothing changes that while it runs.

    Args:
        prefix_budget: bytes for the KV caches of prompt prefixes.
        kv: bits of the KV cache; the compute type's own if left out.
        adapter_budget: bytes for adapters in memory.
    """

    def __init__(
        self,
        load_checkpoint: Callable[[], Checkpoint] = load,
        prefix_budget: int = PREFIX_BUDGET,
        kv: KVOptions | None = None,
        adapter_budget: int = BUDGET,
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
        self._storing = self._submit(lambda: self._open_store(adapter_budget))

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
        return self._submit(lambda: job(self._model()))

    def stream(self, job: Callable[[Checkpoint, Callable[[], bool]], Iterator[T]]) -> Run[T]:
        """Run a generator on the engine's thread; its second argument tells if to stop."""
        run: Run[T] = Run()

        def work() -> None:
            try:
                for item in job(self._model(), lambda: run.cancelled):
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
        """Queue a request; the snapshots' metrics tell how long it waited and the swap took.

        It is answered with the adapter that it names; jobs keep their order, so one that is
        unloaded later serves it still.
        """
        submitted = time.perf_counter()

        def job(checkpoint: Checkpoint, cancelled: Callable[[], bool]) -> Iterator[Snapshot]:
            begun = time.perf_counter()
            number = self._store.put(request.adapter)
            queued, swap = begun - submitted, time.perf_counter() - begun
            for snapshot in generate(
                checkpoint.model, checkpoint.tokenizer, request, self._prefixes, cancelled, number
            ):
                metrics = replace(snapshot.metrics, queued=queued, swap=swap)
                yield replace(snapshot, metrics=metrics)

        return self.stream(job)

    def generate_batch(self, requests: Sequence[Request]) -> Run[tuple[int, Snapshot]]:
        """Answer several requests side by side, each with its own adapter; greedily.

        Items are snapshots with the index of their request; each request's last one has a
        finish reason.
        """

        def job(
            checkpoint: Checkpoint, cancelled: Callable[[], bool]
        ) -> Iterator[tuple[int, Snapshot]]:
            model, tokenizer = checkpoint.model, checkpoint.tokenizer
            return generate_batch(
                model, tokenizer, requests, self._store, self._prefixes, cancelled
            )

        return self.stream(job)

    def load_adapter(self, folder: str | Path, name: str | None = None) -> "Future[Listed]":
        """Load an adapter for requests to name; it is called as its folder unless told otherwise.

        The future raises ``InputError`` if it is damaged or for another model; all is as it was
        then.
        """
        path = Path(folder)
        return self.call(lambda _: self._store.add(name or path.resolve().name, path))

    def unload_adapter(self, name: str) -> "Future[None]":
        """Forget an adapter; its folder stays."""
        return self.call(lambda _: self._store.remove(name))

    def adapters(self) -> "Future[list[Listed]]":
        """The adapters that requests can name."""
        return self.call(lambda _: self._store.listed())

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
        if self._thread.is_alive():
            _LEFT.append(self._thread)
        atexit.unregister(self.close)

    @property
    def _store(self) -> Store:
        return self._storing.result()

    def _open_store(self, budget: int) -> Store:
        checkpoint = self._loading.result()
        store = Store(checkpoint.model, lambda: checkpoint.signature, budget)
        recovery = checkpoint.path / formats.RECOVERY
        if formats.is_adapter(recovery):
            store.add(formats.RECOVERY, recovery)
            store.default = formats.RECOVERY
        return store

    def _model(self) -> Checkpoint:
        """The model with its default adapter, as every job finds it."""
        checkpoint = self._loading.result()
        self._store.put(None)
        return checkpoint

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
