"""An adapter in a model: make its slots, fill and empty them, get them ready to learn.

Layers get a slot when the first adapter needs it (:mod:`afm_mlx.adapters.layers`) and keep it;
from then on another adapter is a matter of references. Names are those of mlx-lm, so
``mx.save_safetensors("adapters.safetensors", taken(model))`` loads there.
"""

import math
from collections.abc import Collection, Sequence

from afm_mlx.adapters.adapter import LEAVES, Adapter, LoRAOptions, Matrices
from afm_mlx.adapters.layers import Filling, LoRAEmbedding, LoRALinear, Slot, slot_of
from afm_mlx.errors import InputError

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

__all__ = [
    "LoRAEmbedding",
    "LoRALinear",
    "LoRAOptions",
    "Slot",
    "compute_type",
    "fit",
    "learning",
    "make_slots",
    "prepare",
    "put",
    "slots",
    "stacked",
    "strip",
    "taken",
    "targets",
    "unfreeze",
]


def _candidates(model: nn.Module) -> dict[str, Slot]:
    """A slot for every layer that can have one, by dotted name: its own, or one not yet in."""
    modules: list[tuple[str, nn.Module]] = sorted(model.named_modules())
    inside = {id(m.base) for _, m in modules if isinstance(m, Slot)}
    found = ((name, slot_of(m)) for name, m in modules if id(m) not in inside)
    return {name: slot for name, slot in found if slot is not None}


def slots(model: nn.Module) -> dict[str, Slot]:
    """The slots of a model by dotted name."""
    return {name: m for name, m in sorted(model.named_modules()) if isinstance(m, Slot)}


def make_slots(model: nn.Module, places: Collection[str]) -> dict[str, Slot]:
    """The slots at ``places``; they are made where there are none.

    Raises:
        InputError: a place is no linear layer or embedding of the model; none is made then.
    """
    candidates, own = _candidates(model), slots(model)
    missing = sorted(set(places) - set(candidates))
    if missing:
        raise InputError(
            f"the model has no linear layer {missing[0]}: the adapter is for another model"
        )
    made = [(place, candidates[place]) for place in places if place not in own]
    for _, slot in made:
        slot.train(slot.base.training)
    if made:
        model.update_modules(tree_unflatten(made))
    return {place: candidates[place] for place in places}


def strip(model: nn.Module) -> None:
    """Take all slots off again; a :class:`~afm_mlx.adapters.store.Store` must be opened anew."""
    model.update_modules(tree_unflatten([(n, s.base) for n, s in slots(model).items()]))


def targets(model: nn.Module, options: LoRAOptions) -> list[str]:
    """Dotted names of the layers that an adapter with these options is for.

    Raises:
        InputError: a key names no layer.
    """
    names = {id(m): name for name, m in model.named_modules()}
    chosen = model.layers[-options.num_layers :] if options.num_layers > 0 else model.layers
    blocks = [names[id(block)] + "." for block in model.layers]
    wanted = [names[id(block)] + "." for block in chosen]
    found, unseen = [], set(options.keys)
    for name, slot in _candidates(model).items():
        block = next((b for b in blocks if name.startswith(b)), "")
        key = name.removeprefix(block)
        linear = block and isinstance(slot, LoRALinear)
        if key in options.keys or (not options.keys and linear):
            unseen.discard(key)
            if not block or block in wanted:
                found.append(name)
    if unseen:
        raise InputError(f"no layer is called {min(unseen)}: write them as self_attn.q_proj")
    return found


def compute_type(model: nn.Module) -> mx.Dtype:
    """The type of a model's activations, which its norms have."""
    norms = (m for _, m in model.named_modules() if isinstance(m, nn.RMSNorm | nn.LayerNorm))
    return next((m.weight.dtype for m in norms), mx.float32)


def fit(model: nn.Module, adapter: Adapter) -> dict[str, Filling]:
    """What an adapter fills slots with, by their names; missing ones are made, and left empty.

    Matrices are of the type that the model computes in, so that nothing is converted when they
    are put in.

    Raises:
        InputError: its matrices do not fit the model.
    """
    places = adapter.places
    found = make_slots(model, places)
    scale, dtype = adapter.options.multiplier, compute_type(model)
    fillings = {}
    for place, matrices in places.items():
        slot = found[place]
        _check(adapter.name, place, slot, matrices)
        gain = None
        if matrices.m is not None and isinstance(slot, LoRALinear):
            gain = matrices.m / slot.lengths(matrices.lora_a, matrices.lora_b, scale)
        lora_a, lora_b = (x.astype(dtype) for x in matrices[:2])
        fillings[place] = Filling(lora_a, lora_b, scale, matrices.m, gain)
    mx.eval([x for f in fillings.values() for x in f if isinstance(x, mx.array)])
    return fillings


def _check(name: str, place: str, slot: Slot, matrices: Matrices) -> None:
    given = (matrices.lora_a.shape[0], matrices.lora_b.shape[1])
    if given != slot.shape or (matrices.m is not None and matrices.m.shape != slot.shape[1:]):
        raise InputError(
            f"adapter {name} changes {given[0]} by {given[1]} numbers at {place}, the model has"
            f" {slot.shape[0]} by {slot.shape[1]}: it is for another model"
        )
    if matrices.m is not None and isinstance(slot, LoRAEmbedding):
        raise InputError(f"adapter {name} has DoRA at {place}: it works on linear layers only")


def put(model: nn.Module, adapter: Adapter | None) -> None:
    """Fill the slots with an adapter's matrices, or empty them.

    Raises:
        InputError: it does not fit; what was in stays in.
    """
    fillings = fit(model, adapter) if adapter is not None else {}
    for place, slot in slots(model).items():
        slot.empty()
        if place in fillings:
            slot.fill(fillings[place])


def stacked(parts: Sequence[Filling | None], shape: tuple[int, int], rows: mx.array) -> Filling:
    """One filling for a batch whose rows take one part each; ``None`` changes nothing.

    Lower ranks are filled up with zeros to the highest.

    Args:
        shape: of the slot, ``(K, N)``.
        rows: index of the part for each row of the batch, ``[B]``.
    """
    rank = max(p.lora_a.shape[1] for p in parts if p is not None)
    dtype = next(p.lora_a.dtype for p in parts if p is not None)
    lora_a, lora_b, gains = [], [], []
    nothing = Filling(mx.zeros((shape[0], rank), dtype), mx.zeros((rank, shape[1]), dtype), 1.0)
    for part in parts:
        a, b, scale, _, gain, _ = part or nothing
        room = rank - a.shape[1]
        lora_a.append(mx.pad(a, [(0, 0), (0, room)]))
        lora_b.append(mx.pad(scale * b, [(0, room), (0, 0)]))
        gains.append(gain)
    if any(g is not None for g in gains):
        one = mx.ones((shape[1],))
        gain = mx.stack([one if g is None else g for g in gains])[:, None]
    else:
        gain = None
    return Filling(mx.stack(lora_a), mx.stack(lora_b), 1.0, None, gain, rows)


def taken(model: nn.Module) -> dict[str, mx.array]:
    """The matrices in the slots by name, as an :class:`Adapter` has them."""
    return {
        f"{place}.{leaf}": slot[leaf]
        for place, slot in slots(model).items()
        for leaf in LEAVES
        if leaf in slot
    }


def learning(model: nn.Module) -> list[tuple[nn.Module, list[str]]]:
    """The parameters that are not frozen, layer by layer, as :func:`unfreeze` takes them."""
    free = nn.Module.trainable_parameter_filter
    return [
        (m, [k for k, v in m.items() if isinstance(v, mx.array) and free(m, k, v)])
        for _, m in model.named_modules()
    ]


def unfreeze(parameters: Sequence[tuple[nn.Module, list[str]]]) -> None:
    """Let parameters learn again that :func:`prepare` froze."""
    for module, keys in parameters:
        module.unfreeze(keys=keys, recurse=False)


def prepare(
    model: nn.Module, options: LoRAOptions, start: Adapter | None = None, seed: int = 0
) -> None:
    """Freeze a model and put matrices in that training changes; they begin as no change.

    Args:
        start: an adapter to begin as; a lower rank than that of ``options`` is filled up.

    Raises:
        InputError: keys name no layer, or ``start`` does not fit the model or the options.
    """
    places = targets(model, options)
    given = start.places if start is not None else {}
    if start is not None:
        _check_start(start, options, places)
        fit(model, start)
    found = make_slots(model, places)
    for place, slot in found.items():
        if options.dora and not isinstance(slot, LoRALinear):
            raise InputError(f"DoRA works on linear layers only: leave {place} out of the keys")
    for slot in slots(model).values():
        slot.empty()
    model.freeze()
    scale = options.multiplier
    keys = mx.random.split(mx.random.key(seed), max(len(places), 1))
    for place, key in zip(places, keys, strict=True):
        slot = found[place]
        rows, columns = slot.shape
        edge = 1 / math.sqrt(rows)
        lora_a = mx.random.uniform(-edge, edge, (rows, options.rank), key=key)
        lora_b = mx.zeros((options.rank, columns))
        m = None
        if start is not None and place in given:
            known = given[place]
            lora_a[:, : start.options.rank] = known.lora_a
            lora_b[: start.options.rank] = known.lora_b * (start.options.multiplier / scale)
            m = known.m
        if options.dora and m is None and isinstance(slot, LoRALinear):
            m = slot.lengths(lora_a, lora_b, scale)
        slot.fill(Filling(lora_a, lora_b, scale, m))
        slot.dropout = nn.Dropout(options.dropout).train(slot.training)
        slot.unfreeze(keys=list(LEAVES), recurse=False)
    mx.eval(taken(model))


def _check_start(start: Adapter, options: LoRAOptions, places: list[str]) -> None:
    missing = sorted(set(start.places) - set(places))
    if missing:
        raise InputError(
            f"adapter {start.name} changes {missing[0]}, which the new one would not: give it the"
            " same keys and blocks"
        )
    if start.options.rank > options.rank or (start.options.dora and not options.dora):
        raise InputError(
            f"adapter {start.name} has rank {start.options.rank}{' and DoRA' * start.options.dora}:"
            " the one that begins with it needs as much"
        )
