"""Adapters beside one model: found, checked, kept in memory, and put in by reference.

What a swap needs is worked out when an adapter is loaded: which slot gets which matrices, in the
type that the model computes in. Then another adapter costs a few attributes per layer; base
weights are never touched, and nothing is copied, converted or read. The least recently used leave
memory first, and are read again when wanted.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path

from afm_mlx.adapters import formats
from afm_mlx.adapters.adapter import About, Adapter, LoRAOptions
from afm_mlx.adapters.layers import Filling, Slot
from afm_mlx.adapters.lora import fit, slots, stacked
from afm_mlx.errors import InputError

import mlx.core as mx
from mlx import nn

BUDGET = 512 * 2**20
"""Bytes of adapters kept in memory."""
BARE = ""
"""In the place of a name: the model without any adapter."""


@dataclass(frozen=True)
class Listed:
    """An adapter that a store knows; plain values, which may leave the thread of the arrays.

    Attributes:
        loaded: whether it is in memory, where it takes ``nbytes``.
        default: whether it is used where a request names none.
    """

    name: str
    folder: Path
    options: LoRAOptions
    about: About
    nbytes: int
    loaded: bool
    default: bool


@dataclass(frozen=True, eq=False)
class Loaded:
    """An adapter in memory.

    Attributes:
        identity: differs for all adapters ever loaded, and is never 0.
    """

    identity: int
    fillings: Mapping[str, Filling]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        return sum(filling.nbytes for filling in self.fillings.values())


class Store:
    """The adapters of one model; all of it belongs to the thread that owns the arrays.

    Args:
        signature: gives the model's base signature; only asked when an adapter names one.
        budget: bytes of adapters in memory; one is always kept, however large.

    Attributes:
        default: name of the adapter that is used where none is named; ``BARE`` is none.
    """

    def __init__(
        self, model: nn.Module, signature: Callable[[], str], budget: int = BUDGET
    ) -> None:
        self.model, self.budget, self.default = model, budget, BARE
        self._signature = signature
        self._known: dict[str, Listed] = {}
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._slots: dict[str, Slot] = slots(model)  # others may have left matrices there
        self._rows = mx.zeros((0,), mx.uint32)
        self._identities = count(1)

    @staticmethod
    def find(folder: Path) -> dict[str, Path]:
        """Adapter folders by name: ``folder`` itself, or those in it; hidden ones are being
        written, or never were to their end."""
        folder = Path(folder)
        if formats.is_adapter(folder):
            return {folder.resolve().name: folder}
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        shown = (path for path in inside if not path.name.startswith("."))
        return {path.name: path for path in shown if formats.is_adapter(path)}

    @property
    def names(self) -> list[str]:
        """Names of all adapters added, in memory or not."""
        return sorted(self._known)

    @property
    def nbytes(self) -> int:
        """Bytes of the adapters in memory."""
        return sum(x.nbytes for x in self._loaded.values())

    def listed(self) -> list[Listed]:
        """All that is known of the adapters, by name."""
        return [
            replace(self._known[n], loaded=n in self._loaded, default=n == self.default)
            for n in self.names
        ]

    def add(self, name: str, folder: Path) -> Listed:
        """Load an adapter; one of the same name makes place for it.

        Raises:
            InputError: it is damaged or for another model; nothing has changed then.
        """
        if name == BARE:
            raise InputError("an adapter needs a name: give it one")
        adapter = self._read(name, Path(folder))
        loaded = self._keep(adapter)
        self._known[name] = Listed(
            name, Path(folder), adapter.options, adapter.about, loaded.nbytes, True, False
        )
        return replace(self._known[name], default=name == self.default)

    def remove(self, name: str) -> None:
        """Forget an adapter; its folder stays.

        Raises:
            InputError: there is none of that name.
        """
        self._folder(name)
        if name == self.default:
            self.default = BARE
        del self._known[name]
        self._loaded.pop(name, None)
        self.use(None)

    def put(self, name: str | None) -> int:
        """Have the model run with an adapter, the default one for ``None``.

        Returns:
            A number that names the adapter's contents, for caches; 0 is the bare model.

        Raises:
            InputError: it is unknown, or its folder is not what it was; what was in stays in.
        """
        return self.use(self.get(name))

    def use(self, found: Loaded | None) -> int:
        """Have the model run with what :meth:`get` gave; the same number as from :meth:`put`."""
        fillings = found.fillings if found is not None else {}
        for place, slot in self._slots.items():
            if place in fillings:
                slot.fill(fillings[place])
            else:
                slot.empty()
        return found.identity if found is not None else 0

    def use_rows(self, found: Sequence[Loaded | None]) -> None:
        """Have each row of a batch run with what :meth:`get` gave for it."""
        different = list(dict.fromkeys(found))
        self._rows = mx.array([different.index(x) for x in found], mx.uint32)
        fillings = [x.fillings if x is not None else {} for x in different]
        for place, slot in self._slots.items():
            parts = [f.get(place) for f in fillings]
            if any(parts):
                slot.fill(stacked(parts, slot.shape, self._rows))
            else:
                slot.empty()

    def keep_rows(self, kept: mx.array) -> None:
        """Go on with these rows of the batch only, ``[B]``."""
        self._rows = self._rows[kept]
        for slot in self._slots.values():
            slot.take_rows(self._rows)

    def get(self, name: str | None) -> Loaded | None:
        """An adapter that is in memory from now on, the default one for ``None``.

        Raises:
            InputError: it is unknown, or its folder is not what it was.
        """
        name = self.default if name is None else name
        if name == BARE:
            return None
        folder = self._folder(name)
        if name not in self._loaded:
            return self._keep(self._read(name, folder))
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def _folder(self, name: str) -> Path:
        if name not in self._known:
            known = ", ".join(self.names) or "none"
            raise InputError(f"there is no adapter {name!r} here ({known}): load it first")
        return self._known[name].folder

    def _read(self, name: str, folder: Path) -> Adapter:
        """The adapter in a folder, if it is for this model."""
        adapter = formats.read(folder, name)
        own = adapter.about.base_signature
        if own and own != self._signature():
            raise InputError(
                f"adapter {name} is for another model (base signature {own[:12]}, this model has"
                f" {self._signature()[:12]}): train it for this one"
            )
        return adapter

    def _keep(self, adapter: Adapter) -> Loaded:
        """Check an adapter against the model, and take it into memory."""
        loaded = Loaded(next(self._identities), fit(self.model, adapter))
        self._slots = slots(self.model)
        self._loaded[adapter.name] = loaded
        self._loaded.move_to_end(adapter.name)
        while self.nbytes > self.budget and len(self._loaded) > 1:
            self._loaded.popitem(last=False)
        return loaded
