"""Profiles of a tiny model, bare and with widths, for the quantize screen."""

from dataclasses import replace

from afm_mlx.model import PRESETS
from afm_mlx.quant.machine import Machine
from afm_mlx.quant.measure import ProfileOptions
from afm_mlx.quant.measure import profile as measure
from afm_mlx.quant.plan import Choice
from afm_mlx.quant.profile import Profile, Work
from afm_mlx.quant.variants import FormatOptions, Row
from tests.conftest import random_model

import pytest

MACHINE = Machine("abacus", "float32", 1e10, 1e11)


UP = "model.layers.0.mlp.up_proj"


def timed(found: Work, number: int) -> Work:
    """Work with a time that is the same on every machine."""
    return replace(found, seconds=found.bytes / 5e9 + number * 1e-8)


@pytest.fixture(scope="module")
def bare() -> Profile:
    """A tiny model's profile, its times made up."""
    options = ProfileOptions(48, 1)
    *_, found = measure(random_model(PRESETS["tiny"]), "tiny", options, machine=MACHINE)
    assert isinstance(found, Profile)
    made = tuple(
        replace(o, prefill=timed(o.prefill, i), decode=timed(o.decode, i))
        for i, o in enumerate(found.operations)
    )
    whole = [replace(w, seconds=2e-3, joules=None) for w in (found.prefill, found.decode)]
    return replace(found, operations=made, prefill=whole[0], decode=whole[1], notes=("a note",))


@pytest.fixture(scope="module")
def found(bare: Profile) -> Profile:
    """The same with widths; some matrices matter more than others."""
    form = FormatOptions()
    known = {}
    for i, o in enumerate(bare.operations):
        if o.kind == "linear":
            shape = (o.shape[0], o.shape[1])
            costs = {b: 0.3 * (1 + i % 7) / 4**b for b in (2, 3, 4)}
            known[o.name] = Row(
                shape, tuple(Choice(b, form.size(shape, b), c) for b, c in costs.items())
            )
    return bare.with_choices(known)
