"""The one door from the screens to the package: engine, adapters, features, settings, status.

Screens call it on the app's loop; whatever takes time runs on the engine's thread or beside the
loop, and whoever asked to be told of changes is called on the loop.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from afm_mlx import features, hub, packages
from afm_mlx.adapters import library
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.engine import Engine
from afm_mlx.errors import AFMError, InputError
from afm_mlx.features import FEATURES, Answer, Feature, Progress
from afm_mlx.generation import GenerationOptions, Metrics
from afm_mlx.model import named_weights
from afm_mlx.packages import SHIPPED
from afm_mlx.tui import settings as files
from afm_mlx.tui.settings import AUTO, Choice, Settings
from afm_mlx.tui.shelf import Installed, find, listed

T = TypeVar("T")

State = Literal["loading", "ready", "failed"]


@dataclass(frozen=True)
class Status:
    """What the status line shows.

    Attributes:
        state: of the model.
        busy: what the engine does for long meanwhile, such as ``training``; requests wait.
        bits: stored bits of a weight, everything counted.
        adapter: name of the one that answered last; empty for none.
        memory: bytes, of the weights until there was a request, then the peak of the last one.
        swap: seconds that it took to put the adapter in, or to load it before.
        first_token: seconds.
    """

    model: str = ""
    state: State = "loading"
    busy: str = ""
    bits: float | None = None
    adapter: str = ""
    memory: int = 0
    swap: float | None = None
    first_token: float | None = None
    tokens_per_second: float | None = None
    tokens: int | None = None


class Services:
    """Everything that the screens need of the package.

    Args:
        engine: may be loading still; :meth:`start` waits for it.
        file: where settings are kept; nowhere if left out.
        home: folder of all adapters; that of the user's data if left out.
        shipped: folder of the feature packages.
        open_engine: opens an engine for a source, see :meth:`open_model`.
        notice: what to tell the person at the start.

    Attributes:
        settings: changed through :meth:`change` alone.
        status: of now; :meth:`on_change` tells when there is another.
        models: folder of the models that were written here.
        written: the last writing of settings.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings = Settings(),  # noqa: B008 - frozen
        file: Path | None = None,
        home: Path | None = None,
        shipped: Path = SHIPPED,
        open_engine: Callable[[str | None], Engine] = Engine.open,
        notice: str = "",
    ) -> None:
        self.engine, self.settings, self.file, self.notice = engine, settings, file, notice
        self._kept = self._in_file = settings
        self.home, self.shipped = home or library.home(), shipped
        self.models = self.home.parent / "models"
        self.status = Status(settings.model or hub.DEFAULT_MODEL)
        self._open_engine = open_engine
        self._watchers: list[Callable[[], None]] = []
        self._loaded: dict[Path, float] = {}
        self._works: list[str] = []
        self._asked = 0  # how often another model was
        self._opening = False  # whether the last one of them is still to come
        self._known: dict[str, Any] = {"model": self.status.model}
        self._writer = ThreadPoolExecutor(1, "afm-settings")
        self.written: Future[None] = Future()
        self.written.set_result(None)

    @classmethod
    def open(cls, model: str | None = None, inbox: str | None = None) -> "Services":
        """Services with the person's settings; ``model`` and ``inbox`` go before them this time."""
        file = files.path()
        known, notice = files.read(file)
        services = cls(Engine.open(model or known.model), known, file, notice=notice)
        now = replace(known, model=model or known.model, inbox=inbox or known.inbox)
        services.settings, services.status = now, Status(now.model or hub.DEFAULT_MODEL)
        return services

    # ---- settings, status

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have ``callback`` called after any change of status or settings; returns how to stop."""
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback)

    def change(self, **changes: Any) -> "Future[None]":
        """Change settings and write them at once; the future raises ``InputError`` if it fails."""
        self.settings = replace(self.settings, **changes)
        self._kept = replace(self._kept, **changes)
        if self.file is not None:
            self.written = self._writer.submit(self._write, self._kept, self.file)
        self._tell()
        return self.written

    def _write(self, kept: Settings, file: Path) -> None:
        files.update(self._in_file, kept, file)
        self._in_file = kept

    def set_status(self, **changes: Any) -> None:
        """Change what the status line shows."""
        self.status = replace(self.status, **changes)
        self._tell()

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Show ``what`` the engine does for long, so that others know why they wait.

        Of several the first is shown: the others wait for it.
        """
        self._works.append(what)
        self.set_status(busy=self._works[0])
        try:
            yield
        finally:
            self._works.remove(what)
            self.set_status(busy=next(iter(self._works), ""))

    def _tell(self) -> None:
        for callback in list(self._watchers):
            callback()

    # ---- model

    async def start(self) -> None:
        """Wait for the model and say what it is.

        Raises:
            AFMError: it cannot be loaded; the status says so.
        """
        engine = self.engine
        try:
            known = await _described(engine)
        except BaseException as error:
            if self.engine is not engine and isinstance(error, AFMError):
                return  # another model was chosen meanwhile, and this one closed
            self._known["state"] = "failed"
            if not self._opening:
                self.set_status(state="failed")
            raise
        if self.engine is engine:
            self._known = known
            if not self._opening:
                self._show_model()

    async def open_model(self, source: str | None) -> str:
        """Use another model from now on; the old one stays if that fails, or if yet another one is
        asked for before this one is there.

        Returns:
            What to tell the person: which chosen adapters are for another model, and not used.

        Raises:
            AFMError: it cannot be loaded.
        """
        self._asked += 1
        number, self._opening = self._asked, True
        self.set_status(state="loading", model=source or hub.DEFAULT_MODEL)
        embedded = source is None or source.lower() == hub.DEFAULT_MODEL
        lasting = source if embedded else files.lasting(str(source))
        engine = self._open_engine(source)
        try:
            known = await _described(engine)
        except BaseException:
            if number == self._asked:
                self._opening = False
                self.set_status(**self._known)
            await asyncio.to_thread(engine.close)
            raise
        if number != self._asked:
            await asyncio.to_thread(engine.close)
            return ""
        old, self.engine, self._known, self._opening = self.engine, engine, known, False
        self._loaded.clear()
        self.change(model=lasting)
        self._show_model()
        await asyncio.to_thread(old.close)
        return await self._without_misfits()

    def _show_model(self) -> None:
        self.status = Status(busy=self.status.busy, **self._known)
        self._tell()

    async def _without_misfits(self) -> str:
        """Let features choose for themselves where the person's adapter is for another model."""
        settings = self.settings
        chosen = {settings.adapter, *settings.adapters.values()} - {AUTO, None}
        if not chosen:
            return ""
        signature = await asyncio.wrap_future(self.engine.call(lambda base: base.signature))
        there = {name: a for a in await self.installed() for name in (a.name, str(a.folder))}
        misfits = {n for n in chosen if n in there and not there[n].fits(signature)}
        if not misfits:
            return ""
        self.change(
            adapter=AUTO if settings.adapter in misfits else settings.adapter,
            adapters={f: a for f, a in settings.adapters.items() if a not in misfits},
        )
        names = ", ".join(sorted(Path(str(name)).name for name in misfits))
        return f"for another model, and not used from now on: {names}"

    async def close(self) -> None:
        """End the engine and write what is still to be written."""
        await asyncio.to_thread(self.engine.close)
        await asyncio.to_thread(self._writer.shutdown)

    # ---- adapters

    async def installed(self) -> list[Installed]:
        """All adapters: those in the folder of adapters, then those that come along."""
        return await asyncio.to_thread(listed, self.home, self.shipped)

    def choose(self, adapter: Choice, feature: str | None = None) -> None:
        """Use an adapter from now on: for one feature, or for all of them.

        Args:
            adapter: name or folder, ``AUTO``, or ``None`` for the model without a feature's
                adapter; :meth:`load` it first to see whether it can be used.
        """
        if feature is None:
            self.change(adapter=adapter, adapters={})
        else:
            self.change(adapters={**self.settings.adapters, feature: adapter})

    async def adapter_for(self, feature: str) -> str | None:
        """Name for requests of the adapter that serves a feature, loaded; ``None`` is none.

        It is the person's choice, else what the packages have for the model.

        Raises:
            InputError: it is damaged or for another model.
        """
        return await self._named(self.settings.choice(feature), feature)

    async def package_adapter(self, feature: str) -> str | None:
        """The same whatever the person chose: that of the feature's package."""
        return await self._named(AUTO, feature)

    async def load(self, adapter: str | Path) -> str:
        """Load an adapter by its name or folder, unless it is in memory as its files are now.

        Returns:
            Its name for requests.
        """
        folder = await asyncio.to_thread(find, str(adapter), self.home, self.shipped)
        changed = await asyncio.to_thread(_changed, folder)
        if self._loaded.get(folder) != changed:
            engine = self.engine
            # Nothing comes between the three on the engine's thread, however long they wait.
            began = engine.call(lambda _: time.perf_counter())
            loading = engine.load_adapter(folder, str(folder))
            ended = engine.call(lambda _: time.perf_counter())
            await asyncio.wrap_future(loading)
            took = (await asyncio.wrap_future(ended)) - began.result()
            if self.engine is not engine:  # another model came meanwhile
                return await self.load(adapter)
            self._loaded[folder] = changed
            self.set_status(swap=took)
        return str(folder)

    async def _named(self, choice: Choice, feature: str) -> str | None:
        if choice is None:
            return None
        if choice != AUTO:
            return await self.load(choice)
        home, shipped = self.home, self.shipped
        found = await asyncio.wrap_future(
            self.engine.call(
                lambda base: packages.find(feature, lambda: base.signature, home, shipped)
            )
        )
        for folder in found:
            try:
                return await self.load(folder)
            except InputError:  # damaged: the next one
                if folder == found[-1]:
                    raise
        return None

    # ---- features

    async def run(
        self,
        feature: Feature[Any] | str,
        value: Any,
        adapter: Choice = AUTO,
        best_of: int | None = None,
        options: GenerationOptions | None = None,
    ) -> AsyncIterator[Progress | Answer]:
        """Stream a feature as :func:`afm_mlx.features.run` does, and keep the status up to date.

        Close it, or cancel the task, to stop.

        Args:
            adapter: what :meth:`adapter_for` says, unless one is named; ``None`` is the model
                without one.
        """
        asked = FEATURES[feature] if isinstance(feature, str) else feature
        if adapter == AUTO:
            named = await self.adapter_for(asked.name)
        else:
            named = await self._named(adapter, asked.name)
        self.set_status(adapter=Path(named).name if named else "")
        events = features.run(self.engine, asked, value, options, adapter=named, best_of=best_of)
        try:
            async for event in events:
                if isinstance(event, Answer):
                    self._measured(event.metrics, adapted=bool(named))
                yield event
        finally:
            await events.aclose()  # type: ignore[attr-defined]

    def _measured(self, metrics: Metrics, adapted: bool) -> None:
        self.set_status(
            swap=metrics.swap if adapted else None,
            memory=metrics.peak_memory,
            first_token=metrics.time_to_first_token,
            tokens_per_second=metrics.tokens_per_second,
            tokens=metrics.generated_tokens,
        )


async def in_background(job: Callable[[], T]) -> T:
    """Run what may take minutes and cannot be stopped; the program's end does not wait for it."""
    future: Future[T] = Future()

    def work() -> None:
        future.set_running_or_notify_cancel()  # from now on nobody can cancel it
        try:
            future.set_result(job())
        except BaseException as error:  # delivered to whoever waits
            future.set_exception(error)

    threading.Thread(target=work, name="afm-background", daemon=True).start()
    return await asyncio.wrap_future(future)


async def _described(engine: Engine) -> dict[str, Any]:
    """What the status says of a model once it is loaded."""
    checkpoint = await engine.ready()
    size = await asyncio.to_thread(_size, checkpoint.path)
    return {
        "model": Path(checkpoint.name).name,
        "state": "ready",
        "bits": 8 * size / checkpoint.model.args.num_parameters if size else None,
        "memory": await asyncio.wrap_future(engine.call(_weights)),
    }


def _size(path: Path) -> int:
    """Bytes of a model's weights on disk."""
    if path.is_file():
        return path.stat().st_size
    return sum(f.stat().st_size for f in path.glob("model*.safetensors"))


def _weights(checkpoint: Checkpoint) -> int:
    return sum(v.nbytes for _, v in named_weights(checkpoint.model))


def _changed(folder: Path) -> float:
    return max((f.stat().st_mtime for f in folder.glob("*adapter*")), default=0.0)
