"""Give a low-bit model back what its source knew: tables first, then a recovery adapter.

The source teaches by forward KL on its likeliest tokens, cached on disk. First the tables and
scales of the low-bit layers and the norms learn, which adds no bits; then, if wanted, a LoRA
adapter on every linear layer of the frozen result (arXiv 2407.21075, section 5.1), which feature
adapters start from. The adapter is never fused into the weights.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from afm_mlx import checkpoint
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.compress import PLAN, STORED
from afm_mlx.data.packing import Batches, Windows, join
from afm_mlx.data.sources import Source, read
from afm_mlx.data.tokens import cache_key, tokenize
from afm_mlx.distill import teachers
from afm_mlx.distill.cutting import Progress
from afm_mlx.distill.logits import LogitCache
from afm_mlx.distill.objective import Examination, Learner, LossOptions, Objective, wanted
from afm_mlx.distill.recipe import SHIPPED as ARTICLES
from afm_mlx.errors import InputError
from afm_mlx.files import new_folder
from afm_mlx.model import Model
from afm_mlx.quant import calibration, plan
from afm_mlx.quant.layers import learn_tables, low_bit_layers, make_ready, settle
from afm_mlx.quant.statistics import linears
from afm_mlx.saves import Saves, weights_of
from afm_mlx.training import Evaluated, TrainingOptions, train
from afm_mlx.training import Event as TrainingEvent

import mlx.core as mx
import numpy as np
from mlx_lm.tuner.utils import linear_to_lora_layers

Stage = Literal["tables", "adapter"]

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
RECOVERY = "recovery"
"""Folder of the recovery adapter in that of its model."""


@dataclass(frozen=True)
class RecoveryData:
    """What the source teaches with."""

    data: tuple[str, ...] = ()
    """JSONL, text files or folders; the texts that come along if left out."""
    window: int = 256
    """Tokens that are read at a time."""
    held_out: float = 0.05
    """Share of the windows of each source to look at, never trained on."""
    top_k: int = 64
    """Likeliest tokens of the source that are kept."""


@dataclass(frozen=True)
class AdapterOptions:
    """Shape of the recovery adapter."""

    rank: int = 16
    """Rank of each pair of matrices."""
    scale: float = 2.0
    """What the adapter's output is multiplied by."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.scale < 1e4:
            raise InputError("rank must be at least 1, and scale above 0")


TRAINING = TrainingOptions(
    steps=200, batch_size=2, learning_rate=1e-3, weight_decay=0.0, evaluate_every=50, save_every=50
)
"""Training of tables or scales, and of the adapter, unless told otherwise."""


@dataclass(frozen=True)
class Recovery:
    """A low-bit model, its source, and how it is taught."""

    model: str
    source: str | None = None
    revision: str | None = None
    data: RecoveryData = field(default_factory=RecoveryData)
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    training: TrainingOptions = TRAINING


@dataclass(frozen=True)
class Recovered:
    """A stage is done; ``before`` and ``after`` are figures on the held-out windows."""

    stage: Stage
    folder: Path
    before: dict[str, float]
    after: dict[str, float]


Event = Progress | TrainingEvent | Recovered


def recover(options: Recovery, stage: Stage, out: Path, work: Path) -> Iterator[Event]:
    """Run one stage; goes on from the saves in ``work``.

    Args:
        out: for ``tables`` the model's folder, which is replaced when all is done (its own, or
            a new one); for ``adapter`` the adapter's folder.
        work: tokens, what the source said, and saves.

    Raises:
        InputError: the model has no low-bit layers or another source, or a file or folder cannot
            be used.
    """
    small = checkpoint.load(options.model, dtype=mx.float32)
    if not any(low_bit_layers(small.model)):
        raise InputError(f"{small.name} has no low-bit layers to recover: quantize it first")
    if stage == "tables" and (out / RECOVERY).exists():
        raise InputError(
            f"{out / RECOVERY} belongs to the tables as they are: train tables before the adapter,"
            " or move it away"
        )
    loaded = checkpoint.load(options.source, options.revision)
    name = loaded.name
    if loaded.signature != plan.read(small.path / PLAN).base:
        raise InputError(f"{small.name} was not made from {loaded.name}: name its own source")
    source = teachers.wrap(loaded.name, loaded.model, loaded.tokenizer)
    committee = teachers.Committee((source,))
    key, windows = read_windows(options.data, small, work)
    trained, held_out = windows.split(options.data.held_out)
    batches = Batches(
        trained.per_source,
        [1.0] * len(trained.stores),
        options.training.batch_size,
        options.training.seed,
    )
    examination = Examination(held_out, committee)
    examination.prepare()
    mark = hashlib.sha256(f"{key} {source.fingerprint}".encode()).hexdigest()[:12]
    cache = LogitCache(work / f"logits-{options.data.top_k}-{mark}", options.data.top_k)
    numbers = list(wanted(batches, options.training.steps))
    for done, total in cache.fill(committee, windows, numbers, 1.0):
        yield Progress("logits", done, total)
    examination.committee = committee = committee.heads_only()
    del source, loaded
    mx.random.seed(options.training.seed)
    if stage == "tables":
        learn_tables(small.model)
    else:
        small.model.freeze()
        attach(small.model, options.adapter)
    learner = Learner(small.model)
    objective = Objective(learner, committee, LossOptions(), cache, train_head=False)
    recipe = replace(options.training, steps=1, evaluate_every=1, save_every=1, patience=0)
    run = f"{small.signature} {mark} {options.data.top_k} {options.adapter} {recipe}"
    saves = Saves(work / f"{stage}-{hashlib.sha256(run.encode()).hexdigest()[:12]}")

    def look() -> dict[str, float]:
        return examination(small.model)

    before = look() if saves.steps() else {}  # a run that goes on does not look at its start
    for event in train(learner, objective, batches, options.training, saves, look, select="kl"):
        if isinstance(event, Evaluated) and event.step == 0:
            before = event.metrics
        yield event
    if stage == "tables":
        settle(small.model)
        _write_model(out, small, name)
    else:
        _write_adapter(out, small, options.adapter)
    yield Recovered(stage, out, before, look())


def attach(model: Model, options: AdapterOptions) -> None:
    """Put a fresh adapter on every linear layer."""
    keys = sorted({name for layer in model.layers for name in linears(layer)} | _low_bit(model))
    config = {"rank": options.rank, "scale": options.scale, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(model, len(model.layers), config)


def _low_bit(model: Model) -> set[str]:
    return {name for layer in model.layers for name, _ in low_bit_layers(layer)}


def read_windows(data: RecoveryData, small: Checkpoint, work: Path) -> tuple[str, Windows]:
    """A name for the text, and its windows; all positions count, whoever says them."""
    given = data.data or (str(calibration.SHIPPED), str(ARTICLES))
    keys, parts = [str(data.window)], []
    for source in [Source.parse(d) for d in given]:
        keys.append(cache_key(small.tokenizer, [source]))
        store = tokenize(read(source), small.tokenizer, work / "tokens", keys[-1])
        store = replace(store, learn=np.ones_like(store.learn))
        parts.append(Windows.of(store, data.window))
    return " ".join(keys), join(parts)


def _write_model(out: Path, small: Checkpoint, base: str) -> None:
    """The model with its plan; it stays as it is read back, rounded to 16 bits."""
    text = (small.path / PLAN).read_bytes()
    small.model.set_dtype(STORED)
    checkpoint.save(
        out, small.model, small.tokenizer, base=base, overwrite=True, extra={PLAN: text}
    )
    small.model.set_dtype(mx.float32)
    make_ready(small.model, checkpoint.dense_bytes())


def _write_adapter(out: Path, small: Checkpoint, options: AdapterOptions) -> None:
    """The adapter as mlx-lm writes one, and the base signature that it belongs to."""
    weights = {name: value.astype(STORED) for name, value in weights_of(small.model).items()}
    layers = len(small.model.layers)
    keys = sorted({_place(name) for name in weights})
    config: dict[str, Any] = {
        "fine_tune_type": "lora",
        "num_layers": layers,
        "lora_parameters": {**asdict(options), "dropout": 0.0, "keys": keys},
        "base_signature": small.signature,
    }
    with new_folder(out) as temporary:
        mx.save_safetensors(str(temporary / WEIGHTS), weights)
        (temporary / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")


def _place(name: str) -> str:
    """``self_attn.q_proj`` of ``model.layers.0.self_attn.q_proj.lora_a``."""
    return ".".join(name.split(".")[3:-1])
