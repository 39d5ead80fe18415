"""Make the adapters of feature packages for a model, and keep what is better, as events.

    for event in build(load(), packages().values(), judge):
        print(event)

What is up to date is left alone: an adapter notes a digest of all it was made of, the package's
data and options, the model and the version of this recipe. A new one only takes the place of
another, or of the model alone, if it does better on the held-out rows, by the figure that chose
its best step; evaluation rows are measured on, never decided by. One that is damaged counts as
none. A build that broke off goes on where it was when it is asked for again.
"""

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afm_mlx import events
from afm_mlx.adapters import formats, library, lora
from afm_mlx.adapters.adapter import Adapter, LoRAOptions
from afm_mlx.adapters.data import prepare
from afm_mlx.adapters.objective import Answers, HeldOut
from afm_mlx.adapters.train import METRICS, AdapterTraining, Finished, Planned, train_adapter
from afm_mlx.adapters.train import RECORD as TRAINING
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.data.packing import Windows
from afm_mlx.errors import InputError, first_line
from afm_mlx.evaluation import asked
from afm_mlx.features import FEATURES
from afm_mlx.files import write_bytes
from afm_mlx.packages.package import SHIPPED, Package, packages
from afm_mlx.packages.use import RECORD

RECIPE = 1
"""Version of all code that decides what an adapter becomes; raise it, and all are built anew."""
CARD, MEASURED = "README.md", "\n## Measured quality\n"

Figures = Mapping[str, float]
Judge = Callable[[Checkpoint, Package, Path | None], Generator[tuple[int, int], None, Figures]]
"""Measures an adapter, or the model with the features' examples for ``None``, on a package's
evaluation rows; yields how many of how many are answered (:func:`afm_mlx.packages.judge.judge`)."""


@dataclass(frozen=True)
class UpToDate:
    """The adapter of a package is made of what is there now, or was, and was no better."""

    package: str
    folder: Path
    better: bool = True


@dataclass(frozen=True)
class Begun:
    """Number ``number`` of ``total`` packages is being built, counted from 1."""

    package: str
    number: int
    total: int


@dataclass(frozen=True)
class Trained:
    """What happened in the training of an adapter."""

    package: str
    event: events.Event | Planned


@dataclass(frozen=True)
class Answered:
    """``done`` of ``total`` evaluation rows are answered, by the new adapter or what there was."""

    package: str
    done: int
    total: int


@dataclass(frozen=True)
class Built:
    """An adapter is ready.

    Attributes:
        folder: where it is, if it ``replaced`` what was used before; else where that stays, or if
            nothing was, where the new one was trained.
        loss, loss_before: on the held-out rows; before by another adapter or the model alone.
        figures, figures_before: on the evaluation rows; those of the model alone with examples.
    """

    package: str
    folder: Path
    replaced: bool
    loss: float
    loss_before: float
    figures: Figures
    figures_before: Figures


BuildEvent = UpToDate | Begun | Trained | Answered | Built


def chosen(names: Iterable[str], folder: Path = SHIPPED) -> list[Package]:
    """The packages of these names, or that serve features of these names; all for none.

    Raises:
        InputError: there is no such package.
    """
    known, wanted = packages(folder), list(names)
    unknown = [n for n in wanted if not any(_serves(p, n) for p in known.values())]
    if unknown:
        raise InputError(f"there is no package {unknown[0]!r}: name some of {', '.join(known)}")
    return [p for p in known.values() if not wanted or any(_serves(p, n) for n in wanted)]


def _serves(package: Package, name: str) -> bool:
    return name in (package.name, *package.features)


def build(
    base: Checkpoint,
    wanted: Iterable[Package],
    judge: Judge,
    home: Path | None = None,
    cache: Path | None = None,
    force: bool = False,
) -> Iterator[BuildEvent]:
    """Make the adapters of packages for a model.

    Args:
        home: folder of all adapters; that of the user's data if left out.
        cache: where training keeps its saves; that of the user if left out.
        force: build what is up to date too, and let it replace better ones.

    Raises:
        InputError: data or options cannot be used, or a folder cannot be written.
    """
    listed = list(wanted)
    for number, package in enumerate(listed, 1):
        one = _Build(base, package, judge, home or library.home(), cache or library.cache())
        done = None if force else one.up_to_date()
        if done is not None:
            yield done
            continue
        yield Begun(package.name, number, len(listed))
        yield from one.run(force)


class _Build:
    """One package on its way to an adapter."""

    def __init__(
        self, base: Checkpoint, package: Package, judge: Judge, home: Path, cache: Path
    ) -> None:
        self.base, self.package, self.judge, self.cache = base, package, judge, cache
        self.name = f"{package.name}-{base.signature[:8]}"
        self.folder = home / self.name
        recovery = base.path / formats.RECOVERY
        self.start = recovery if formats.is_adapter(recovery) else None
        self.options = self._options()
        self.identity = self._identity()
        self.measured_by = {
            "recipe": RECIPE,
            "rows": _digest(package.evaluation).hex(),
            "asked": asked(FEATURES[name] for name in package.features),
        }
        """What figures follow from beside the adapter."""
        # Named like the saves of its training, it goes with them when the adapter is removed.
        self.candidate = cache / f"{self.name}-{self.identity[:12]}"
        self.options = replace(self.options, out=str(self.candidate))

    def _options(self) -> AdapterTraining:
        package, shape = self.package, self.package.lora
        if self.start is not None:
            shape = _covering(shape, formats.read(self.start).options)
        return AdapterTraining(
            self.name,
            feature=package.name,
            licence=package.licence,
            start=str(self.start or ""),
            overwrite=True,
            cache=str(self.cache),
            data=replace(package.data, held_out=0, held_out_data=(str(package.held_out),)),
            lora=shape,
            training=package.training,
        )

    def _identity(self) -> str:
        """Digest of all that the adapter is made of."""
        options = replace(self.options, start="", cache="", data=self.package.data)
        digest = hashlib.sha256(f"{RECIPE} {self.base.signature} {options}".encode())
        files = [self.package.train, self.package.held_out]
        files += [self.start / formats.WEIGHTS] if self.start is not None else []
        for file in files:
            digest.update(_digest(file))
        return digest.hexdigest()

    @property
    def current(self) -> Path | None:
        """The adapter that a new one would take the place of."""
        if _whole(self.folder):
            return self.folder
        shipped = _whole(self.package.folder)
        if shipped and shipped.about.base_signature == self.base.signature:
            return self.package.folder
        return None

    def up_to_date(self) -> UpToDate | None:
        current = self.current
        known = _record(current) if current is not None else {}
        if current is not None and known.get("identity") == self.identity:
            return UpToDate(self.package.name, current)
        if _record(self.candidate).get("refused_for") == known.get("identity", ""):
            return UpToDate(self.package.name, current or self.candidate, better=False)
        return None

    def run(self, force: bool) -> Iterator[BuildEvent]:
        name = self.package.name
        if self.folder.exists() and not formats.is_adapter(self.folder):
            raise InputError(f"{self.folder} is in the way and no adapter: move it elsewhere")
        for event in train_adapter(self.base, [str(self.package.train)], self.options):
            if not isinstance(event, Finished):
                yield Trained(name, event)
        current, select = self.current, self.package.training.select
        held_out = self._held_out()
        made, known = (self._look(held_out, folder) for folder in (self.candidate, current))
        better = made[select] < known[select] or (current and made[select] == known[select])
        figures = yield from self._figures(self.candidate)
        figures_before = yield from self._figures(current)
        loss, before = made["loss"], known["loss"]
        if force or better:
            # What the model alone says with examples has no loss beside that without.
            what = "the adapter before it" if current else "the model with examples"
            row = _row(before if current else None, figures_before)
            self._install(loss, figures, {what: row})
        else:
            self._refuse(current, {"this adapter": _row(before, figures_before)}, loss, figures)
        replaced = force or bool(better)
        folder = self.folder if replaced else current or self.candidate
        yield Built(name, folder, replaced, loss, before, figures, figures_before)

    def _held_out(self) -> Windows:
        given = self.options
        lessons = prepare(
            [str(self.package.train)],
            given.data,
            self.base.tokenizer,
            self.cache / "tokens",
            self.base.model.args.max_position_embeddings,
            given.training.batch_size,
            given.training.seed,
        )
        assert lessons.held_out is not None  # the options name a file
        return lessons.held_out

    def _look(self, held_out: Windows, folder: Path | None) -> Figures:
        """Figures of an adapter, or of the model alone, on the held-out answers."""
        lora.put(self.base.model, formats.read(folder) if folder is not None else None)
        try:
            return HeldOut(Answers(self.base.model, states=0), held_out)()
        finally:
            lora.put(self.base.model, None)

    def _figures(self, folder: Path | None) -> Generator[BuildEvent, None, Figures]:
        """On the evaluation rows; those that were measured before in the same way are known."""
        known = _record(folder) if folder is not None else {}
        figures = known.get("figures")
        as_now = all(known.get(k) == v for k, v in self.measured_by.items())
        if as_now and isinstance(figures, dict):
            return figures
        judging = self.judge(self.base, self.package, folder)
        while True:
            try:
                done, total = next(judging)
            except StopIteration as end:
                return end.value
            yield Answered(self.package.name, done, total)

    def _install(self, loss: float, figures: Figures, before: Mapping[str, Figures]) -> None:
        made = formats.read(self.candidate, self.name)
        metrics = {**made.about.metrics, "loss": loss, **figures}
        readme = (self.candidate / CARD).read_text(encoding="utf-8")
        columns = {"this adapter": _row(loss, figures), **before}
        files = {
            CARD: (readme.partition(MEASURED)[0] + measured(columns)).encode(),
            RECORD: self._note(figures=dict(figures)),
            TRAINING: (self.candidate / TRAINING).read_bytes(),
            METRICS: (self.candidate / METRICS).read_bytes(),
        }
        adapter = replace(made, about=replace(made.about, metrics=metrics))
        formats.write(adapter, self.folder, overwrite=True, extra=files)

    def _refuse(
        self, current: Path | None, kept: Mapping[str, Figures], loss: float, figures: Figures
    ) -> None:
        """Note in both folders how the new adapter did; it stays where it was trained."""
        columns = {**kept, "a newer one, not taken": _row(loss, figures)}
        if current is not None and current == self.folder:
            file = current / CARD
            readme = file.read_text(encoding="utf-8") if file.is_file() else ""
            text = readme.partition(MEASURED)[0] + measured(columns)
            write_bytes(current / CARD, text.encode())
        identity = _record(current).get("identity", "") if current is not None else ""
        write_bytes(self.candidate / RECORD, self._note(figures=figures, refused_for=identity))

    def _note(self, **more: object) -> bytes:
        known = {"package": self.package.name, "identity": self.identity, **self.measured_by}
        return json.dumps({**known, **more}, indent=1).encode()


def _digest(file: Path) -> bytes:
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError as error:
        raise InputError(
            f"cannot read {file} ({first_line(error)}): restore the package"
        ) from error


def _whole(folder: Path) -> Adapter | None:
    """The adapter in a folder; none if there is none, or it is damaged."""
    try:
        return formats.read(folder) if formats.is_adapter(folder) else None
    except InputError:
        return None


def _covering(shape: LoRAOptions, start: LoRAOptions) -> LoRAOptions:
    """A shape that an adapter of another one can begin as."""
    layers = (shape.num_layers, start.num_layers)
    return replace(
        shape,
        rank=max(shape.rank, start.rank),
        dora=shape.dora or start.dora,
        keys=tuple(sorted({*shape.keys, *start.keys})) if shape.keys else (),
        num_layers=-1 if -1 in layers else max(layers),
    )


def _record(folder: Path) -> dict[str, Any]:
    """What a built adapter was made of; nothing for others."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _row(loss: float | None, figures: Figures) -> Figures:
    return {**({} if loss is None else {"held-out loss": loss}), **figures}


def measured(columns: Mapping[str, Figures]) -> str:
    """The part of a card that tells figures, adapters side by side."""
    names = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = [f"{c[name]:.3f}" if name in c else "" for c in columns.values()]
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    said = (
        "Loss on rows held out of training; all else on evaluation rows, which no adapter was"
        " trained on.\nAnswers of an adapter that have faults may be sampled again; those of the"
        " model alone are not."
    )
    return f"{MEASURED}\n{said}\n\n" + "\n".join(lines) + "\n"
