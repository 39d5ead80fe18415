"""Adapter folders: those of mlx-lm and of PEFT, read and written.

mlx-lm: ``adapters.safetensors`` and ``adapter_config.json`` with ``lora_parameters``; what else
is known of an adapter stands under further keys there. PEFT: ``adapter_model.safetensors``,
matrices transposed, ``lora_alpha`` in the place of the scale (alpha / r, or alpha / sqrt(r) with
``use_rslora``); what else is known stands in the header of the weights, since older versions of
PEFT refuse unknown keys. Pickled weights are never read.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from afm_mlx.adapters.adapter import About, Adapter, LoRAOptions
from afm_mlx.errors import InputError, first_line
from afm_mlx.files import new_folder

import mlx.core as mx
from safetensors import SafetensorError, safe_open

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"
PEFT_WEIGHTS, PEFT_PICKLED = "adapter_model.safetensors", "adapter_model.bin"
RECOVERY = "recovery"
"""Folder of the recovery adapter in that of its model."""
STORED = mx.float16
"""Type of the matrices in a file; DoRA's lengths of rows are few and keep theirs."""

Form = Literal["mlx", "peft"]

_BLOCK = re.compile(r"(.*\blayers\.\d+)\.(.+)")
_PEFT_NAME = re.compile(
    r"base_model\.model\.(?P<place>.+)\.lora_(?P<leaf>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(\.default)?(\.weight)?"
)
_PEFT_LEAVES = {
    "A": "lora_a",
    "B": "lora_b",
    "embedding_A": "lora_a",
    "embedding_B": "lora_b",
    "magnitude_vector": "m",
}


SENSELESS = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What values may lead to that are none of an adapter: ranks of 0, endless numbers or lists."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, readable or not."""
    return (folder / CONFIG).is_file()


def read(folder: Path, name: str = "") -> Adapter:
    """The adapter in a folder, in 16 bits.

    Args:
        name: what to call it; the folder's name if left out.

    Raises:
        InputError: there is none, it is damaged, or of a kind that cannot be used here.
    """
    folder, name = Path(folder), name or Path(folder).name
    config = _read_config(folder)
    peft = (folder / PEFT_WEIGHTS).is_file() and not (folder / WEIGHTS).is_file()
    if not peft and not (folder / WEIGHTS).is_file() and (folder / PEFT_PICKLED).is_file():
        raise InputError(
            f"{folder / PEFT_PICKLED} is pickled, which can run any code and is never read: save"
            " it anew with safe_serialization=True"
        )
    weights, header = _read_weights(folder / (PEFT_WEIGHTS if peft else WEIGHTS))
    try:
        if peft:
            about = json.loads(header.get("about", "{}"))
            adapter = _from_peft(name, config, weights, _about(about))
        else:
            adapter = _from_mlx(name, config, weights, _about(config))
    except SENSELESS as error:
        raise InputError(
            f"{folder / CONFIG} is no description of an adapter ({first_line(error)}):"
            " download it or train it again"
        ) from error
    _check(adapter)
    return adapter


def write(
    adapter: Adapter,
    folder: Path,
    form: Form = "mlx",
    *,
    overwrite: bool = False,
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Write an adapter's folder, whole or not at all; matrices have 16 bits there.

    Args:
        form: ``mlx`` is what mlx-lm loads, ``peft`` what PEFT loads.
        overwrite: replace an adapter that is there.
        extra: further files by their names.

    Raises:
        InputError: the folder exists or cannot be written, or the adapter is damaged.
    """
    folder = Path(folder)
    if folder.exists() and not (overwrite and is_adapter(folder)):
        raise InputError(f"{folder} exists already: choose another name, or delete it")
    weights = {name: _stored(name, w) for name, w in adapter.weights.items()}
    _check(Adapter(adapter.name, weights, adapter.options, adapter.about))
    about = asdict(adapter.about)
    header = None
    if form == "peft":
        config, weights = _peft_config(adapter), _peft_weights(weights)
        header = {"format": "pt", "about": json.dumps(about)}
    else:
        config = {**_mlx_config(adapter), **about}
    with new_folder(folder) as temporary:
        file = temporary / (PEFT_WEIGHTS if form == "peft" else WEIGHTS)
        mx.save_safetensors(str(file), weights, header)
        (temporary / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
        for further, content in (extra or {}).items():
            (temporary / further).write_bytes(content)


# ---- files


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{folder} is no adapter ({CONFIG}: {first_line(error)}): name a folder that mlx-lm,"
            " PEFT or `afm adapters train` wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{folder / CONFIG} is damaged ({first_line(error)}): download it or train it again"
        ) from error
    if not isinstance(config, dict):
        raise InputError(f"{folder / CONFIG} is no JSON object: download it or train it again")
    return config


def _read_weights(file: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Matrices in 16 bits and the file's header; compares that with the size of the file first."""
    try:
        with safe_open(file, framework="numpy") as opened:
            header = opened.metadata() or {}
        loaded: Any = mx.load(str(file))
        weights = {name: _stored(name, w) for name, w in loaded.items()}
        mx.eval(weights)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise InputError(
            f"{file} is missing, damaged or cut short ({first_line(error)}):"
            " download it or train it again"
        ) from error
    return weights, header


def _stored(name: str, weight: mx.array) -> mx.array:
    lengths = name.endswith((".m", "lora_magnitude_vector"))
    return weight if lengths or weight.dtype == mx.bfloat16 else weight.astype(STORED)


def _check(adapter: Adapter) -> None:
    """Raise for matrices that cannot be, whatever the model."""
    if not adapter.places:
        raise InputError(f"adapter {adapter.name} has no matrices: train it again")
    finite = {name: mx.all(mx.isfinite(w)) for name, w in adapter.weights.items()}
    mx.eval(finite)
    wrong = sorted(name for name, good in finite.items() if not good.item())
    if wrong:
        raise InputError(
            f"adapter {adapter.name} has numbers that are none (NaN or infinite) in {wrong[0]}:"
            " train it again at a lower learning rate"
        )


def _about(given: Mapping[str, Any]) -> About:
    """What is known of an adapter; others' folders say nothing."""
    texts = ("feature", "base_signature", "data_hash", "licence")
    metrics = {str(k): float(v) for k, v in (given.get("metrics") or {}).items()}
    return About(metrics=metrics, **{name: str(given.get(name) or "") for name in texts})


def _options(**values: Any) -> LoRAOptions:
    try:
        return LoRAOptions(**values)
    except InputError as error:
        raise ValueError(str(error)) from error


def keys_of(places: Iterable[str]) -> tuple[str, ...]:
    """Names within their blocks: ``self_attn.q_proj`` of ``model.layers.0.self_attn.q_proj``."""
    matches = ((place, _BLOCK.fullmatch(place)) for place in places)
    return tuple(sorted({m[2] if m else place for place, m in matches}))


# ---- mlx-lm


def _from_mlx(
    name: str, config: dict[str, Any], weights: dict[str, mx.array], about: About
) -> Adapter:
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise InputError(f"adapter {name} is of type {kind!r}: only lora and dora can be used")
    given = config["lora_parameters"]
    rank, stabilised = int(given["rank"]), bool(config.get("rank_stabilised", False))
    keys = given.get("keys") or keys_of(w.rpartition(".")[0] for w in weights)
    if not isinstance(keys, list | tuple) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its keys are no names of layers")
    options = _options(
        rank=rank,
        scale=float(given["scale"]) * (rank**0.5 if stabilised else 1),
        dropout=float(given.get("dropout") or 0),
        keys=tuple(keys),
        num_layers=max(int(config.get("num_layers", -1)), 0) or -1,
        rank_stabilised=stabilised,
        dora=kind == "dora",
    )
    return Adapter(name, weights, options, about)


def _mlx_config(adapter: Adapter) -> dict[str, Any]:
    options = adapter.options
    return {
        "fine_tune_type": "dora" if options.dora else "lora",
        "num_layers": options.num_layers,
        "lora_parameters": {
            "rank": options.rank,
            "scale": options.multiplier,
            "dropout": options.dropout,
            "keys": list(keys_of(adapter.places)),
        },
        "rank_stabilised": options.rank_stabilised,
    }


# ---- PEFT


def _from_peft(
    name: str, config: dict[str, Any], weights: dict[str, mx.array], about: About
) -> Adapter:
    if config.get("peft_type") != "LORA":
        raise InputError(f"adapter {name} is of type {config.get('peft_type')!r}: only LORA works")
    for key in ("rank_pattern", "alpha_pattern", "fan_in_fan_out"):
        if config.get(key):
            raise InputError(f"adapter {name} has a {key}: train it with one rank for all layers")
    found: dict[str, mx.array] = {}
    for given, weight in weights.items():
        match = _PEFT_NAME.fullmatch(given)
        if match is None:
            raise InputError(
                f"adapter {name} holds {given}, more than low-rank matrices: train it without"
                " modules_to_save and biases"
            )
        leaf = _PEFT_LEAVES[match["leaf"]]
        turned = weight.reshape(-1) if leaf == "m" else mx.contiguous(weight.T)
        found[f"{match['place']}.{leaf}"] = turned
    mx.eval(found)
    rank, stabilised = int(config["r"]), bool(config.get("use_rslora", False))
    alpha = float(config["lora_alpha"])
    options = _options(
        rank=rank,
        scale=alpha if stabilised else alpha / rank,
        dropout=float(config.get("lora_dropout") or 0),
        keys=keys_of(found_name.rpartition(".")[0] for found_name in found),
        rank_stabilised=stabilised,
        dora=bool(config.get("use_dora", False)),
    )
    return Adapter(name, found, options, about)


def _peft_config(adapter: Adapter) -> dict[str, Any]:
    options = adapter.options
    alpha = options.scale * (1 if options.rank_stabilised else options.rank)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": options.rank,
        "lora_alpha": alpha,
        "lora_dropout": options.dropout,
        "use_rslora": options.rank_stabilised,
        "use_dora": options.dora,
        "bias": "none",
        "target_modules": sorted(adapter.places),
    }


def _peft_weights(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    found = {}
    for name, weight in weights.items():
        place, _, leaf = name.rpartition(".")
        letter = {"lora_a": "A", "lora_b": "B"}.get(leaf)
        if letter is None:
            found[f"base_model.model.{place}.lora_magnitude_vector"] = weight
        elif place.endswith("embed_tokens"):
            found[f"base_model.model.{place}.lora_embedding_{letter}"] = mx.contiguous(weight.T)
        else:
            found[f"base_model.model.{place}.lora_{letter}.weight"] = mx.contiguous(weight.T)
    return found
