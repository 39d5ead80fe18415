"""Profiles of tiny models: counts against numbers worked out by hand, sums, files, pages."""

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS, Model, named_weights
from afm_mlx.model_args import ModelArgs
from afm_mlx.quant import profile as records
from afm_mlx.quant import profile_html, quantize
from afm_mlx.quant.layers import (
    PalettizedLinear,
    RowwiseEmbedding,
    make_ready,
)
from afm_mlx.quant.machine import Energy, Machine
from afm_mlx.quant.measure import ProfileOptions, Round
from afm_mlx.quant.measure import profile as measure
from afm_mlx.quant.palette import palettize
from afm_mlx.quant.plan import Choice
from afm_mlx.quant.profile import Operation, Profile
from afm_mlx.quant.quantize import TargetOptions, Workshop
from afm_mlx.quant.variants import FormatOptions, Row
from tests.conftest import random_model

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers

TINY = PRESETS["tiny"]
SMALL = replace(TINY, num_hidden_layers=2, intermediate_size=192)
REUSING = replace(TINY, num_kv_reuse_layers=2, qk_norm=True, tie_word_embeddings=False)
MACHINE = Machine("abacus", "float32", 1e10, 1e11)
TOKENS = 48


def taken(model: Model, **more: Any) -> Profile:
    *rounds, found = measure(model, "tiny", ProfileOptions(TOKENS, 1), machine=MACHINE, **more)
    assert isinstance(found, Profile)
    assert [(r.done, r.total) for r in rounds if isinstance(r, Round)] == [
        (i, len(rounds)) for i in range(1, len(rounds) + 1)
    ]
    return found


def named(found: Profile) -> dict[str, Operation]:
    return {o.name: o for o in found.operations}


def palettized(model: Model, bits: int = 3, held: bool = True) -> Model:
    """Palettes and an int8 embedding in place of the weights."""
    layers: list[tuple[str, nn.Module]] = [
        (name, PalettizedLinear.of(palettize(np.array(x.weight), [bits])[bits]))
        for name, x in model.named_modules()
        if name.endswith("_proj")
    ]
    table = RowwiseEmbedding.of(np.array(model.model.embed_tokens.weight))
    model.update_modules(tree_unflatten([*layers, ("model.embed_tokens", table)]))
    model.set_dtype(mx.float32)
    make_ready(model, 1e9 if held else 0)
    return model


def quantized(model: Model, held: bool) -> Model:
    """MLX's own 4-bit layers; ``held`` as a checkpoint loads them."""
    nn.quantize(model, 64, 4)
    if held:
        make_ready(model, 1e9)
    return model


@pytest.fixture(scope="module")
def dense() -> Profile:
    return taken(random_model(TINY))


# ---- counts


def test_counts_by_hand(dense: Profile) -> None:
    """128 wide, FFN 512, 4 heads of 32 on 2 key-value heads, 259 tokens, float32."""
    rows = named(dense)

    def counts(name: str, phase: str) -> tuple[int, int, int, int]:
        work = getattr(rows[name], phase)
        return work.tokens, work.weights, work.bytes, work.flops

    q = "model.layers.0.self_attn.q_proj"
    assert counts(q, "prefill") == (48, 65_536, 65_536 + 48 * 256 * 4, 48 * 32_768)
    assert counts(q, "decode") == (1, 65_536, 65_536 + 256 * 4, 32_768)
    down = "model.layers.2.mlp.down_proj"
    assert counts(down, "decode") == (1, 262_144, 262_144 + 640 * 4, 131_072)
    attention = "model.layers.1.self_attn.attention"
    seen = 48 * 49 // 2  # a position sees itself and those before
    assert counts(attention, "prefill") == (48, 0, 4 * (2 * 48 * 128 + 2 * 48 * 64), 512 * seen)
    assert counts(attention, "decode") == (1, 0, 4 * (2 * 128 + 2 * 49 * 64), 512 * 49)
    assert counts("model.layers.1.self_attn.k_rope", "prefill") == (48, 0, 24_576, 9_216)
    assert counts("model.layers.1.mlp.swiglu", "decode") == (1, 0, 3 * 512 * 4, 5 * 512)
    assert counts("model.norm", "decode") == (1, 512, 512 + 1024, 512)
    assert counts("model.embed_tokens", "prefill") == (48, 48 * 512, 2 * 48 * 512, 0)
    assert counts("lm_head", "prefill") == counts("lm_head", "decode")
    assert counts("lm_head", "decode") == (1, 132_608, 132_608 + 387 * 4, 2 * 33_152)


@pytest.mark.parametrize("args", [TINY, REUSING])
def test_positions_are_those_that_generation_computes(
    args: ModelArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a prompt the last layers see one position only: counting all would double them."""
    model = random_model(args)
    found = taken(model)
    names = {id(x): name for name, x in model.named_modules()}
    seen: dict[str, int] = {}
    plain: Any = nn.Linear.__call__

    def watched(self: nn.Linear, x: mx.array) -> mx.array:
        seen[names[id(self)]] = x.size // x.shape[-1]
        y: mx.array = plain(self, x)
        return y

    monkeypatch.setattr(nn.Linear, "__call__", watched)
    model(mx.zeros((1, TOKENS), mx.int32), model.make_cache(), last=1)
    rows = {o.name: o.prefill.tokens for o in found.operations if o.kind == "linear"}
    assert rows == {name: count for name, count in seen.items() if name != "lm_head"}
    assert {1, TOKENS} == set(rows.values())


def test_bytes_of_weights_are_those_read() -> None:
    """A layer's 128 x 128 weights as each way of computing reads them."""
    name = "model.layers.0.self_attn.q_proj"
    values = 128 * 128

    def read(model: Model) -> int:
        return named(taken(model))[name].decode.weights

    packed = values * 3 // 8 + 4 * (8 * 8 + 128)  # planes, 8 tables of 8, row scales
    assert read(palettized(random_model(SMALL))) == values * 4
    assert read(palettized(random_model(SMALL), held=False)) == packed + 2 * values * 4
    four = values // 2 + 2 * 4 * values // 64
    assert read(quantized(random_model(SMALL), held=True)) == values * 4
    assert read(quantized(random_model(SMALL), held=False)) == four
    adapted = palettized(random_model(SMALL))
    config = {"rank": 4, "scale": 1.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    linear_to_lora_layers(adapted, 2, config)
    assert read(adapted) == values * 4 + 2 * 4 * 128 * 4


@pytest.mark.parametrize("form", ["dense", "reusing", "palette", "affine", "stock"])
def test_rows_add_up_to_the_file(form: str, tmp_path: Path) -> None:
    model = random_model(REUSING if form == "reusing" else SMALL)
    if form == "palette":
        palettized(model)
    elif form != "dense" and form != "reusing":
        quantized(model, held=form == "affine")
    found = taken(model)
    assert all(o.prefill.seconds > 0 < o.decode.seconds for o in found.operations)
    widths = {o.kind: o.width for o in found.operations}
    expected = {"palette": (3, 8), "affine": (4, 4), "stock": (4, 4)}.get(form, (16, 16))
    assert (widths["linear"], widths["embedding"]) == expected
    model.set_dtype(mx.float16)
    mx.save_safetensors(str(tmp_path / "w.safetensors"), dict(named_weights(model)))
    content = (tmp_path / "w.safetensors").read_bytes()
    assert (
        sum(o.stored for o in found.operations)
        == len(content) - 8 - struct.unpack_from("<Q", content)[0]
    )
    assert sum(o.parameters for o in found.operations) == model.args.num_parameters
    if form == "palette":
        q = named(found)["model.layers.0.self_attn.q_proj"]
        assert q.bits == 3 + 16 * 8 / (16 * 128) + 16 / 128


def test_ceilings_and_energy(dense: Profile) -> None:
    assert MACHINE.least_seconds(1e10, 1e9) == 1.0 and MACHINE.least_seconds(1, 1e12) == 10.0
    assert Energy().joules(1e12, 0) == 160 and Energy().joules(0, 4e12) == 3
    for o in dense.operations:
        reached = dense.share(o.decode) * o.decode.seconds
        assert reached == pytest.approx(max(o.decode.bytes / 1e10, o.decode.flops / 1e11))


def test_random_numbers_go_on_as_they_would() -> None:
    """Inputs are random: drawn from the global state they would change what is sampled next."""
    model = random_model(SMALL)
    mx.random.seed(3)
    expected = mx.random.uniform().item()
    mx.random.seed(3)
    taken(model)
    assert mx.random.uniform().item() == expected


def test_a_prompt_longer_than_the_window(model: Model) -> None:
    with pytest.raises(InputError, match="fewer --tokens"):
        next(measure(model, "tiny", ProfileOptions(tokens=1024)))
    with pytest.raises(InputError, match="at least 1"):
        ProfileOptions(repeats=0)


# ---- what if


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    made = quantize.prepare(
        random_model(SMALL), "signature", None, FormatOptions(), tmp_path_factory.mktemp("shop")
    )
    *_, found = made
    assert isinstance(found, Workshop)
    return found


def test_totals_are_those_of_the_plan(shop: Workshop) -> None:
    plan = quantize.choose(shop, TargetOptions(3.2))
    expected = quantize.account(shop, plan, embedding=False)
    dense = taken(shop.model, choices=shop.rows)
    assert dense.totals.cost == 0 and dense.totals.linear == 16
    found = dense.what_if(plan.bits)
    small = quantize.apply(replace(shop, model=random_model(SMALL)), plan, embedding=True)
    embedded = quantize.account(shop, plan, embedding=True)
    after = taken(small, choices=shop.rows)
    for totals, account in ((found, expected), (after.totals, embedded)):
        assert round(totals.size) == account.size
        assert totals.linear == pytest.approx(account.linear)
        assert totals.bits == pytest.approx(account.model)
        assert totals.cost == pytest.approx(account.cost)
    assert after.what_if(plan.bits) == after.totals
    assert sum(o.stored for o in after.operations) == embedded.size


def offered(found: Profile) -> Profile:
    """Choices of 2, 3 and 4 bits and 8, 4 and 2 nats."""
    rows = {
        o.name: Row(
            (o.shape[0], o.shape[1]),
            tuple(Choice(b, b * float(o.parameters), 16 / 2 ** (b - 1)) for b in (4, 3, 2)),
        )
        for o in found.operations
        if o.kind == "linear"
    }
    return found.with_choices(rows)


def test_time_and_energy_go_with_the_bytes(dense: Profile) -> None:
    found, name = offered(dense), "model.layers.1.mlp.up_proj"
    row = named(found)[name]
    assert row.sensitivity == 8 and [o.bits for o in row.options] == [2, 3, 4]
    work = row.decode
    moved = 65_536 * 2 // 8 + 640 * 4  # two bits each, and 128 inputs and 512 outputs
    totals, before = found.what_if({name: 2}), found.totals
    assert before.cost == 0 and totals.cost == 8
    assert totals.size - before.size == pytest.approx(65_536 * (2 - 16) / 8)
    saved = work.seconds * (1 - moved / work.bytes)
    assert before.seconds - totals.seconds == pytest.approx(saved)
    assert before.joules - totals.joules == pytest.approx(160e-12 * (work.bytes - moved))
    both = found.what_if({name: 2, "model.layers.1.mlp.gate_proj": 3})
    assert both.cost == 12
    assert before.seconds == pytest.approx(
        max(sum(o.decode.seconds for o in found.operations), found.decode.seconds)
    )


def test_what_is_not_offered(dense: Profile) -> None:
    found = offered(dense)
    with pytest.raises(InputError, match="offered with 2, 3, 4 bits, not with 5"):
        found.what_if({"model.layers.0.mlp.up_proj": 5})
    with pytest.raises(InputError, match="no other widths"):
        found.what_if({"model.norm": 4})
    with pytest.raises(InputError, match="no operation model.layers.9"):
        found.what_if({"model.layers.9": 4})
    with pytest.raises(InputError, match="another model"):
        dense.with_choices({"model.layers.0.mlp.up_proj": Row((8, 8), ())})
    assert dense.totals.cost is None


# ---- files and pages


def test_saved_and_read(dense: Profile, tmp_path: Path) -> None:
    whole = replace(offered(dense), notes=("müde",), decode=replace(dense.decode, joules=0.25))
    whole.save(tmp_path / "p.json")
    found = records.read(tmp_path / "p.json")
    assert found == whole and found.totals == whole.totals
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]
    with pytest.raises(InputError, match="could not be written"):
        whole.save(tmp_path / "none" / "p.json")


def damaged(values: dict[str, Any]) -> Iterator[Any]:
    first = values["operations"][0]

    def operation(**changes: Any) -> Any:
        return {**values, "operations": [{**first, **changes}]}

    yield []
    yield {**values, "form": "afm-profile-2"}
    yield {k: v for k, v in values.items() if k != "machine"}
    yield {**values, "extra": 1}
    yield {**values, "tokens": 2.5}
    yield {**values, "tokens": -1}
    yield {**values, "model": None}
    yield {**values, "notes": "text"}
    yield {**values, "operations": [first, first]}
    yield operation(kind="sort")
    yield operation(shape=[0, 3])
    yield operation(shape=[])
    yield operation(stored=True)
    yield operation(decode={**first["decode"], "bytes": 0})
    yield operation(decode={**first["decode"], "seconds": float("nan")})
    yield operation(decode={**first["decode"], "seconds": "1"})
    yield operation(decode={**first["decode"], "flops": 10**400, "seconds": 10**400})
    yield {**values, "machine": {**values["machine"], "speed": 0.0}}


def test_damaged_files(dense: Profile, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    dense.save(path)
    text = path.read_text()
    contents = [json.dumps(v) for v in damaged(json.loads(text))]
    for content in [*contents, text[:-200], "", "[" * 100_000, "null", text.replace("1", "1e999")]:
        path.write_text(content)
        with pytest.raises(InputError, match=r"p\.json is no profile \(.+\): ") as caught:
            records.read(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"\xff\xfe{}")
    for file in (path, tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="is no profile"):
            records.read(file)


def test_page_holds_everything_and_asks_for_nothing(dense: Profile, tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script> {{data}} & <b>"
    whole = replace(offered(dense), model=hostile, notes=("<!-- <script>",))
    profile_html.write(whole, tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    # A name that ends the script, or a comment that swallows the end, would run as markup.
    assert page.count("<script") == page.count("</script>") == 2
    assert "alert(1)</" not in page and "<!--" not in page and "<b>" not in page
    assert "<h1>&lt;/script&gt;" in page and "{{" not in page.replace("{{data}} &", "")
    assert re.findall(r"\w+://[^\"]*", page) == ["http://www.w3.org/2000/svg"]  # a mere name
    assert not re.search(r"src=|href=|url\(|@import|fetch", page)
    data = page.partition('id="data">')[2].partition("</script>")[0]
    figures = json.loads(data)
    assert figures["model"] == hostile
    assert [o["name"] for o in figures["operations"]] == [o.name for o in whole.operations]
    assert figures["totals"] == asdict(whole.totals)
    row = figures["operations"][3]
    assert {"joules", "bandwidth", "speed", "roofline", "seconds", "bytes"} <= set(row["decode"])
    assert {"sensitivity", "bits", "parameters", "options", "block"} <= set(row)


def test_energy_of_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = SimpleNamespace(start=lambda: None, stop=lambda: 6.0)
    monkeypatch.setattr("afm_mlx.quant.measure.meter", lambda: meter)
    *_, found = measure(random_model(SMALL), "tiny", ProfileOptions(8, 3), machine=MACHINE)
    assert isinstance(found, Profile) and found.decode.joules == found.prefill.joules == 2.0
    assert found.report()["decode"]["joules"] == 2.0
