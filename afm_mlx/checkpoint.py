"""Load and save models, and name each by the contents of its weights.

Weights are read from safetensors and GGUF only. A llama-compatible model is saved as a plain
Hugging Face llama folder, which mlx-lm and transformers load without this package.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from afm_mlx import __version__, hub
from afm_mlx.errors import AFMError, InputError, ModelError, first_line
from afm_mlx.files import REMEDY, new_folder
from afm_mlx.gguf import GGUF
from afm_mlx.model import Model, named_weights
from afm_mlx.model_args import ModelArgs
from afm_mlx.quant.layers import configuration, make_ready, set_dtype, shape_like
from afm_mlx.tokenizer import Tokenizer

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.utils import load_model, save_config, save_model
from safetensors import SafetensorError, safe_open

Array = np.ndarray[Any, Any]

DENSE_SHARE = 0.25
"""Share of the machine's memory for dense copies of low-bit weights, on the CPU only."""


def default_dtype() -> mx.Dtype:
    """Compute type: bfloat16 on GPUs; float32 on the CPU, where 16-bit products are slow."""
    return mx.float32 if mx.default_device() == mx.cpu else mx.bfloat16


def dense_bytes() -> float:
    """Memory for dense copies of low-bit weights."""
    return DENSE_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True)
class Checkpoint:
    """A model ready to run: its name, where it came from, weights and tokenizer."""

    name: str
    path: Path
    model: Model
    tokenizer: Tokenizer

    @cached_property
    def signature(self) -> str:
        """The base signature of the weights at ``path``, see :func:`signature`."""
        if self.path.is_file():
            return signature(GGUF(self.path).weights().items())
        weights: dict[str, mx.array] = {}
        for file in _weight_files(self.path):
            weights.update(_arrays(file))
        return signature((k, _canonical(v)) for k, v in self.model.sanitize(weights).items())


def signature(weights: Iterable[tuple[str, Array]]) -> str:
    """SHA-256 over names, shapes and values of all weights; adapters are bound to it.

    It names the values, not the file: floating-point arrays count as float32, so a GGUF file
    and its float32 export have one signature, whatever type they are run in.
    """
    parts = {}
    for name, array in weights:
        if np.issubdtype(array.dtype, np.floating):
            array = np.ascontiguousarray(array, dtype="<f4")
        part = hashlib.sha256(f"{name}{array.shape}{array.dtype}".encode())
        part.update(np.ascontiguousarray(array).data)
        parts[name] = part.digest()
    return hashlib.sha256(b"".join(parts[name] for name in sorted(parts))).hexdigest()


def load(
    source: str | None = None, revision: str | None = None, dtype: mx.Dtype | None = None
) -> Checkpoint:
    """Load the embedded default, a GGUF file, a model folder or a hub repository.

    Args:
        source: see :func:`afm_mlx.hub.resolve`; ``None`` is the embedded default.
        revision: branch, tag or commit of a hub repository.
        dtype: compute type, :func:`default_dtype` unless given.

    Raises:
        ModelError: nothing readable there; the message says what to do.
    """
    path = hub.resolve(source, revision)
    dtype = dtype or default_dtype()
    if path.is_file():
        model, tokenizer = _load_gguf(path, dtype)
    else:
        config = _read_config(path)
        model = _load_folder(path, config, dtype)
        tokenizer = Tokenizer.load(path, config.get("eos_token_id"), config["model_type"])
    model.eval()
    mx.eval(model.parameters())
    return Checkpoint(source or hub.DEFAULT_MODEL, path, model, tokenizer)


def _load_gguf(path: Path, dtype: mx.Dtype) -> tuple[Model, Tokenizer]:
    gguf = GGUF(path)
    model = Model(gguf.args)
    weights = {k: mx.array(v).astype(dtype) for k, v in gguf.weights().items()}
    try:
        model.load_weights(list(weights.items()))
    except ValueError as error:
        raise ModelError(
            f"the weights in {path} do not fit its shape ({first_line(error)}):"
            " download the model again"
        ) from error
    tokenizer = Tokenizer.from_backend(
        gguf.tokenizer(),
        gguf.chat_template,
        bos_token=gguf.special_token("bos"),
        eos_token=gguf.special_token("eos"),
        unk_token=gguf.special_token("unknown"),
        pad_token=gguf.special_token("padding"),
    )
    return model, tokenizer


def _load_folder(path: Path, config: dict[str, Any], dtype: mx.Dtype) -> Model:
    if config.get("model_type") not in hub.MODEL_TYPES:
        raise ModelError(
            f"{path} holds a model of type {config.get('model_type')!r}:"
            f" only {' and '.join(hub.MODEL_TYPES)} can be read"
        )
    names: set[str] = set()
    for file in _weight_files(path):
        names |= _check_safetensors(file)
    # Where nothing is said, an output table in the file decides (transformers writes it).
    tied = {"tie_word_embeddings": config.get("tie_word_embeddings", "lm_head.weight" not in names)}

    def build(args: ModelArgs) -> nn.Module:
        palettes = config.get("palettization")
        return Model(args) if palettes is None else shape_like(Model(args), palettes)

    try:
        model, _ = load_model(
            path, lazy=True, model_config=tied, get_model_classes=lambda **_: (build, ModelArgs)
        )
    except AFMError:
        raise
    except Exception as error:  # whatever a damaged folder makes mlx-lm raise
        raise ModelError(
            f"the weights in {path} do not fit its config.json ({first_line(error)}):"
            " download the model again"
        ) from error
    set_dtype(model, dtype)
    make_ready(model, dense_bytes())
    return model


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path / 'config.json'} cannot be read ({error}): download the model again"
        ) from error
    if not isinstance(config, dict):
        raise ModelError(f"{path / 'config.json'} is no JSON object: download the model again")
    try:  # where a model says more, its chats end there too
        generation = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))
        config["eos_token_id"] = generation["eos_token_id"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return config


def _weight_files(path: Path) -> list[Path]:
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        raise ModelError(
            f"{path} has no model*.safetensors (pickled weights are never read):"
            " choose a repository with safetensors"
        )
    return files


def _check_safetensors(file: Path) -> set[str]:
    """Names of the weights; compares the header with the file's size before any is touched."""
    try:
        with safe_open(file, framework="numpy") as opened:
            return set(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} is damaged or cut short ({error}): download the model again"
        ) from error


def _arrays(file: Path) -> dict[str, mx.array]:
    loaded: Any = mx.load(str(file))
    return loaded


def _canonical(array: mx.array) -> Array:
    if mx.issubdtype(array.dtype, mx.floating):
        array = array.astype(mx.float32)
    return np.array(array)


def save(
    folder: Path,
    model: Model,
    tokenizer: Tokenizer,
    *,
    base: str,
    licence: str = "other",
    overwrite: bool = False,
    extra: Mapping[str, bytes] | None = None,
) -> str:
    """Write a model folder and return the base signature of its weights.

    All files go to a temporary folder beside ``folder``, which is renamed when complete: a
    full disk or an interruption leaves ``folder`` as it was.

    Args:
        folder: new folder; an existing one is only replaced with ``overwrite``.
        base: name of the model this one was made from, for the model card.
        licence: licence of the weights as the Hub names it, for the model card.
        extra: further files by their names.

    Raises:
        InputError: the folder exists, or the disk is full or not writable.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise InputError(f"{folder} exists already: choose another name or allow to overwrite it")
    weights = named_weights(model)
    needed = sum(v.nbytes for _, v in weights)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < needed * 1.05:
            raise InputError(
                f"{folder} needs {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free:"
                " free some space or choose another disk"
            )
        with new_folder(folder) as temporary:
            save_model(temporary, model)
            for file in _weight_files(temporary):
                _check_safetensors(file)  # a short write shows here
            name = signature((k, _canonical(v)) for k, v in weights)
            config = {**model.args.to_dict(), **tokenizer.special_ids, **configuration(model)}
            if "palettization" in config:
                config["model_type"] = "afm"  # others would read it wrong
            save_config(config, temporary / "config.json")
            tokenizer.save(temporary)
            card = _model_card(folder.name, model, base, licence, name)
            (temporary / "README.md").write_text(card, encoding="utf-8")
            for further, content in (extra or {}).items():
                (temporary / further).write_bytes(content)
    except InputError:
        raise
    except Exception as error:  # the libraries that write raise many kinds
        raise InputError(
            f"{folder} could not be written ({first_line(error)}): {REMEDY}"
        ) from error
    return name


def _model_card(name: str, model: Model, base: str, licence: str, signature: str) -> str:
    args = model.args
    widths = sorted(set(args.ffn_sizes))
    return f"""---
license: {licence}
base_model: {base}
library_name: mlx
pipeline_tag: text-generation
---

# {name}

A language model of {args.num_parameters / 1e6:.1f} M parameters made from `{base}` with
afm-mlx {__version__}.

| | |
|---|---|
| layers | {args.num_hidden_layers} ({args.num_kv_reuse_layers} reuse keys and values) |
| hidden size | {args.hidden_size} |
| FFN width | {widths[0] if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"} |
| query / key-value heads | {args.num_attention_heads} / {args.num_key_value_heads} |
| vocabulary | {args.vocab_size} |
| context | {args.max_position_embeddings} tokens |
| base signature | `{signature}` |

```sh
afm chat --model PATH_OF_THIS_FOLDER
```
"""
